"""Pure functions on arrays: the physics of analog devices. Imports JAX and NumPy only."""
