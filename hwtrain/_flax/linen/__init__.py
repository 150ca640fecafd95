"""Analog Linen models."""
