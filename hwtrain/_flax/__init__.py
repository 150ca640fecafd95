"""A Flax model, unmodified, made analog: its root, its weights, its layers."""
