"""The signal side: effects between a layer's input and its matrix multiplication.

These parts are shared by Linen and NNX; each framework finds the leaves its own way.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hwtrain._arrays import statistics, tiling
from hwtrain._arrays.random import fold_in
from hwtrain._errors import InputError
from hwtrain._flax.effective import HELD, as_stored, held, of_step, on_levels
from hwtrain._flax.errors import missing_leaf, other_geometry
from hwtrain._flax.example_weights import per_example
from hwtrain._flax.leaf_shapes import check_stages
from hwtrain._flax.loops import shared
from hwtrain._flax.observation import Multiplication, observer
from hwtrain._flax.read_keys import (
    at_rows,
    frozen_key,
    keys_here,
    step_keys,
    weight_key,
)
from hwtrain._flax.redraw import drawn, redrawn, step_draw
from hwtrain._parts.constant import CONSTANTS
from hwtrain._parts.leaf import LeafSpec
from hwtrain._plan.constants import filled_weight
from hwtrain._plan.weight import AnalogWeight, acts_in_product
from hwtrain.periphery import analog_mvm
from hwtrain.periphery._range_gradient import ranged_matmul
from hwtrain.periphery._read_keys import (
    CHIP_KEY,
    NOISE_KEY,
    NOISE_STRENGTH,
    WEIGHT_KEY,
)
from hwtrain.periphery.input_range import PROBE, RANGE
from hwtrain.periphery.weight_noise import WeightNoise, output_deviation
from hwtrain.weights.mapping import MAPPING_SCALE, OUTPUT_SCALE
from hwtrain.weights.modifier import ON_LEVELS


def names_beside(weight: AnalogWeight) -> dict[str, str]:
    """Returns the stored names of the leaves that may lie beside an array in a call."""
    seen = (*weight.leaves(), *weight.leaves("step"))
    named = {leaf.name: weight.leaf_name(leaf) for leaf in seen}
    if weight.derived:
        named[HELD] = weight.effective_path.rpartition("/")[2]
        named[ON_LEVELS.name] = weight.leaf_name(ON_LEVELS)
    return named


def initial_leaves(weight: AnalogWeight, kernel: jax.Array) -> dict[str, jax.Array]:
    """Returns the leaves that a layer needs beside its kernel, with initial values.

    Args:
      weight: the plan of the kernel.
      kernel: the nominal kernel, as stored.
    """
    found = {leaf.name: leaf.value(weight, kernel) for leaf in weight.leaves()}
    if weight.own_leaves:
        check_stages(weight)
    return found


def check_real(weight: AnalogWeight, x: jax.Array) -> None:
    """Raises for complex inputs of a layer whose hardware acts on them."""
    if jnp.iscomplexobj(x) and acts_in_product(weight):
        raise InputError(
            f"{weight.path}: its inputs are {x.dtype}, and its hardware "
            f"({weight.rule}) converts only real inputs. Call it with their real and "
            f"imaginary parts, or keep it digital: Rule({weight.layer_path!r}, None) "
            "before the others"
        )


def has_signal_side(weight: AnalogWeight) -> bool:
    """Whether hardware effects surround or change the layer's multiplication."""
    return acts_in_product(weight) or bool(weight.derived) or observer() is not None


def multiply(call: Multiplication) -> jax.Array:
    """Performs a multiplication that was passed to an observer."""
    return analog_matmul(*call)


def analog_dot_general(
    weight: AnalogWeight,
    mode: str,
    leaves: Mapping[str, jax.Array],
    dot_general: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
    """Returns a stand-in for the `dot_general` of a layer.

    Args:
      weight: the plan of the kernel.
      mode: the mode; `"eval"` uses plain JAX operations throughout.
      leaves: the leaves beside the kernel in this step, as for `analog_matmul`, with
        leading batch axes of the multiplication.
      dot_general: the layer's original function.
    """

    def multiply(x, w, dimension_numbers, **options):
        (summed, rows), (batch, stack) = dimension_numbers
        outside = len(weight.shape) - w.ndim  # a scan or vmap around the layer
        planned = tuple(axis - outside for axis in weight.rows)
        columns = [axis - outside for axis in weight.columns]
        if tuple(rows) != planned or tuple(stack) != tuple(range(len(stack))):
            raise other_geometry(
                weight,
                f"sums over the axes {planned} of its kernel",
                f"dimension_numbers={dimension_numbers}",
            )
        free = [axis for axis in range(x.ndim) if axis not in (*summed, *batch)]
        x = jnp.transpose(x, (*batch, *free, *summed))
        x = tiling.merged(x, x.ndim - len(summed), x.ndim)
        sizes = [w.shape[axis] for axis in columns]
        beside, w = held(weight, mode, leaves, w)
        w = jnp.transpose(w, (*stack, *rows, *columns))
        w = tiling.merged(w, w.ndim - len(columns), w.ndim)
        w = tiling.merged(w, len(stack), w.ndim - 1)

        product = Product(dot_general, tuple(options.items()))

        def matmul(leaves, x, w):
            dtype = options.get("preferred_element_type")
            return analog_matmul(weight, mode, leaves, x, w, product, dtype)

        for _ in stack:
            matmul = jax.vmap(matmul)
        y = matmul(beside, x, w)
        return tiling.parted(y, y.ndim - 1, sizes)

    return multiply


class Product(NamedTuple):
    """A `dot_general` with its options; equal if function and options are equal.

    Attributes:
      function: called like `jax.lax.dot_general`.
      options: names and values of its further arguments.
    """

    function: Callable[..., jax.Array] = jax.lax.dot_general
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, a: jax.Array, b: jax.Array, numbers: Any) -> jax.Array:
        """Returns the product of two arrays."""
        return self.function(a, b, numbers, **dict(self.options))


def analog_matmul(
    weight: AnalogWeight,
    mode: str,
    leaves: Mapping[str, jax.Array],
    x: jax.Array,
    w: jax.Array,
    product: Product = Product(),  # noqa: B008 an immutable value
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Multiplies vectors by the matrix of a layer as its hardware does.

    Args:
      weight: the plan of the kernel.
      mode: the mode; `"eval"` uses plain JAX operations throughout.
      leaves: the leaves beside the kernel in this step, as in `names_beside`:
        `input_range` `[row tiles, column tiles]` and `probe` `[row tiles, column tiles,
        6]` if the layer has a range, `mapping_scale` `[row tiles, columns or column
        tiles]` if it is stored or the kernel is not nominal, `noise_key` if the layer
        draws, `noise_strength` if its noise is scaled, `hardware_constants` `[places]`
        if some of its hardware's numbers are traced, and `chip_key` if it has frozen
        spreads.
      x: `[..., rows]`.
      w: `[rows, columns]`.
      product: the product to use.
      dtype: dtype of the result; `None` for that of a plain multiplication.

    Returns:
      `[..., columns]`.
    """
    check_real(weight, x)
    leaves, w = of_step(weight, mode, leaves, w)
    weight = weight if not weight.derived else as_stored(weight)
    if mode == "chip" and weight.hardware.rounds_chips:
        weight = on_levels(weight)  # the weights were rounded before
    watch = observer()
    if watch is not None:
        return watch(Multiplication(weight, mode, leaves, x, w, product, dtype))
    check_leaves(weight, leaves)
    beside, keys = reads_of(weight, mode, leaves)
    call = (anonymous(weight), mode, product, dtype, beside, x, w, keys)
    if product.function is not jax.lax.dot_general:
        # A user's function may belong to a trace, be a Flax module, or contain a read.
        return _matmul(*call)
    with shared():
        return _shared_matmul(*call)


def reads_of(
    weight: AnalogWeight, mode: str, leaves: Mapping[str, jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """Returns the leaves beside a kernel, and the keys of this read of it.

    Args:
      weight: the plan of the kernel.
      mode: the mode.
      leaves: the leaves beside the kernel, with a `noise_key` `[effects, 2]`.

    Returns:
      The leaves, with a `weight_key` instead of the noise key if the layer draws its
      own weights; and `[effects]` keys, `None` if this read draws nothing.
    """
    chip, modifier = weight.hardware, weight.hardware.modifier
    beside, keys = dict(leaves), None
    beside.pop(NOISE_KEY.name, None)
    in_layer = chip.modifies_in_layer(mode)
    per_vector = in_layer and modifier is not None and modifier.per_vector
    if chip.reads(mode) or per_vector:
        keys = keys_here(weight, leaves)
    if in_layer and not per_vector:
        # All calls, and all steps of a loop, use the same weights of the step.
        own = step_keys(leaves)
        if not chip.redraws(mode):  # rows of a map are examples and differ
            own = at_rows(weight, own)
        beside[WEIGHT_KEY] = weight_key(own)
    return beside, keys


@functools.lru_cache(maxsize=4096)
def anonymous(weight: AnalogWeight) -> AnalogWeight:
    """Returns an array's plan without names, so that equal layers share it."""
    return dataclasses.replace(weight, path="", layer="", rule="", derived=None)


def constant_scale(
    mode: str, leaves: Mapping[str, jax.Array], scale: jax.Array
) -> jax.Array:
    """Returns the mapping scale of a layer, a constant but for a chip's own.

    That of a chip holds the factor of its drift compensation, which follows from the
    constants of its devices.

    Args:
      mode: the mode.
      leaves: the leaves beside the kernel; without the scale, it is a nominal one.
      scale: the scale.
    """
    of_chip = mode == "chip" and MAPPING_SCALE.name in leaves
    return scale if of_chip else jax.lax.stop_gradient(scale)


def _matmul(
    weight: AnalogWeight,
    mode: str,
    dot_general: Product,
    dtype: DTypeLike | None,
    leaves: Mapping[str, jax.Array],
    x: jax.Array,
    w: jax.Array,
    keys: jax.Array | None,
) -> jax.Array:
    """Multiplies as `analog_matmul` does, with the leaves and keys of `reads_of`."""
    tiles = {"row_sizes": weight.row_sizes, "column_sizes": weight.column_sizes}
    outside, weight = weight, filled_weight(weight, leaves.get(CONSTANTS.name))
    chip, scale = weight.hardware, leaves.get(MAPPING_SCALE.name)
    if scale is None and (chip.converts or chip.modifies_in_layer(mode)):
        scale = weight.derived_scale(w)  # the kernel is nominal: no modifier changed it
    if scale is not None:
        leaves = {**leaves, MAPPING_SCALE.name: constant_scale(mode, leaves, scale)}
    deviation = _deviation(weight, mode, w, scale)

    def product(leaves, x, w, keys):
        # The leaves passed in, not those of the enclosing function.
        weight = filled_weight(outside, leaves.get(CONSTANTS.name))
        chip, output_scale = weight.hardware, leaves.get(OUTPUT_SCALE.name)
        probe = leaves.get(PROBE.name) if mode != "eval" else None
        if not chip.converts and deviation is None:
            if output_scale is not None:
                factor = tiling.expand_rows(output_scale, weight.row_sizes)
                w = w * factor.astype(w.dtype)
            if not weight.ranged:
                return dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))
            return ranged_matmul(
                x,
                w,
                leaves[RANGE.name],
                probe,
                gradient=chip.range.gradient,
                dot_general=dot_general,
                **tiles,
            )
        stages = stages_of(weight)
        if deviation is not None:
            stages = (*stages, WeightNoise(deviation))
        return analog_mvm(
            x,
            w,
            stages,
            scale=leaves.get(MAPPING_SCALE.name),
            output_scale=output_scale,
            input_range=leaves.get(RANGE.name) if weight.ranged else None,
            probe=probe if weight.ranged else None,
            leaves={x.name: leaves[x.name] for x in weight.own_leaves},
            keys=keys,
            chip_key=frozen_key(leaves[CHIP_KEY.name]) if chip.freezes(mode) else None,
            strength=leaves.get(NOISE_STRENGTH.name, 1.0),
            dot_general=dot_general,
            dtype=dtype,
            **tiles,
        )

    if chip.redraws(mode):
        draw = functools.partial(step_draw, outside)
        return redrawn(draw, product, leaves, x, w, keys)
    if not chip.modifies_in_layer(mode) or deviation is not None:
        return product(leaves, x, w, keys)
    return _per_example(weight, product, leaves, x, w, keys)


_shared_matmul = jax.jit(_matmul, static_argnums=(0, 1, 2, 3))
"""Compiled, so that equal layers of a program are traced and lowered once."""


def stages_of(weight: AnalogWeight) -> tuple[Any, ...]:
    """Returns the stages around the tiles of a weight, outermost first."""
    chip = weight.hardware
    return (chip.range, *chip.stages) if weight.ranged else chip.stages


def check_leaves(weight: AnalogWeight, leaves: Mapping[str, Any]) -> None:
    """Raises unless the leaves beside one matrix fit its hardware.

    Args:
      weight: the plan of the kernel.
      leaves: arrays, or their shapes and dtypes, as for `analog_matmul`.
    """
    for leaf in weight.leaves():
        if leaf.name not in leaves:
            raise missing_leaf(weight.layer_path, leaf.name)
        _check_leaf(weight, leaf, leaves[leaf.name])


def _per_example(
    weight: AnalogWeight,
    product: Callable[..., jax.Array],
    leaves: Mapping[str, jax.Array],
    x: jax.Array,
    w: jax.Array,
    keys: jax.Array | None,
) -> jax.Array:
    """Returns `product(leaves, x, w, keys)` with weights drawn for each example."""

    def draw(index, w):
        return drawn(weight, leaves, w, fold_in(leaves[WEIGHT_KEY], index))

    def multiply(x, w, index):
        each = None if keys is None else fold_in(keys, index)
        return product(leaves, x, w, each)

    return per_example(multiply, draw, x, w)


def _deviation(
    weight: AnalogWeight, mode: str, w: jax.Array, scale: jax.Array | None
) -> Callable[..., jax.Array] | None:
    """Returns the outputs' deviation for weights drawn per vector; `None` otherwise.

    Args:
      weight: the plan of the layer's array.
      mode: the mode.
      w: `[rows, columns]`, the kernel.
      scale: `[row tiles, columns or column tiles]`, its mapping scale; `None` for 1.
    """
    modifier: Any = weight.hardware.modifier
    if modifier is None or not modifier.per_vector:
        return None
    if not weight.hardware.modifies(mode):
        return None
    if scale is not None:
        scale = weight.of_columns(scale)
        w = w / tiling.expand_rows(scale, weight.row_sizes).astype(w.dtype)
    if modifier.rel_to_actual_wmax:
        each = modifier.per_column
        w_max = statistics.absolute_maximum(w, weight.row_sizes, per_column=each)
    else:
        w_max = jnp.full((len(weight.row_sizes), 1), modifier.assumed_wmax)

    def deviation(x: jax.Array, tiles: Any) -> jax.Array:
        unit = output_deviation(x, tiles, w_max, modifier.sigma)
        return modifier.std_dev * unit

    return deviation


def _check_leaf(weight: AnalogWeight, spec: LeafSpec, leaf: Any) -> None:
    """Raises for a leaf of other tiles, or of a dtype that would round statistics."""
    shapes = spec.shapes(weight)
    if leaf.shape not in shapes:
        raise InputError(
            f"{weight.layer_path}: {spec.name} has the shape {leaf.shape}, but the "
            f"hardware's tiles ask for {' or '.join(map(str, shapes))}. It seems to "
            "come from other hardware; remove it with hwtrain.strip(params, plan), and "
            "write params = hwtrain.adopt(analog, params, *example)"
        )
    if spec.trained == "range" and leaf.dtype != spec.dtype:
        raise InputError(
            f"{weight.layer_path}: {spec.name} must be {spec.dtype}, got {leaf.dtype}; "
            "its gradient holds sums that a narrower type would lose. Cast only the "
            "kernels and biases, or set dtype= on the layers"
        )
