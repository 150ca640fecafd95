"""The transforms for Linen modules."""
