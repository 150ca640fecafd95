"""The plan of a model: geometry, hardware and leaves of each parameter, by path."""
