"""Analog convolutions: what the layers of both frameworks share.

The crossbars get the windows of the input, one after the other, as vectors. Groups of
channels lie on crossbars of their own, as do the positions of a convolution that shares
no weights; these are a batched axis.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from hwtrain.physics import convolution
from hwtrain.physics.convolution import Window
from hwtrain.physics.ranged_convolution import ranged_convolution
from hwtrain.plan import AnalogWeight
from hwtrain.transforms.errors import other_geometry
from hwtrain.transforms.layer import Layer, LayerWeight
from hwtrain.transforms.observation import observer
from hwtrain.transforms.redraw import kernel_draw, redrawn
from hwtrain.transforms.signal_side import analog_matmul, check_leaves, range_gradient


def describe_conv(
    module: Any, padding: Any, channels: int, features: int, sizes: tuple[int, ...]
) -> Layer:
    """Returns what the plan must know of a convolution.

    Args:
      module: the layer, of either framework.
      padding: its padding, as Flax makes it canonical.
      channels: of the input.
      features: of the output.
      sizes: taps along every spatial axis.
    """
    window = _window(module, padding, sizes)
    shape = (*sizes, channels // window.groups, features)
    return _layer("conv", module, shape, _channels_first(sizes), window)


def describe_transpose(
    module: Any, padding: Any, channels: int, features: int, sizes: tuple[int, ...]
) -> Layer:
    """Returns what the plan must know of a transposed convolution, as above."""
    window = convolution.transposed(
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
    return _layer("conv_transpose", module, shape, rows, window)


def describe_local(
    module: Any,
    padding: Any,
    channels: int,
    features: int,
    sizes: tuple[int, ...],
    spatial: tuple[int, ...],
) -> Layer:
    """Returns what the plan must know of a convolution that shares no weights.

    Args:
      module: the layer.
      padding: its padding, as Flax makes it canonical.
      channels: of the input.
      features: of the output.
      sizes: taps along every spatial axis.
      spatial: spatial sizes of the input.
    """
    window = dataclasses.replace(_window(module, padding, sizes), local=True)
    positions = window.output_sizes(spatial)
    shape = (*positions, window.taps * channels, features)
    return _layer("conv_local", module, shape, (len(positions),), window)


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
    kind: str,
    module: Any,
    shape: tuple[int, ...],
    rows: tuple[int, ...],
    window: Window,
) -> Layer:
    known = [weight.window.mask for weight in getattr(module, "analog_weights", ())]
    if known:  # an NNX layer, whose mask may be traced by now
        window = dataclasses.replace(window, mask=known[0])
    elif isinstance(module.mask, Tracer):
        return Layer(why="its mask is computed while tracing; make it with NumPy")
    elif module.mask is not None:
        mask = np.broadcast_to(np.asarray(module.mask), shape)
        if not np.isin(mask, (0, 1)).all():
            return Layer(why="its mask has other values than 0 and 1")
        window = dataclasses.replace(window, mask=convolution.pack(mask))
    (columns,) = set(range(len(shape) - 2, len(shape))) - set(rows)
    array = LayerWeight(shape=shape, rows=rows, columns=(columns,), window=window)
    return Layer(kind=kind, weights=(array,))


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


def analog_conv(
    weight: AnalogWeight, mode: str, leaves: Mapping[str, jax.Array]
) -> Callable[..., jax.Array]:
    """Returns a stand-in for the `conv_general_dilated` of a layer.

    Args:
      weight: the plan of the kernel.
      mode: the mode.
      leaves: what is beside the kernel in this step, as for `convolve`.
    """

    def conv(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        precision=None,
        out_sharding=None,
        preferred_element_type=None,
    ):
        del dimension_numbers  # those of Flax, channels last
        planned: Any = weight.window
        padding = padding if isinstance(padding, str) else tuple(padding)
        called = dataclasses.replace(
            planned,
            strides=tuple(strides),
            padding=padding,
            input_dilation=tuple(lhs_dilation),
            kernel_dilation=tuple(rhs_dilation),
            groups=feature_group_count,
        )
        if called != planned:
            raise other_geometry(weight, f"has the window {planned}", str(called))
        y = convolve(weight, mode, leaves, x, kernel, precision, preferred_element_type)
        return y if out_sharding is None else jax.reshard(y, out_sharding)

    return conv


def call_without_socket(
    weight: AnalogWeight,
    mode: str,
    leaves: Mapping[str, jax.Array],
    inputs: jax.Array,
    promote: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array | None]],
    *,
    precision: Any = None,
    dtype: Any = None,
) -> jax.Array:
    """Returns what a layer does whose convolution cannot be replaced.

    Args:
      weight: the plan of the kernel.
      mode: the mode.
      leaves: what is beside the kernel in this step, as for `convolve`.
      inputs: `[*batch, *spatial, channels]`.
      promote: returns the inputs, the kernel and the bias in the layer's dtype.
      precision: of the multiplication.
      dtype: of the result; `None` for that of a plain multiplication.

    Returns:
      `[*batch, *positions, features]`.
    """
    assert weight.window is not None
    batch = inputs.shape[: inputs.ndim - len(weight.window.sizes) - 1]
    x = inputs.reshape(math.prod(batch), *inputs.shape[len(batch) :])
    x, kernel, bias = promote(x)
    x = convolution.extend(x, weight.window)
    y = convolve(weight, mode, leaves, x, kernel, precision, dtype)
    y = y if bias is None else y + bias
    return y.reshape(*batch, *y.shape[1:])


def convolve(
    weight: AnalogWeight,
    mode: str,
    leaves: Mapping[str, jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    precision: Any = None,
    dtype: Any = None,
) -> jax.Array:
    """Convolves as the crossbars of a layer do.

    Args:
      weight: the plan of the kernel.
      mode: the mode.
      leaves: what is beside the kernel in this step, as for `analog_matmul`; the axes
        of `weight.parallel` lead.
      x: `[batch, *spatial, channels]`, with its border.
      kernel: as the layer sees it, without a stack around.
      precision: of the multiplication.
      dtype: of the result; `None` for that of a plain multiplication.

    Returns:
      `[batch, *positions, features]`.
    """
    assert weight.window is not None
    layer = _of_one_layer(weight, kernel.ndim)
    if _is_plain(weight, mode) and observer() is None:

        def plain(leaves, x, kernel, key=None):
            return _clip_and_convolve(weight, mode, leaves, x, kernel, precision, dtype)

        if not weight.hardware.redraws(mode):
            return plain(leaves, x, kernel)
        draw = functools.partial(kernel_draw, layer)
        return redrawn(draw, plain, leaves, x, kernel, None)
    seen = convolution.patches(x, weight.window)
    matrix = layer.to_matrix(kernel)
    options = {} if dtype is None else {"preferred_element_type": dtype}

    def matmul(leaves, x, w):
        def dot(a, b, numbers):
            return jax.lax.dot_general(a, b, numbers, precision=precision, **options)

        return analog_matmul(weight, mode, leaves, x, w, dot, dtype)

    if not weight.parallel:
        return matmul(leaves, seen, matrix)
    shape, depth = seen.shape[:-1], len(weight.parallel)
    count, rows = math.prod(weight.parallel), matrix.shape[-2]
    flat = {k: v.reshape(count, *v.shape[depth:]) for k, v in leaves.items()}
    beside = jax.vmap(matmul, in_axes=(0, -2, 0), out_axes=-2)
    y = beside(
        flat,
        seen.reshape(shape[0], -1, count, rows),
        matrix.reshape(count, *matrix.shape[depth:]),
    )
    return y.reshape(*shape, -1)


def _is_plain(weight: AnalogWeight, mode: str) -> bool:
    """Whether XLA's own convolution of clipped inputs is what the crossbars do."""
    chip, window = weight.hardware, weight.window
    per_input = chip.modifies_in_layer(mode) and not chip.redraws(mode)
    acts = chip.converts or per_input or chip.scales_outputs
    whole = window is not None and not window.flipped and not window.local
    return whole and not acts and (not weight.ranged or weight.tiles == (1, 1))


def _clip_and_convolve(
    weight: AnalogWeight,
    mode: str,
    leaves: Mapping[str, jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    precision: Any,
    dtype: Any,
) -> jax.Array:
    assert weight.window is not None
    depth = len(weight.parallel)
    of_one = {
        name: jax.ShapeDtypeStruct(leaf.shape[depth:], leaf.dtype)
        for name, leaf in leaves.items()
    }
    check_leaves(weight, of_one)
    if not weight.ranged:
        return ranged_convolution(
            x, kernel, None, None, weight.window, precision=precision, dtype=dtype
        )
    groups = (weight.groups, 1, 1)
    probe = leaves["probe"].reshape(*groups, -1) if mode != "eval" else None
    return ranged_convolution(
        x,
        kernel,
        leaves["input_range"].reshape(groups),
        probe,
        weight.window,
        range_gradient(weight),
        precision,
        dtype,
    )


def _of_one_layer(weight: AnalogWeight, rank: int) -> AnalogWeight:
    """Returns the plan of the kernel that one layer of a stack sees."""
    outside = len(weight.shape) - rank
    return dataclasses.replace(
        weight,
        shape=weight.shape[outside:],
        rows=tuple(axis - outside for axis in weight.rows),
        columns=tuple(axis - outside for axis in weight.columns),
    )
