"""Analog convolutions, shared by the layers of both frameworks.

The crossbars get the windows of the input one after the other, as vectors. Each group
of channels has its own crossbars, and so has each position of a convolution without
weight sharing; these are a batched axis.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._arrays import windows
from hwtrain._arrays.tiling import over_batch
from hwtrain._flax.effective import as_stored, held, of_step, on_levels
from hwtrain._flax.errors import other_geometry
from hwtrain._flax.loops import shared
from hwtrain._flax.observation import observer
from hwtrain._flax.read_keys import frozen_key
from hwtrain._flax.redraw import kernel_draw, redrawn
from hwtrain._flax.signal_side import (
    Product,
    analog_matmul,
    anonymous,
    check_leaves,
    check_real,
    constant_scale,
    reads_of,
    stages_of,
)
from hwtrain._parts.constant import CONSTANTS
from hwtrain._plan.constants import filled_weight
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery._ranges_of_windows import convolution
from hwtrain.periphery._read_keys import CHIP_KEY, NOISE_STRENGTH
from hwtrain.periphery._whole_convolution import (
    clipped_convolution,
    converted_convolution,
    runs_whole,
)
from hwtrain.periphery.input_range import PROBE, RANGE
from hwtrain.weights.mapping import MAPPING_SCALE, OUTPUT_SCALE

_MOST_TILES = 16
"""Above this number of tiles of a layer, their convolutions would compile for long."""


def analog_conv(
    weight: AnalogWeight, mode: str, leaves: Mapping[str, jax.Array]
) -> Callable[..., jax.Array]:
    """Returns a stand-in for the `conv_general_dilated` of a layer.

    Args:
      weight: the plan of the kernel.
      mode: the mode.
      leaves: the leaves beside the kernel in this step, as for `convolve`.
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
        del dimension_numbers  # always Flax's, channels last
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
    """Computes the call of a layer whose convolution function cannot be replaced.

    Args:
      weight: the plan of the kernel.
      mode: the mode.
      leaves: the leaves beside the kernel in this step, as for `convolve`.
      inputs: `[*batch, *spatial, channels]`.
      promote: returns the inputs, the kernel and the bias in the layer's dtype.
      precision: precision of the multiplication.
      dtype: dtype of the result; `None` for that of a plain multiplication.

    Returns:
      `[*batch, *positions, features]`.
    """
    assert weight.window is not None
    batch = inputs.shape[: inputs.ndim - len(weight.window.sizes) - 1]
    x = inputs.reshape(math.prod(batch), *inputs.shape[len(batch) :])
    x, kernel, bias = promote(x)
    x = windows.extend(x, weight.window)
    y = convolve(weight, mode, leaves, x, kernel, precision, dtype)
    y = y if bias is None else y + over_batch(bias, y)
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
      leaves: the leaves beside the kernel in this step, as for `analog_matmul`, with
        leading axes `weight.parallel`.
      x: `[batch, *spatial, channels]`, including its border.
      kernel: the layer's kernel, without a stack.
      precision: precision of the multiplication.
      dtype: dtype of the result; `None` for that of a plain multiplication.

    Returns:
      `[batch, *positions, features]`.
    """
    check_real(weight, x)
    leaves, kernel = held(weight, mode, leaves, kernel)
    layer = _of_one_layer(weight, kernel.ndim)
    if weight.derived:
        leaves, kernel = of_step(layer, mode, leaves, kernel)
        # Zeroes the draws of weights that a mask leaves out.
        kernel = layer.from_matrix(layer.to_matrix(kernel))
    if mode == "chip" and weight.hardware.rounds_chips:
        weight = on_levels(weight)  # the weights were rounded before
    weight = as_stored(weight)
    assert weight.window is not None
    if _runs_whole(weight, mode, kernel) and observer() is None:
        _check_leaves_of_groups(weight, leaves)
        beside, keys = reads_of(weight, mode, leaves)
        if keys is not None:  # all groups share one draw
            keys = keys.reshape(-1, keys.shape[-1])[0]
        with shared():
            return _convolve_whole(
                anonymous(weight), mode, precision, dtype, beside, x, kernel, keys
            )
    seen = windows.patches(x, weight.window)
    matrix = layer.to_matrix(kernel)
    options: dict[str, Any] = {"precision": precision}
    if dtype is not None:
        options["preferred_element_type"] = dtype
    product = Product(options=tuple(options.items()))

    def matmul(leaves, x, w):
        return analog_matmul(weight, mode, leaves, x, w, product, dtype)

    if not weight.parallel:
        return matmul(leaves, seen, matrix)
    shape, depth = seen.shape[:-1], len(weight.parallel)
    count, rows = math.prod(weight.parallel), matrix.shape[-2]
    positions = 1 if weight.window.local else math.prod(shape[1:])
    flat = {k: v.reshape(count, *v.shape[depth:]) for k, v in leaves.items()}
    beside = jax.vmap(matmul, in_axes=(0, -2, 0), out_axes=-2)
    y = beside(
        flat,
        seen.reshape(shape[0], positions, count, rows),
        matrix.reshape(count, *matrix.shape[depth:]),
    )
    return y.reshape(*shape, weight.groups * y.shape[-1])


def _runs_whole(weight: AnalogWeight, mode: str, kernel: jax.Array) -> bool:
    """Whether XLA's own convolution of converted inputs does what the crossbars do."""
    chip, window = weight.hardware, weight.window
    if weight.tiles != (1, 1) and any(jax.typeof(kernel).sharding.spec):
        # On an explicit mesh, a convolution takes no part of a sharded kernel.
        return False
    whole = window is not None and not window.flipped and not window.local
    per_input = chip.modifies_in_layer(mode) and not chip.redraws(mode)
    if not whole or per_input:
        return False
    if weight.tiles != (1, 1) and (weight.groups > 1 or not _apart(weight)):
        return False
    if chip.converts:
        # Leaves that do not belong to tiles have no axis for groups.
        shapes = [shape for x in weight.own_leaves for shape in x.shapes(weight)]
        of_tiles = all(shape[:2] == weight.tiles for shape in shapes)
        return of_tiles and runs_whole(stages_of(weight))
    return not chip.scales_outputs and chip.range.runs_whole()


def _apart(weight: AnalogWeight) -> bool:
    """Whether to convolve on each tile, instead of multiplying windows on all."""
    assert weight.window is not None
    return weight.window.taps > 1 and math.prod(weight.tiles) <= _MOST_TILES


def _check_leaves_of_groups(
    weight: AnalogWeight, leaves: Mapping[str, jax.Array]
) -> None:
    """Raises unless the leaves beside a kernel have the shapes for each group."""
    depth = len(weight.parallel)
    of_one = {
        name: jax.ShapeDtypeStruct(leaf.shape[depth:], leaf.dtype)
        for name, leaf in leaves.items()
    }
    check_leaves(weight, of_one)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _convolve_whole(
    weight: AnalogWeight,
    mode: str,
    precision: Any,
    dtype: Any,
    leaves: Mapping[str, jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    keys: jax.Array | None,
) -> jax.Array:
    """Convolves as `convolve` does, without its windows.

    Compiled, so that equal layers of a program are traced and lowered once.
    """
    whole = functools.partial(_product, weight, mode, precision, dtype)
    if not weight.hardware.redraws(mode):
        return whole(leaves, x, kernel, keys)
    draw = functools.partial(kernel_draw, _of_one_layer(weight, kernel.ndim))
    return redrawn(draw, whole, leaves, x, kernel, keys)


def _product(
    weight: AnalogWeight,
    mode: str,
    precision: Any,
    dtype: Any,
    leaves: Mapping[str, jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    keys: jax.Array | None,
) -> jax.Array:
    groups, depth = weight.groups, len(weight.parallel)
    assert weight.window is not None
    window = dataclasses.replace(weight.window, border=())  # the inputs have theirs
    constants = leaves.get(CONSTANTS.name)
    if constants is not None:  # the same for all groups
        weight = filled_weight(weight, constants.reshape(-1, constants.shape[-1])[0])
    chip = weight.hardware

    def of_groups(name: str) -> jax.Array:
        return leaves[name].reshape(groups, *leaves[name].shape[depth:])

    options: dict[str, Any] = {"precision": precision, "dtype": dtype}
    if not chip.converts and not weight.ranged:
        return convolution(x, kernel, window, **options)
    options |= {
        "input_range": of_groups(RANGE.name) if weight.ranged else None,
        "probe": of_groups(PROBE.name) if weight.ranged and mode != "eval" else None,
        "row_sizes": weight.row_sizes,
        "column_sizes": weight.column_sizes,
    }
    if not chip.converts:
        gradient = chip.range.gradient
        return clipped_convolution(x, kernel, window, gradient=gradient, **options)
    if MAPPING_SCALE.name in leaves:
        scale: Any = of_groups(MAPPING_SCALE.name)
    else:
        layer = _of_one_layer(weight, kernel.ndim)
        scale = layer.derived_scale(layer.to_matrix(kernel))
        if scale is not None:
            scale = scale.reshape(groups, *scale.shape[-2:])
    if scale is not None:
        scale = constant_scale(mode, leaves, scale)
    strength: Any = jnp.ones(groups)
    if NOISE_STRENGTH.name in leaves:
        strength = of_groups(NOISE_STRENGTH.name)
    return converted_convolution(
        x,
        kernel,
        stages_of(weight),
        window,
        scale=scale,
        output_scale=of_groups(OUTPUT_SCALE.name) if chip.scales_outputs else None,
        leaves={x.name: of_groups(x.name) for x in weight.own_leaves},
        keys=keys,
        chip_keys=frozen_key(of_groups(CHIP_KEY.name)) if chip.freezes(mode) else None,
        strength=strength.reshape(groups, 1, 1),
        **options,
    )


def _of_one_layer(weight: AnalogWeight, rank: int) -> AnalogWeight:
    """Returns the plan of one layer's kernel in a stack."""
    outside = len(weight.shape) - rank
    return dataclasses.replace(
        weight,
        shape=weight.shape[outside:],
        rows=tuple(axis - outside for axis in weight.rows),
        columns=tuple(axis - outside for axis in weight.columns),
    )
