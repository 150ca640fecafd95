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
import jax.numpy as jnp

from hwtrain.physics import convolution
from hwtrain.physics.converted_convolution import (
    converted_convolution,
    converts_alike,
)
from hwtrain.physics.ranged_convolution import ranged_convolution
from hwtrain.plan import AnalogWeight
from hwtrain.transforms.errors import other_geometry
from hwtrain.transforms.observation import observer
from hwtrain.transforms.read_keys import frozen_key, read_key
from hwtrain.transforms.redraw import kernel_draw, redrawn
from hwtrain.transforms.signal_side import analog_matmul, check_leaves, range_gradient


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
    if _converts_alike(weight, mode) and observer() is None:
        key = None
        if weight.hardware.reads(mode):  # groups draw at once
            key = read_key(weight, leaves["noise_key"].reshape(-1, 2)[0], x)
        whole = functools.partial(_convolve_whole, weight, mode, precision, dtype)
        if not weight.hardware.redraws(mode):
            return whole(leaves, x, kernel, key)
        draw = functools.partial(kernel_draw, layer)
        return redrawn(draw, whole, leaves, x, kernel, key)
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


def _converts_alike(weight: AnalogWeight, mode: str) -> bool:
    """Whether XLA's own convolution of converted inputs is what the crossbars do."""
    chip, window = weight.hardware, weight.window
    whole = window is not None and not window.flipped and not window.local
    per_input = chip.modifies_in_layer(mode) and not chip.redraws(mode)
    if not whole or weight.tiles != (1, 1) or per_input:
        return False
    if chip.converts:
        return converts_alike(chip.periphery)
    return not chip.scales_outputs


def _convolve_whole(
    weight: AnalogWeight,
    mode: str,
    precision: Any,
    dtype: Any,
    leaves: Mapping[str, jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """Convolves as `convolve` does, with one tile for each group of channels."""
    assert weight.window is not None
    chip, window, groups = weight.hardware, weight.window, weight.groups
    depth = len(weight.parallel)
    of_one = {
        name: jax.ShapeDtypeStruct(leaf.shape[depth:], leaf.dtype)
        for name, leaf in leaves.items()
    }
    check_leaves(weight, of_one)
    beside = {
        name: leaf.reshape(groups, *of_one[name].shape) for name, leaf in leaves.items()
    }
    options: dict[str, Any] = {
        "input_range": beside["input_range"] if weight.ranged else None,
        "probe": beside["probe"] if weight.ranged and mode != "eval" else None,
        "gradient": range_gradient(weight),
        "precision": precision,
        "dtype": dtype,
    }
    if not chip.converts:
        return ranged_convolution(x, kernel, window=window, **options)
    scale = beside.get("mapping_scale")
    if scale is None:
        layer = _of_one_layer(weight, kernel.ndim)
        scale = layer.derived_scale(layer.to_matrix(kernel))
    return converted_convolution(
        x,
        kernel,
        chip.periphery,
        window,
        scale=None if scale is None else scale.reshape(groups, 1, -1),
        output_scale=beside.get("output_scale"),
        key=key,
        chip_keys=frozen_key(beside["chip_key"]) if chip.freezes(mode) else None,
        strength=beside.get("noise_strength", jnp.ones(groups)).reshape(groups, 1, 1),
        **options,
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
