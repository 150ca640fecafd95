"""A convolution of clipped inputs that materialises no windows.

With one tile per group of channels, the crossbars compute XLA's own convolution of the
clipped input. This also holds behind a DAC, which converts a value alike in every
window. The window statistics for the range are exact nevertheless: the number of
windows that see an input follows from the geometry, and the gradients inside the
windows are computed tap by tap.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._arrays.derivatives import custom_vjp
from hwtrain._arrays.tiling import over_batch
from hwtrain._arrays.window_tiles import Rows
from hwtrain._arrays.windows import Window
from hwtrain.periphery._range_gradient import PROBE_SCALE, RangeGradient, clipped
from hwtrain.periphery._window_gradients import (
    of_inputs,
    statistics,
    steps_everywhere,
    total,
    widening,
)

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


def _ranged(x, kernel, input_range, probe, constants, *options):
    fixed = jax.lax.stop_gradient((x, kernel, input_range, constants))
    # Outside of the custom rule, where a policy of `jax.checkpoint` sees the product.
    y = _clipped(*fixed, *options)
    return _with_gradient(y, x, kernel, input_range, probe, constants, *options)


@custom_vjp(nondiff_argnums=(6, 7, 8, 9, 10, 11))
def _with_gradient(y, x, kernel, input_range, probe, constants, *options):
    """Returns `y`, with the gradient of the arguments that it was computed from."""
    del x, kernel, input_range, probe, constants, options
    return y


def _forward(y, x, kernel, input_range, probe, constants, *options):
    y = _with_gradient(y, x, kernel, input_range, probe, constants, *options)
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
    slope32 = slope.astype(jnp.float32)
    outward = (x >= r).astype(jnp.float32) - (x <= -r).astype(jnp.float32)
    _, pull = jax.vjp(
        lambda x, kernel: convolution(x, kernel, window, precision, dtype),
        inside,
        kernel,
    )
    d_x, d_kernel = pull(d)
    if steps_everywhere(window):
        d_x, widen = of_inputs(outward * slope32, kernel, d, window, precision)
        d_x = d_x.astype(x.dtype)
    else:
        widen = total(widening(outward * slope32, kernel, d, window, precision))
    d_constants = of_drive(d_x)[1:] if constants else ()
    d_x = d_x * slope.astype(x.dtype)
    if not gradient.straight_through:
        d_x = jnp.where(jnp.abs(x) <= r, d_x, 0)

    d_range = widen.reshape(len(input_range), -1).sum(axis=-1)
    d_range = gradient.scale * d_range.reshape(input_range.shape)
    if gradient.relative:
        d_range = d_range * input_range
    d_probe = PROBE_SCALE * statistics(x, r, input_range, window, rows)
    d_range = d_range.astype(input_range.dtype)
    d_probe = d_probe.astype(probe.dtype)
    return jnp.zeros_like(d), d_x, d_kernel, d_range, d_probe, d_constants


_with_gradient.defvjp(_forward, _backward)
