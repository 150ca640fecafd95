"""Makes an unmodified Flax model analog: its root, its weights and its layers."""
