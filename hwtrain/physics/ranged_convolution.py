"""A convolution of clipped inputs, when no converter stands before its crossbars.

With one tile for each group of channels, XLA's own convolution of the clipped input is
what the crossbars compute, and no window has to be written out. What a range must know
of the windows is exact all the same: how many windows see an input follows from the
geometry, and the gradients inside the windows are computed tap by tap.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain.physics.convolution import Window, padded
from hwtrain.physics.input_range import PROBE_SCALE, RangeGradient


def ranged_convolution(
    x: jax.Array,
    kernel: jax.Array,
    input_range: jax.Array | None,
    probe: jax.Array | None,
    window: Window,
    gradient: RangeGradient = RangeGradient(),  # noqa: B008 an immutable value
    precision: Any = None,
    dtype: Any = None,
) -> jax.Array:
    r"""Convolves an input that is clipped to the range of each group of channels.

    .. math:: y = \mathrm{clip}(x, -r, r) * W

    It equals `ranged_matmul` of every group's windows, with its gradients and the sums
    of the probe: a value that many windows see counts as many times, and so do the
    zeros around the input.

    >>> x = jnp.array([[1.0, 4.0, 2.0]])[..., None]
    >>> y = ranged_convolution(x, jnp.ones((2, 1, 1)), jnp.full((1, 1, 1), 3.0), None,
    ...                        Window.of((2,)))
    >>> print(y.ravel())
    [4. 5.]

    Args:
      x: `[batch, *spatial, channels]`, with its border.
      kernel: `[*taps, channels of a group, features]`.
      input_range: `[groups, 1, 1]`, in units of the input; `None` clips nothing.
      probe: `[groups, 1, 1, 6]`; `None` for plain JAX operations, which forward-mode
        differentiation needs, without statistics.
      window: the window, neither `flipped` nor `local`.
      gradient: how the range's gradient is taken.
      precision: of the multiplication, as in `jax.lax.conv_general_dilated`.
      dtype: dtype of the result; `None` for that of a plain convolution.

    Returns:
      `[batch, *positions, features]`.
    """
    if input_range is None:
        return _convolution(x, kernel, window, precision, dtype)
    if probe is None:
        return _clipped(x, kernel, input_range, window, precision, dtype)
    return _ranged(x, kernel, input_range, probe, window, gradient, precision, dtype)


def _clipped(x, kernel, input_range, window, precision, dtype):
    r = _of_channels(input_range, x)
    return _convolution(jnp.clip(x, -r, r), kernel, window, precision, dtype)


def _convolution(x, kernel, window, precision, dtype):
    rank = len(window.sizes)
    channels_last = (0, rank + 1, *range(1, rank + 1))
    numbers = jax.lax.ConvDimensionNumbers(
        channels_last, (rank + 1, rank, *range(rank)), channels_last
    )
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        window.input_dilation,
        window.kernel_dilation,
        numbers,
        feature_group_count=window.groups,
        precision=precision,
        preferred_element_type=dtype,
    )


def _of_channels(statistic: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a statistic of the groups for every channel, `[channels]`."""
    return jnp.repeat(statistic.ravel(), x.shape[-1] // statistic.size).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _ranged(x, kernel, input_range, probe, window, gradient, precision, dtype):
    del probe, gradient
    return _clipped(x, kernel, input_range, window, precision, dtype)


def _forward(x, kernel, input_range, probe, window, gradient, precision, dtype):
    y = _ranged(x, kernel, input_range, probe, window, gradient, precision, dtype)
    return y, (x, kernel, input_range, probe)


def _backward(window, gradient, precision, dtype, residuals, d):
    x, kernel, input_range, probe = residuals
    r = _of_channels(input_range, x)
    _, pull = jax.vjp(
        lambda x, kernel: _convolution(x, kernel, window, precision, dtype),
        jnp.clip(x, -r, r),
        kernel,
    )
    d_x, d_kernel = pull(d)
    if not gradient.straight_through:
        d_x = jnp.where(jnp.abs(x) <= r, d_x, 0)

    groups = input_range.shape[0]
    widen = _widening(x, r, kernel, d, window, precision)
    d_range = gradient.scale * _sums(widen, groups).reshape(input_range.shape)
    if gradient.relative:
        d_range = d_range * input_range
    d_probe = PROBE_SCALE * _statistics(x, r, input_range, window)
    return d_x, d_kernel, d_range.astype(input_range.dtype), d_probe.astype(probe.dtype)


_ranged.defvjp(_forward, _backward)


def _sums(values: jax.Array, groups: int) -> jax.Array:
    """Returns sums over all axes and the channels of each group, `[groups]`."""
    each = jnp.sum(values, axis=tuple(range(values.ndim - 1)))
    return each.reshape(groups, -1).sum(axis=-1)


def _statistics(x, r, input_range, window) -> jax.Array:
    """Returns the sums of the probe, over all elements of all windows."""
    times, groups = jnp.asarray(_times_seen(x.shape[1:-1], window)), len(input_range)
    positions = math.prod(window.output_sizes(x.shape[1:-1]))
    width = window.taps * x.shape[-1] // groups
    count = jnp.full(groups, float(x.shape[0] * positions * width), jnp.float32)
    x32 = x.astype(jnp.float32)
    clipped = (x >= r) | (x <= -r)
    scale = input_range.ravel()
    kept = count - _sums(times * clipped, groups)
    total = _sums(times * x32, groups) / scale
    square = _sums(times * jnp.square(x32), groups) / jnp.square(scale)
    none = jnp.zeros_like(count)
    sums = jnp.stack([count, kept, total, square, none, none], axis=-1)
    return sums.reshape(*input_range.shape, -1)


def _times_seen(spatial: tuple[int, ...], window: Window) -> np.ndarray:
    """Returns how many windows see each input, `[*spatial, 1]`."""
    seen = np.ones(1, np.float32)
    for axis, (size, (low, _), count) in enumerate(
        zip(spatial, window.pads(spatial), window.output_sizes(spatial))
    ):
        starts = np.arange(count) * window.strides[axis] - low
        taps = np.arange(window.sizes[axis]) * window.kernel_dilation[axis]
        at = (starts[:, None] + taps).ravel()
        held = (at >= 0) & (at < size * window.input_dilation[axis])
        held &= at % window.input_dilation[axis] == 0
        index = at[held] // window.input_dilation[axis]
        times = np.bincount(index, minlength=size).astype(np.float32)
        seen = seen[..., None] * times if axis else times
    return seen[..., None]


def _widening(x, r, kernel, d, window, precision) -> jax.Array:
    """Returns the gradient of the ranges, `[batch, *positions, channels]` to be summed.

    One tap after the other, so that no window is written out.
    """
    inside = padded(x, window)
    spatial = range(1, x.ndim - 1)
    counts = d.shape[1:-1]
    extents = [(n - 1) * s + 1 for n, s in zip(counts, window.strides)]
    d = d.reshape(*d.shape[:-1], window.groups, -1)
    kernel = kernel.reshape(window.taps, kernel.shape[-2], window.groups, -1)
    offsets = np.stack(np.unravel_index(np.arange(window.taps), window.sizes), -1)
    offsets = offsets * np.asarray(window.kernel_dilation)

    def add(total, tap):
        start, w = tap
        seen = jax.lax.dynamic_slice(
            inside,
            (0, *start, 0),
            (x.shape[0], *extents, x.shape[-1]),
        )
        for axis, stride in zip(spatial, window.strides):
            seen = jax.lax.slice_in_dim(seen, 0, None, stride, axis)
        here = jnp.einsum("...gf,cgf->...gc", d, w, precision=precision)
        here = here.reshape(seen.shape).astype(jnp.float32)
        wider = jnp.where(seen >= r, jnp.minimum(here, 0), 0)
        return total + wider - jnp.where(seen <= -r, jnp.maximum(here, 0), 0), None

    zeros = jnp.zeros((x.shape[0], *counts, x.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add, zeros, (jnp.asarray(offsets), kernel))
    return total
