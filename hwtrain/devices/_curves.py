"""Curves of device properties over the conductance: polynomials and interpolation."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import Field

from hwtrain._arrays.polynomials import polynomial
from hwtrain._parts.fields import NonNegative, Number, SignedExponent

# The logarithms of the fits are not valid below this, and infinite at zero.
_LEVEL_FLOOR = 1e-7


def relative(g: ArrayLike, g_max: float) -> jax.Array:
    """Returns |g| / g_max, at least 1e-7."""
    return jnp.maximum(jnp.abs(jnp.asarray(g)) / g_max, _LEVEL_FLOOR)


Coefficients = Annotated[tuple[Number, ...], Field(strict=False, min_length=1)]
"""Coefficients of a polynomial, in ascending powers."""

Points = Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=2)]
"""Values at the points of a curve."""

SignedPoints = Annotated[tuple[SignedExponent, ...], Field(strict=False, min_length=2)]
"""Drift exponents at the points of a curve, of either sign."""


def polynomial_sigma(
    g: ArrayLike, g_max: float, coeffs: tuple[float, ...], factor: float
) -> jax.Array:
    """Returns a polynomial in |g| / g_max times a factor; at least zero."""
    a = jnp.abs(jnp.asarray(g, jnp.float32)) / g_max
    return factor * jnp.maximum(polynomial(a, coeffs), 0)


def check_curve(name: str, g_lst: tuple[float, ...], values: tuple[float, ...]) -> None:
    """Raises `ValueError` unless the points increase and each has a value."""
    if len(values) != len(g_lst):
        raise ValueError(
            f"{name} must have a value for each conductance of g_lst; got "
            f"{len(values)} values and {len(g_lst)} conductances"
        )
    if any(high <= low for low, high in zip(g_lst, g_lst[1:])):
        raise ValueError(f"g_lst must rise from point to point; got {g_lst}")


def interpolate(
    g: ArrayLike, points: tuple[float, ...], values: tuple[float, ...]
) -> jax.Array:
    """Returns a curve that is linear between its points and constant outside."""
    g = jnp.asarray(g, jnp.float32)
    return jnp.interp(g, jnp.asarray(points), jnp.asarray(values))
