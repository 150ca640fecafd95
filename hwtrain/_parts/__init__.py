"""The parts of a chip model that are known by name: built-in ones, and users'."""
