"""The transforms for NNX modules."""
