"""A convolution of clipped inputs that materialises no windows.

With one tile per group of channels, the crossbars compute XLA's own convolution of the
clipped input. This also holds behind a DAC, which converts a value alike in every
window. The window statistics for the range are exact nevertheless: the number of
windows that see an input follows from the geometry, and the gradients inside the
windows are computed tap by tap.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays.derivatives import custom_vjp, vary_alike
from hwtrain._arrays.tiling import over_batch
from hwtrain._arrays.window_tiles import Rows
from hwtrain._arrays.windows import Window, padded
from hwtrain.periphery._range_gradient import PROBE_SCALE, RangeGradient, clipped

# Above this number of taps, the program loops over them.
_UNROLLED = 32

Drive = Callable[..., jax.Array]
"""Maps clipped inputs, the range of each channel, and its own traced constants to the
values that drive the crossbars. It acts on each value alike, and is hashable."""


def ranged_convolution(
    x: jax.Array,
    kernel: jax.Array,
    input_range: jax.Array | None,
    probe: jax.Array | None,
    window: Window,
    gradient: RangeGradient = RangeGradient(),  # noqa: B008 an immutable value
    precision: Any = None,
    dtype: Any = None,
    drive: Drive | None = None,
    constants: tuple[jax.Array, ...] = (),
    rows: Rows | None = None,
) -> jax.Array:
    r"""Convolves an input clipped to the range of each group of channels.

    .. math:: y = \mathrm{clip}(x, -r, r) * W, \quad\text{or}\quad
        y = \mathrm{DAC}\big(\mathrm{clip}(x, -r, r) / r\big) * W

    The first equals `ranged_matmul` of every group's windows, including the gradients
    and the sums of the probe: a value in several windows counts as many times, and so
    does the zero padding of the input.

    >>> x = jnp.array([[1.0, 4.0, 2.0]])[..., None]
    >>> y = ranged_convolution(x, jnp.ones((2, 1, 1)), jnp.full((1, 1, 1), 3.0), None,
    ...                        Window.of((2,)))
    >>> print(y.ravel())
    [4. 5.]

    Args:
      x: `[batch, *spatial, channels]`, including its border.
      kernel: `[*taps, channels of a group, features]`.
      input_range: `[groups, 1, 1]`, in units of the input; `None` clips nothing.
      probe: `[groups, 1, 1, 6]`; `None` for plain JAX operations, which forward-mode
        differentiation needs, without statistics.
      window: the window, neither `flipped` nor `local`.
      gradient: options of the range's gradient.
      precision: precision of the multiplication, as in `jax.lax.conv_general_dilated`.
      dtype: dtype of the result; `None` for that of a plain convolution.
      drive: converts the clipped inputs, for an output in normalised units; `None` for
        the inputs themselves. The range it divides by is a constant to gradients.
      constants: further arguments of `drive`, which are differentiated.
      rows: the rows of its matrix that lie on the tile, which statistics count; the
        kernel has zeros for others. `None` for all.

    Returns:
      `[batch, *positions, features]`.
    """
    if input_range is None:
        return convolution(x, kernel, window, precision, dtype)
    options = (window, gradient, precision, dtype, drive, rows)
    if probe is None:
        return _clipped(x, kernel, input_range, constants, *options)
    return _ranged(x, kernel, input_range, probe, constants, *options)


def clipped_inputs(
    x: jax.Array,
    input_range: jax.Array,
    drive: Drive | None,
    constants: tuple[jax.Array, ...] = (),
    *,
    straight_through: bool = False,
) -> jax.Array:
    """Returns the input of the convolution, in the dtype of `x`.

    Args:
      x: `[batch, *spatial, channels]`.
      input_range: `[groups, 1, 1]`.
      drive: as in `ranged_convolution`.
      constants: as in `ranged_convolution`.
      straight_through: whether gradients pass through clipped inputs.
    """
    x = clipped(x, _of_channels(input_range, x), straight_through=straight_through)
    r = jax.lax.stop_gradient(_of_channels(input_range, x, jnp.float32))
    return x if drive is None else drive(x, r, *constants).astype(x.dtype)


def _clipped(
    x, kernel, input_range, constants, window, gradient, precision, dtype, drive, rows
):
    del rows
    through = gradient.straight_through
    inside = clipped_inputs(x, input_range, drive, constants, straight_through=through)
    return convolution(inside, kernel, window, precision, dtype)


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    window: Window,
    precision: Any = None,
    dtype: Any = None,
) -> jax.Array:
    """Returns XLA's convolution; arguments as in `ranged_convolution`."""
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


def _of_channels(statistic: jax.Array, x: jax.Array, dtype: Any = None) -> jax.Array:
    """Expands a statistic of groups to the channels of `x`, `[channels]`."""
    each = jnp.repeat(statistic.ravel(), x.shape[-1] // statistic.size)
    return each.astype(dtype or x.dtype)


@custom_vjp(nondiff_argnums=(5, 6, 7, 8, 9, 10))
def _ranged(x, kernel, input_range, probe, constants, *options):
    del probe
    return _clipped(x, kernel, input_range, constants, *options)


def _forward(x, kernel, input_range, probe, constants, *options):
    y = _ranged(x, kernel, input_range, probe, constants, *options)
    return y, (x, kernel, input_range, probe, constants)


def _backward(window, gradient, precision, dtype, drive, rows, residuals, d):
    x, kernel, input_range, probe, constants = residuals
    r = over_batch(_of_channels(input_range, x), x)
    inside, slope = jnp.clip(x, -r, r), jnp.ones((), jnp.float32)
    of_drive: Any = None
    if drive is not None:
        r32 = _of_channels(input_range, x, jnp.float32)
        inside, of_drive = jax.vjp(
            lambda x, *constants: drive(x, r32, *constants).astype(x.dtype),
            inside,
            *constants,
        )
        slope, *_ = of_drive(jnp.ones_like(inside))
    _, pull = jax.vjp(
        lambda x, kernel: convolution(x, kernel, window, precision, dtype),
        inside,
        kernel,
    )
    d_x, d_kernel = pull(d)
    d_constants = of_drive(d_x)[1:] if constants else ()
    d_x, slope = d_x * slope.astype(x.dtype), slope.astype(jnp.float32)
    if not gradient.straight_through:
        d_x = jnp.where(jnp.abs(x) <= r, d_x, 0)

    groups = input_range.shape[0]
    outward = (x >= r).astype(jnp.float32) - (x <= -r).astype(jnp.float32)
    widen = _widening(outward * slope, kernel, d, window, precision)
    d_range = gradient.scale * _sums(widen, groups).reshape(input_range.shape)
    if gradient.relative:
        d_range = d_range * input_range
    d_probe = PROBE_SCALE * _statistics(x, r, input_range, window, rows)
    d_range = d_range.astype(input_range.dtype)
    return d_x, d_kernel, d_range, d_probe.astype(probe.dtype), d_constants


_ranged.defvjp(_forward, _backward)


def _sums(values: jax.Array, groups: int) -> jax.Array:
    """Sums over all axes and the channels of each group, `[groups]`."""
    each = jnp.sum(values, axis=tuple(range(values.ndim - 1)))
    return each.reshape(groups, -1).sum(axis=-1)


def _statistics(x, r, input_range, window, rows) -> jax.Array:
    """Returns the sums of the probe over all elements of all windows."""
    times = over_batch(_times_seen(x.shape[1:], window, rows), x)
    groups = len(input_range)
    positions = math.prod(window.output_sizes(x.shape[1:-1]))
    width = window.taps * x.shape[-1] // groups if rows is None else rows.count
    count = jnp.full(groups, float(x.shape[0] * positions * width), jnp.float32)
    x32 = x.astype(jnp.float32)
    beyond = (x >= r) | (x <= -r)
    scale = input_range.ravel()
    kept = count - _sums(times * beyond.astype(jnp.float32), groups)
    total = _sums(times * x32, groups) / scale
    square = _sums(times * jnp.square(x32), groups) / jnp.square(scale)
    none = jnp.zeros_like(count)
    sums = jnp.stack([count, kept, total, square, none, none], axis=-1)
    return sums.reshape(*input_range.shape, -1)


def _times_seen(shape: tuple[int, ...], window: Window, rows: Rows | None) -> Any:
    """Returns the number of windows that see each input, `[*spatial, channels or 1]`.

    Args:
      shape: `[*spatial, channels]` of the input.
      window: the window.
      rows: the rows that count; `None` for all.
    """
    *spatial, channels = shape
    seen = np.ones((1, 1), np.float32)
    for axis, (size, (low, _), count) in enumerate(
        zip(spatial, window.pads(tuple(spatial)), window.output_sizes(tuple(spatial)))
    ):
        starts = np.arange(count) * window.strides[axis] - low
        taps = np.arange(window.sizes[axis]) * window.kernel_dilation[axis]
        dilation = window.input_dilation[axis]
        at = np.arange(size)[:, None, None] * dilation == starts[:, None] + taps
        of_axis = at.sum(1, dtype=np.float32)[:, None, :]
        seen = (seen[..., None, :, None] * of_axis).reshape(*seen.shape[:-1], size, -1)
    seen = seen[0]
    if rows is None:
        return jnp.asarray(seen.sum(-1, keepdims=True))
    # Few channels have a pattern of their own: the array of all is made where it is
    # read.
    mask = rows.mask(window.taps, channels)
    patterns, index = np.unique(mask, axis=1, return_inverse=True)
    each = [
        jnp.asarray(seen @ pattern.astype(np.float32))[..., None]
        for pattern in patterns.T
    ]
    times = each[0]
    for number, other in enumerate(each[1:], start=1):
        times = jnp.where(index.ravel() == number, other, times)
    return times


def _widening(outward, kernel, d, window, precision) -> jax.Array:
    """Returns the gradient of the ranges, `[batch, *positions, channels]` to be summed.

    Computed tap by tap, so that no window is materialised.

    Args:
      outward: `[batch, *spatial, channels]`, the slope of inputs beyond the range, with
        the sign of the input; zero within.
      kernel: as in `ranged_convolution`.
      d: gradient of the output.
      window: the window.
      precision: precision of the multiplication.
    """
    inside = padded(outward, window)
    if d.dtype != kernel.dtype:  # outputs were requested in a wider dtype
        d, kernel = d.astype(jnp.float32), kernel.astype(jnp.float32)
    spatial = range(1, d.ndim - 1)
    counts = d.shape[1:-1]
    extents = [(n - 1) * s + 1 for n, s in zip(counts, window.strides)]
    equation = "...f,cf->...c"
    kernel = kernel.reshape(window.taps, *kernel.shape[-2:])
    if window.groups > 1:  # XLA would transpose even for a group axis of size 1
        equation = "...gf,cgf->...gc"
        width = d.shape[-1] // window.groups
        d = d.reshape(*d.shape[:-1], window.groups, width)
        kernel = kernel.reshape(*kernel.shape[:-1], window.groups, -1)
    offsets = np.stack(np.unravel_index(np.arange(window.taps), window.sizes), -1)
    offsets = offsets * np.asarray(window.kernel_dilation)

    def add(total, tap):
        start, w = tap
        seen = jax.lax.dynamic_slice(
            inside, (0, *start, 0), (d.shape[0], *extents, inside.shape[-1])
        )
        for axis, stride in zip(spatial, window.strides):
            seen = jax.lax.slice_in_dim(seen, 0, None, stride, axis)
        here = jnp.einsum(equation, d, w, precision=precision)
        here = here.reshape(seen.shape).astype(jnp.float32)
        return total + jnp.minimum(here * seen, 0), None

    zeros = jnp.zeros((d.shape[0], *counts, inside.shape[-1]), jnp.float32)
    zeros, *_ = vary_alike(zeros, inside, d, kernel)
    taps = (jnp.asarray(offsets), kernel)
    total, _ = jax.lax.scan(add, zeros, taps, unroll=window.taps <= _UNROLLED or 1)
    return total
