"""What each parameter is: geometry, hardware, leaves, by path."""
