"""Draws, rounding, tiles, derivatives: no idea of hardware."""
