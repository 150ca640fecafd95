"""Describes convolutions for the plan, by the geometry of their windows."""

import dataclasses
from typing import Any

import numpy as np
from jax.core import Tracer

from hwtrain._arrays import windows
from hwtrain._arrays.windows import Window
from hwtrain._plan.layer import Layer, LayerWeight


def describe_conv(
    module: Any, padding: Any, channels: int, features: int, sizes: tuple[int, ...]
) -> Layer:
    """Returns the description of a convolution for the plan.

    Args:
      module: the layer, of either framework.
      padding: its padding in Flax's canonical form.
      channels: channels of the input.
      features: features of the output.
      sizes: taps along every spatial axis.
    """
    window = _window(module, padding, sizes)
    shape = (*sizes, channels // window.groups, features)
    return _layer(module, shape, _channels_first(sizes), window)


def describe_transpose(
    module: Any, padding: Any, channels: int, features: int, sizes: tuple[int, ...]
) -> Layer:
    """Returns the description of a transposed convolution, as `describe_conv`."""
    window = windows.transposed(
        sizes,
        strides=_each(module.strides, sizes),
        padding=padding if isinstance(padding, str) else tuple(padding),
        kernel_dilation=_each(module.kernel_dilation, sizes),
        flipped=module.transpose_kernel,
    )
    rows = _channels_first(sizes)
    shape = (*sizes, channels, features)
    if module.transpose_kernel:
        shape, rows = (*sizes, features, channels), (rows[0] + 1, *rows[1:])
    return _layer(module, shape, rows, window)


def describe_local(
    module: Any,
    padding: Any,
    channels: int,
    features: int,
    sizes: tuple[int, ...],
    spatial: tuple[int, ...],
) -> Layer:
    """Returns the description of a convolution without weight sharing, for the plan.

    Args:
      module: the layer.
      padding: its padding in Flax's canonical form.
      channels: channels of the input.
      features: features of the output.
      sizes: taps along every spatial axis.
      spatial: spatial sizes of the input.
    """
    window = dataclasses.replace(_window(module, padding, sizes), local=True)
    positions = window.output_sizes(spatial)
    shape = (*positions, window.taps * channels, features)
    return _layer(module, shape, (len(positions),), window)


def _window(module: Any, padding: Any, sizes: tuple[int, ...]) -> Window:
    dilation = _each(module.kernel_dilation, sizes)
    border, mode, padding = _border(sizes, dilation, padding)
    return Window(
        sizes=sizes,
        strides=_each(module.strides, sizes),
        padding=padding,
        input_dilation=_each(module.input_dilation, sizes),
        kernel_dilation=dilation,
        groups=module.feature_group_count,
        border=border,
        border_mode=mode,
    )


def _layer(
    module: Any,
    shape: tuple[int, ...],
    rows: tuple[int, ...],
    window: Window,
) -> Layer:
    known = [weight.window.mask for weight in getattr(module, "analog_weights", ())]
    if known:  # an NNX layer, whose mask may already be traced
        window = dataclasses.replace(window, mask=known[0])
    elif isinstance(module.mask, Tracer):
        return Layer(why="its mask is computed while tracing; make it with NumPy")
    elif module.mask is not None:
        mask = np.broadcast_to(np.asarray(module.mask), shape)
        if not np.isin(mask, (0, 1)).all():
            return Layer(why="its mask has other values than 0 and 1")
        window = dataclasses.replace(window, mask=windows.pack(mask))
    (columns,) = set(range(len(shape) - 2, len(shape))) - set(rows)
    array = LayerWeight(shape=shape, rows=rows, columns=(columns,), window=window)
    return Layer(weights=(array,))


def _each(value: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    value = 1 if value is None else value
    return (value,) * len(sizes) if isinstance(value, int) else tuple(value)


def _channels_first(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return (len(sizes), *range(len(sizes)))


def _border(
    sizes: tuple[int, ...], dilation: tuple[int, ...], padding: Any
) -> tuple[Any, Any, Any]:
    """Returns the border, its mode, and the padding after it."""
    spans = [(size - 1) * step + 1 for size, step in zip(sizes, dilation)]
    if padding in ("CIRCULAR", "REFLECT"):
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
        return tuple(((k - 1) // 2, k // 2) for k in spans), mode, "VALID"
    if padding == "CAUSAL":
        return tuple((k - 1, 0) for k in spans), "constant", "VALID"
    padding = padding if isinstance(padding, str) else tuple(padding)
    return (), "constant", padding
