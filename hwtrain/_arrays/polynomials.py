"""Polynomials, and coefficients that several effects share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

PCM_COEFFICIENTS = (0.26348, 1.9650, -1.1731)
"""Programming noise of phase-change memory, in µS, by powers of g / g_max."""

PCM_RELATIVE_COEFFICIENTS = (0.26348 / 25, 1.9650 / 25, -1.1731 / 25)
"""The same, relative to the largest conductance of 25 µS."""


def polynomial(x: jax.Array, coeffs: Sequence[Any]) -> jax.Array:
    """Returns the polynomial with `coeffs` in ascending powers, by Horner's rule."""
    total = jnp.zeros_like(x)
    for coefficient in reversed(coeffs):
        total = total * x + coefficient
    return total
