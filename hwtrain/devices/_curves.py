"""Curves of device properties over the conductance: polynomials and interpolation."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import AfterValidator, Field

from hwtrain._arrays.polynomials import polynomial
from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, Number, SignedExponent

# The logarithms of the fits are not valid below this, and infinite at zero.
_LEVEL_FLOOR = 1e-7


def relative(g: ArrayLike, g_max: float) -> jax.Array:
    """Returns |g| / g_max, at least 1e-7."""
    return jnp.maximum(jnp.abs(jnp.asarray(g)) / g_max, _LEVEL_FLOOR)


Coefficients = Annotated[tuple[Number, ...], Field(strict=False, min_length=1)]
"""Coefficients of a polynomial, in ascending powers."""

Table = Annotated[tuple[Coefficients, ...], Field(strict=False, min_length=2)]
"""Coefficients of polynomials, one for each time of a measurement."""


def _rising(times: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= sooner for sooner, later in zip(times, times[1:])):
        raise InputError(f"times must rise from one to the next; got {times}")
    return times


Times = Annotated[
    tuple[NonNegative, ...],
    Field(strict=False, min_length=2),
    AfterValidator(_rising),
]
"""Times of measurements, in seconds after programming."""


def _bounded(coeffs: tuple[float, ...]) -> tuple[float, ...]:
    *_, least, most = coeffs
    if least > most:
        raise InputError(
            "the last two numbers are the least and the most of the curve; got "
            f"{least:g} and {most:g}"
        )
    return coeffs


ClippedLog = Annotated[
    tuple[Number, ...],
    Field(strict=False, min_length=4, max_length=4),
    AfterValidator(_bounded),
]
"""A slope and an offset of a logarithm, and its least and its most value."""

Points = Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=2)]
"""Values at the points of a curve."""

SignedPoints = Annotated[tuple[SignedExponent, ...], Field(strict=False, min_length=2)]
"""Drift exponents at the points of a curve, of either sign."""


def clipped_log(a: jax.Array, coeffs: ClippedLog) -> jax.Array:
    r"""Returns a logarithm between two bounds.

    .. math:: \mathrm{clip}(c_0 \ln a + c_1,\ c_2,\ c_3)

    >>> print(clipped_log(jnp.array([1e-7, 1.0]), (-0.0155, 0.0244, 0.049, 0.1)))
    [0.1   0.049]

    Args:
      a: relative conductance, positive.
      coeffs: slope, offset, least and most.
    """
    slope, offset, least, most = coeffs
    return jnp.clip(slope * jnp.log(a) + offset, least, most)


def polynomial_sigma(
    g: ArrayLike, g_max: float, coeffs: tuple[float, ...], factor: float
) -> jax.Array:
    """Returns a polynomial in |g| / g_max times a factor; at least zero."""
    a = jnp.abs(jnp.asarray(g, jnp.float32)) / g_max
    return factor * jnp.maximum(polynomial(a, coeffs), 0)


def check_curve(name: str, g_lst: tuple[float, ...], values: tuple[float, ...]) -> None:
    """Raises `ValueError` unless the points increase and each has a value."""
    if len(values) != len(g_lst):
        raise InputError(
            f"{name} must have a value for each conductance of g_lst; got "
            f"{len(values)} values and {len(g_lst)} conductances"
        )
    if any(high <= low for low, high in zip(g_lst, g_lst[1:])):
        raise InputError(f"g_lst must rise from point to point; got {g_lst}")


def check_table(name: str, times_s: tuple[float, ...], rows: tuple[Any, ...]) -> None:
    """Raises `ValueError` unless each time has coefficients, all equally many."""
    if len(rows) != len(times_s) or len(set(map(len, rows))) > 1:
        raise InputError(
            f"{name} must have a row of equally many coefficients for each time of "
            f"times_s; got {len(times_s)} times and rows of {[*map(len, rows)]}"
        )


def interpolate(
    g: ArrayLike, points: tuple[float, ...], values: tuple[float, ...]
) -> jax.Array:
    """Returns a curve that is linear between its points and constant outside."""
    g = jnp.asarray(g, jnp.float32)
    return jnp.interp(g, jnp.asarray(points), jnp.asarray(values))
