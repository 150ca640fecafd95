"""Bounds that weights are clipped to, symmetric about zero."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain.physics import tiling


def layer_gaussian(
    w: jax.Array,
    row_sizes: tuple[int, ...],
    *,
    sigma: float,
    limit: ArrayLike | None = None,
    per_column: bool = False,
    update: jax.Array | None = None,
) -> jax.Array:
    r"""Returns the bound of a number of standard deviations.

    .. math:: c = \min(\text{sigma} \cdot \mathrm{std}(w),\ \text{limit})

    >>> w = jnp.array([[-1.0], [0.0], [1.0]])
    >>> layer_gaussian(w, (3,), sigma=2.0)
    Array([[2.]], dtype=float32)

    Args:
      w: `[..., rows, columns]`, in units of the crossbar.
      row_sizes: rows of each row tile.
      sigma: the bound in standard deviations (N-1, about the mean).
      limit: the largest bound, broadcastable against the result; `None` for no limit.
      per_column: take the standard deviation of each column alone.
      update: added to the weights, of their shape and units; `None` for none.

    Returns:
      `[..., row tiles, columns or 1]`; infinite where all weights are equal, since
      their spread says nothing of a range.
    """
    std = tiling.standard_deviation(w, row_sizes, per_column=per_column, update=update)
    bound = jnp.where(std > 0, sigma * std, jnp.inf)
    return bound if limit is None else jnp.minimum(bound, limit)


def average_channel_max(
    w: jax.Array, row_sizes: tuple[int, ...], *, limit: ArrayLike | None = None
) -> jax.Array:
    r"""Returns the mean over columns of their largest absolute weight.

    .. math:: c = \min\big(\mathrm{mean}_j \max_i |w_{ij}|,\ \text{limit}\big)

    >>> average_channel_max(jnp.array([[0.5, -1.0], [0.0, 0.2]]), (2,))
    Array([[0.75]], dtype=float32)

    Args:
      w: `[..., rows, columns]`, in units of the crossbar.
      row_sizes: rows of each row tile.
      limit: the largest bound, broadcastable against the result; `None` for no limit.

    Returns:
      `[..., row tiles, 1]`.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """
    largest = tiling.absolute_maximum(w, row_sizes, per_column=True)
    bound = jnp.mean(largest.astype(jnp.float32), axis=-1, keepdims=True)
    return bound if limit is None else jnp.minimum(bound, limit)


def bounded_update(param: jax.Array, update: jax.Array, bound: ArrayLike) -> jax.Array:
    r"""Returns the update after which a parameter lies within a bound, exactly.

    .. math:: |\mathrm{round}(p + u')| \le c

    Where the update already keeps the bound it is returned as it is. Elsewhere it leads
    to the bound, and is stepped toward zero where the rounding of the sum, in the
    parameter's dtype, would overshoot.

    >>> p, u = jnp.array([0.5, 0.5]), jnp.array([0.1, 0.9])
    >>> print(p + bounded_update(p, u, 1.0))
    [0.6 1. ]

    Args:
      param: the parameter, of any shape and floating dtype.
      update: the update, to be added to it.
      bound: c, broadcastable against the parameter; infinity turns it off.

    Returns:
      The update, of its own dtype. One of float32 leads a weight of a narrower dtype to
      the largest value within the bound; a narrow one does so where the step itself is
      not rounded, and otherwise stays below by the rounding of the step.
    """
    p, u = as_float32(param), as_float32(update)
    c = jnp.broadcast_to(jnp.asarray(bound, jnp.float32), p.shape)
    target = inside = jax.lax.clamp(-c, p + u, c)
    aims = [target]
    if param.dtype != jnp.float32:
        target = _rounded(target, param.dtype)
        # Rounding may have led out of the bound again.
        lower = _toward_zero(target, param.dtype)
        target = jnp.where(jnp.abs(target) > c, lower, target)
        inside = _toward_zero(target, param.dtype)
        aims = [target, inside]
    # A weight near its bound gets there exactly. The step of a distant one, and so the
    # sum, is as coarse as the weight itself: it aims below by that much, or at zero.
    coarse = 2 * float(jnp.finfo(update.dtype).eps)
    # Not |p|: XLA would store it, for this and for the largest |p| in one kernel.
    size = jnp.maximum(p, -p)
    below = (1 - coarse) - size * (coarse / jnp.maximum(c, 1e-30))
    for aim in [*aims, inside * jnp.maximum(below, 0)]:
        missed = jnp.abs(_rounded(p + u, param.dtype)) > c
        u = jnp.where(missed, _rounded(aim - p, update.dtype), u)
    return u.astype(update.dtype)


def as_float32(x: jax.Array) -> jax.Array:
    """Returns floating-point numbers in float32, rounded to the dtype that they have.

    Without this, a compiler may decide by numbers that it has not rounded yet, and add
    rounded ones.
    """
    return _rounded(x.astype(jnp.float32), x.dtype)


def _rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rounds float32 values to a dtype, in a way that XLA does not optimise away."""
    if dtype == jnp.float32:
        return x
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def _toward_zero(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns the next value of a dtype toward zero, for float32 values of it."""
    integer = jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
    bits = jax.lax.bitcast_convert_type(x.astype(dtype), integer)
    smaller = jnp.where(x == 0, bits, bits - jnp.ones((), integer))
    return jax.lax.bitcast_convert_type(smaller, dtype).astype(jnp.float32)
