"""Pure functions on arrays: the physics of analog devices."""
