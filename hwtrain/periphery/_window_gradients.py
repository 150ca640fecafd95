"""Gradients of all windows of a convolution, and statistics, without writing them out.

The number of windows that see an input follows from the geometry, and the gradients
inside the windows are computed tap by tap.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays.derivatives import vary_alike
from hwtrain._arrays.reductions import sum_of
from hwtrain._arrays.tiling import over_batch
from hwtrain._arrays.window_tiles import Rows
from hwtrain._arrays.windows import Window, padded

# Above this number of taps, the program loops over them.
_UNROLLED = 32


def statistics(x, r, input_range, window, rows) -> jax.Array:
    """Returns the sums of the probe over all elements of all windows.

    Args:
      x: `[batch, *spatial, channels]`, before clipping.
      r: the range, broadcastable against the inputs.
      input_range: `[groups, 1, 1]`.
      window: the window.
      rows: the rows of a tile; `None` for all.
    """
    times = over_batch(_times_seen(x.shape[1:], window, rows), x)
    groups = len(input_range)
    positions = math.prod(window.output_sizes(x.shape[1:-1]))
    width = window.taps * x.shape[-1] // groups if rows is None else rows.size
    count = jnp.full(groups, float(x.shape[0] * positions * width), jnp.float32)
    x32, scale = x.astype(jnp.float32), input_range.ravel()
    axes = tuple(range(-x.ndim, -1))

    def value_and_square(times, x):
        return jax.lax.complex(times * x, times * jnp.square(x))

    def clipped(times, x, r):
        beyond = (jnp.abs(x) >= r).astype(jnp.float32)
        return (times * beyond).astype(jnp.complex64)

    def of_groups(function, *arrays):
        # The times of a batch of one repeat along the first axis.
        sums = sum_of(functools.partial(function, times), *arrays, axes=axes)
        return sums.reshape(groups, -1).sum(axis=-1)

    moments = of_groups(value_and_square, x32)
    kept = count - jnp.real(of_groups(lambda t, x: clipped(t, x, r), x))
    total = jnp.real(moments) / scale
    square = jnp.imag(moments) / jnp.square(scale)
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
        of_axis = np.zeros((size, 1, window.sizes[axis]), np.float32)
        for tap in range(window.sizes[axis]):
            at = starts + tap * window.kernel_dilation[axis]
            inputs, between = np.divmod(at, window.input_dilation[axis])
            inside = (between == 0) & (inputs >= 0) & (inputs < size)
            of_axis[:, 0, tap] = np.bincount(inputs[inside], minlength=size)
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


def steps_everywhere(window: Window) -> bool:
    """Whether `of_inputs` serves: a window of few taps that stops everywhere."""
    return max(window.strides) == 1 and window.taps <= _UNROLLED


def of_inputs(
    outward: jax.Array, kernel: jax.Array, d: jax.Array, window: Window, precision: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of inputs and of ranges, from one product.

    The product is the gradient of all windows, `taps` times as large as the input. It
    is made for an eighth of the batch at a time, which stays in the cache: a new array
    costs more time than the product.

    Args:
      outward: `[batch, *spatial, channels]`, as in `widening`.
      kernel: `[*taps, channels of a group, features]`.
      d: gradient of the output.
      window: the window, for which `steps_everywhere` holds.
      precision: precision of the multiplication.

    Returns:
      `[batch, *spatial, channels]` and `[channels]`, float32.
    """
    spatial, batch = outward.shape[1:-1], len(outward)
    arrays, parts = (outward, d), 1
    if not any(jax.typeof(array).sharding.spec[0] for array in arrays):
        # Parts must stay within the part of one device.
        shares = jax.device_count()
        parts = next((n for n in range(8, 1, -1) if batch % (n * shares) == 0), 1)
    arrays = [a.reshape(batch // parts, parts, *a.shape[1:]) for a in arrays]

    def of_part(index):
        part = [jax.lax.dynamic_index_in_dim(a, index, 1, False) for a in arrays]
        each = _of_taps(part[1], kernel, spatial, window, precision)
        widen = added([jnp.minimum(d_seen * part[0], 0) for d_seen in each])
        return added(each), total(widen)

    if parts == 1:
        return of_part(0)
    d_x, widen = jax.lax.map(of_part, jnp.arange(parts))
    d_x = jnp.moveaxis(d_x, 0, 1)
    return d_x.reshape(batch, *d_x.shape[2:]), jnp.sum(widen, axis=0)


def added(arrays: list[jax.Array]) -> jax.Array:
    """Returns the sum of arrays."""
    return functools.reduce(jnp.add, arrays)


def total(widen: jax.Array) -> jax.Array:
    """Sums numbers that are not positive over all axes but the last.

    They are stored before: XLA's CPU backend extends a reduction backwards, and would
    store its inputs, which are more. It stops at a selection.
    """
    return jnp.sum(jnp.where(widen < 0, widen, 0), axis=tuple(range(widen.ndim - 1)))


def _of_taps(
    d: jax.Array,
    kernel: jax.Array,
    spatial: tuple[int, ...],
    window: Window,
    precision: Any,
) -> list[jax.Array]:
    """Returns the gradient of inputs by the tap that sees them, one array per tap.

    Each is `[batch, *spatial, channels]`, float32; their sum is the gradient of the
    input. They are parts of one product, which a consumer reads as it needs them.

    Args:
      d: `[batch, *positions, features]`, the gradient of the output.
      kernel: `[*taps, channels of a group, features]`.
      spatial: spatial sizes of the input.
      window: the window, for which `steps_everywhere` holds.
      precision: precision of the multiplication.
    """
    d, kernel = d.astype(jnp.float32), kernel.astype(jnp.float32)
    # The positions of all windows that see an input, with zeros where there are none.
    config, sizes = [], []
    for size, dilation, span, (low, _), count in zip(
        spatial, window.input_dilation, window.spans, window.pads(spatial), d.shape[1:]
    ):
        sizes.append((size - 1) * dilation + 1)
        config.append((span - 1 - low, sizes[-1] - 1 + low - (count - 1), 0))
    d = jax.lax.pad(d, jnp.float32(0), ((0, 0, 0), *config, (0, 0, 0)))
    groups, channels = window.groups, kernel.shape[-2]
    kernel = kernel.reshape(window.taps, *kernel.shape[-2:])
    if groups == 1:
        each = jnp.einsum("...f,tcf->...tc", d, kernel, precision=precision)
        each = [each[..., tap, :] for tap in range(window.taps)]
    elif channels == 1 and kernel.shape[-1] == groups:
        each = [d * over_batch(w[0], d) for w in kernel]  # of one row and column
    else:
        d = d.reshape(*d.shape[:-1], groups, d.shape[-1] // groups)
        kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
        each = [
            jnp.einsum("...gf,cgf->...gc", d, w, precision=precision) for w in kernel
        ]
        each = [jax.lax.collapse(h, h.ndim - 2) for h in each]

    def seen(h, tap):
        for axis, (at, step, span, size) in enumerate(
            zip(tap, window.kernel_dilation, window.spans, sizes), start=1
        ):
            start = span - 1 - at * step
            stride = window.input_dilation[axis - 1]
            h = jax.lax.slice_in_dim(h, start, start + size, stride, axis)
        return h

    return [seen(h, tap) for h, tap in zip(each, np.ndindex(*window.sizes))]


def widening(outward, kernel, d, window, precision) -> jax.Array:
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
