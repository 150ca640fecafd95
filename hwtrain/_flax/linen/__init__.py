"""Linen."""
