"""Analog NNX models."""
