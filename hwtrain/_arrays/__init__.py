"""Array operations independent of hardware: draws, rounding, tiles, derivatives."""
