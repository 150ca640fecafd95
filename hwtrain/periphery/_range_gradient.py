"""The input range of a tile: clipping, its gradient, and input statistics.

Statistics of the forward pass reach the optimiser as the gradient of a small array, the
probe. It holds sums, never ratios, so that it stays right when gradients are added or
averaged: for a layer that is called twice, a scan over time, gradient accumulation, or
several devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._arrays import derivatives, reductions, tiling
from hwtrain._arrays.derivatives import custom_vjp

PROBE_SCALE = 2.0**-40
"""Factor on the probe's sums. A power of two, so that quotients are exact, and small,
so that clipping by the global norm and logged norms are not affected."""

PROBE_SIZE = 6
"""Number of sums for every tile: n, n unclipped, sum of x/r, sum of (x/r)^2, outputs,
outputs unclipped. For a range that follows extremes: calls, calls, sum over calls of
the largest x/r, of the smallest x/r, and two zeros."""


class RangeGradient(NamedTuple):
    """Options of the gradient of an input range.

    Attributes:
      scale: factor on the gradient.
      relative: whether the gradient is multiplied by the range.
      straight_through: whether gradients pass through clipped inputs.
      extremes: whether the range follows the largest and smallest inputs of calls. Its
        gradient is then the true derivative of the clipping.
    """

    scale: float = 1.0
    relative: bool = True
    straight_through: bool = False
    extremes: bool = False


def clipped(x: jax.Array, r: jax.Array, *, straight_through: bool) -> jax.Array:
    r"""Clips by plain operations, which also support forward-mode differentiation.

    .. math:: \hat x = \mathrm{clip}(x, -r, r), \qquad
        \frac{\partial \hat x}{\partial x} = [|x| \le r]

    At the range itself the gradient passes to the input, as in `clip_to_range`;
    `jnp.clip` would share it between input and range.

    >>> print(jax.grad(clipped)(3.0, 3.0, straight_through=False))
    1.0

    Args:
      x: inputs.
      r: the range, broadcastable against the inputs.
      straight_through: whether gradients pass through clipped inputs.
    """
    r = tiling.over_batch(r, x)
    beyond = jnp.sign(x) * r
    if straight_through:
        beyond = beyond + derivatives.straight_through(x, jnp.zeros_like(x))
    return jnp.where(jnp.abs(x) <= r, x, beyond)


@custom_vjp(nondiff_argnums=(3, 4))
def clip_to_range(
    x: jax.Array,
    input_range: jax.Array,
    probe: jax.Array,
    row_sizes: tuple[int, ...],
    gradient: RangeGradient = RangeGradient(),  # noqa: B008 an immutable value
) -> jax.Array:
    r"""Clips the inputs of every tile to the tile's range.

    .. math:: \hat x = \mathrm{clip}(x, -r, r)

    With :math:`d` the gradient at :math:`\hat x`, the gradients are

    .. math::
        \frac{\partial L}{\partial x} = d\,[|x| \le r], \qquad
        \frac{\partial L}{\partial r} = \gamma r \Big(\sum_{x \ge r} \min(d, 0)
        - \sum_{x \le -r} \max(d, 0)\Big),

    so that clipping can only widen the range, and the gradient of the probe is
    2^-40 times the sums of `PROBE_SIZE`, over the inputs before clipping. Extremes of
    several calls cannot be pooled by sums, so their mean over calls is; a range that
    follows them has the gradient :math:`\sum_{x > r} d - \sum_{x < -r} d`.

    >>> x = jnp.array([[0.5, 4.0]]).reshape(1, 1, 1, 2)
    >>> clip_to_range(x, jnp.full((1, 1), 3.0), jnp.zeros((1, 1, 6)), (2,)).ravel()
    Array([0.5, 3. ], dtype=float32)

    Args:
      x: `[..., row tiles, 1, rows]`, cut into row tiles by `tiling.cut`.
      input_range: `[row tiles, column tiles]`, positive, in units of the input.
      probe: `[row tiles, column tiles, 6]`; its value is not read.
      row_sizes: rows of each row tile.
      gradient: options of the gradient.

    Returns:
      `[..., row tiles, column tiles, rows]`.

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """
    del probe, row_sizes, gradient
    r = tiling.over_batch(input_range[..., None], x).astype(x.dtype)
    return jnp.clip(x, -r, r)


def _forward(x, input_range, probe, row_sizes, gradient):
    y = clip_to_range(x, input_range, probe, row_sizes, gradient)
    return y, (x, input_range, probe)


def _backward(row_sizes, gradient, residuals, d):
    x, input_range, probe = residuals
    r = tiling.over_batch(input_range[..., None], x).astype(x.dtype)
    batch = tuple(range(-x.ndim, -3))
    axes = (*batch, -1)

    d_x = d if gradient.straight_through else jnp.where(jnp.abs(x) <= r, d, 0)
    d_x = tiling.add_tiles(d_x, -2)[..., None, :].astype(x.dtype)
    if gradient.extremes:
        beyond = jnp.where(jnp.abs(x) > r, jnp.sign(x) * d, 0).astype(jnp.float32)
        d_range = jnp.sum(beyond, axis=axes).astype(input_range.dtype)
        d_probe = PROBE_SCALE * _extremes(x, input_range, row_sizes)
        return d_x, d_range, d_probe.astype(probe.dtype)

    def clipped_and_widen(x, d):
        beyond = jnp.abs(x) >= r
        outward = jnp.where(x > 0, d, -d).astype(jnp.float32)
        widen = jnp.where(beyond, jnp.minimum(outward, 0), 0)
        return jax.lax.complex(beyond.astype(jnp.float32), widen)

    def value_and_square(x):
        x = x.astype(jnp.float32)
        return jax.lax.complex(x, jnp.square(x))

    edge = reductions.sum_of(clipped_and_widen, x, d, axes=axes)
    d_range = gradient.scale * jnp.imag(edge)
    if gradient.relative:
        d_range = d_range * input_range

    examples = int(np.prod([x.shape[axis] for axis in batch], dtype=np.int64))
    count = examples * np.asarray(row_sizes, np.float32)[:, None]
    count = jnp.broadcast_to(count, input_range.shape)
    moments = reductions.sum_of(value_and_square, x, axes=axes)
    total = jnp.real(moments) / input_range
    square = jnp.imag(moments) / jnp.square(input_range)
    none = jnp.zeros_like(count)
    sums = [count, count - jnp.real(edge), total, square, none, none]
    sums = jnp.stack(sums, axis=-1)
    d_probe = (PROBE_SCALE * sums).astype(probe.dtype)
    return d_x, d_range.astype(input_range.dtype), d_probe


clip_to_range.defvjp(_forward, _backward)


def _extremes(
    x: jax.Array, input_range: jax.Array, row_sizes: tuple[int, ...]
) -> jax.Array:
    """Returns the sums of one call for a range that follows extremes."""
    x = x.astype(jnp.float32)
    axes = (*range(x.ndim - 3), x.ndim - 1)
    real = tiling.over_batch(tiling.mask(row_sizes)[:, None, :], x)
    largest = jnp.max(x, axis=axes, where=real, initial=-jnp.inf) / input_range
    smallest = jnp.min(x, axis=axes, where=real, initial=jnp.inf) / input_range
    one, none = jnp.ones_like(input_range), jnp.zeros_like(input_range)
    return jnp.stack([one, one, largest, smallest, none, none], axis=-1)


def ranged_matmul(
    x: jax.Array,
    w: jax.Array,
    input_range: jax.Array,
    probe: jax.Array | None,
    *,
    row_sizes: tuple[int, ...],
    column_sizes: tuple[int, ...],
    gradient: RangeGradient = RangeGradient(),  # noqa: B008 an immutable value
    dot_general=jax.lax.dot_general,
) -> jax.Array:
    r"""Multiplies by a matrix that lies on tiles, each with its own input range.

    .. math:: y_c = \sum_r \mathrm{clip}(x_r, -r_{rc}, r_{rc})\, W_{rc}

    >>> x, w = jnp.array([[0.5, 4.0]]), jnp.ones((2, 1))
    >>> ranged_matmul(x, w, jnp.full((1, 1), 3.0), None,
    ...               row_sizes=(2,), column_sizes=(1,))
    Array([[3.5]], dtype=float32)

    Args:
      x: `[..., rows]`.
      w: `[rows, columns]`.
      input_range: `[row tiles, column tiles]`, in units of the input.
      probe: `[row tiles, column tiles, 6]`; `None` for plain JAX operations, which
        forward-mode differentiation needs, without statistics.
      row_sizes: rows of each row tile.
      column_sizes: columns of each column tile.
      gradient: options of the range's gradient.
      dot_general: the product to use, called as `jax.lax.dot_general`.

    Returns:
      `[..., columns]`.
    """
    tiles: Any = tiling.cut(x, row_sizes, axis=-1)[..., None, :]
    if probe is None:
        r = input_range[..., None].astype(x.dtype)
        tiles = clipped(tiles, r, straight_through=gradient.straight_through)
    else:
        tiles = clip_to_range(tiles, input_range, probe, row_sizes, gradient)
    if len(row_sizes) == len(column_sizes) == 1:
        return dot_general(tiles[..., 0, 0, :], w, (((x.ndim - 1,), (0,)), ((), ())))
    # Column tiles are a batch axis and lead, which XLA multiplies without copies; row
    # tiles are contracted together with their rows, which adds their partial sums.
    w = tiling.cut_matrix(w, row_sizes, column_sizes)
    w = jnp.moveaxis(w, 2, 0)
    tiles = jnp.moveaxis(tiles, -2, 0)
    tiles = jax.lax.collapse(tiles, -2)
    w = w.reshape(w.shape[0], -1, w.shape[-1])
    y = dot_general(tiles, w, (((tiles.ndim - 1,), (1,)), ((0,), (0,))))
    return tiling.join(jnp.moveaxis(y, 0, -2), column_sizes, axis=-1)


def count_outputs(
    y: jax.Array, probe: jax.Array, bound: ArrayLike, column_sizes: tuple[int, ...]
) -> jax.Array:
    r"""Returns outputs unchanged, and counts them in the gradient of the probe.

    The last two sums of the probe become 2^-40 times the number of outputs, and the
    number of outputs inside the bound, :math:`|y| < 0.999\, b`.

    >>> y, probe = jnp.array([0.5, 2.0]).reshape(1, 1, 1, 2), jnp.zeros((1, 1, 6))
    >>> loss = lambda probe: count_outputs(y, probe, 2.0, (2,)).sum()
    >>> print(jax.grad(loss)(probe).ravel() / PROBE_SCALE)
    [0. 0. 0. 0. 2. 1.]

    Args:
      y: `[..., row tiles, column tiles, columns]`, in normalised units.
      probe: `[row tiles, column tiles, 6]`; its value is not read.
      bound: b, the bound of the ADC; a number, or `[]` if it is traced.
      column_sizes: columns of each column tile.
    """
    traced = () if isinstance(bound, float | int) else (jnp.asarray(bound),)
    return _counted(y, probe, traced, None if traced else bound, column_sizes)


@custom_vjp(nondiff_argnums=(3, 4))
def _counted(y, probe, traced, bound, column_sizes):
    del probe, traced, bound, column_sizes
    return y


def _count_forward(y, probe, traced, bound, column_sizes):
    bound = traced[0] if traced else bound

    def inside(y):
        held = jnp.abs(y) < 0.999 * bound
        held &= tiling.over_batch(tiling.mask(column_sizes), y)
        return held.astype(jnp.complex64)

    examples = int(np.prod(y.shape[:-3], dtype=np.int64))
    count = examples * np.asarray(column_sizes, np.float32)
    count = jnp.broadcast_to(count, probe.shape[:-1])
    # The mask spans all columns, so `sum_of` must split an axis before the tiles.
    outputs = y if y.ndim > 3 else y[None]
    axes = (*range(-outputs.ndim, -3), -1)
    kept = jnp.real(reductions.sum_of(inside, outputs, axes=axes))
    none = jnp.zeros_like(count)
    sums = jnp.stack([none, none, none, none, count, kept], axis=-1)
    return y, ((PROBE_SCALE * sums).astype(probe.dtype), traced)


def _count_backward(bound, column_sizes, saved, d):
    sums, traced = saved
    return d, sums, jax.tree.map(jnp.zeros_like, traced)


_counted.defvjp(_count_forward, _count_backward)
