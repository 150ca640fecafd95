"""What stands around a tile: one stage a file, in one order for all layers."""
