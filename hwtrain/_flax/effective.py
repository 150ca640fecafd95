"""The weights that a layer multiplies by, where they are not those that it stores.

Between the stored array and the product, something makes others of it: a WeightNorm, a
mask, a factor. What the weight side does to stored arrays, the layer does to these, and
gradients run through it to the stored ones.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from hwtrain._flax.observation import collector
from hwtrain._flax.read_keys import step_keys, weight_key
from hwtrain._flax.redraw import WEIGHT_KEY, kernel_draw
from hwtrain._parts.constant import CONSTANTS
from hwtrain._plan.constants import filled_weight
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import written
from hwtrain.weights.mapping import MAPPING_SCALE
from hwtrain.weights.modifier import ON_LEVELS

Leaves = Mapping[str, jax.Array]


HELD = "effective"
"""What the weights of a chip are called among the leaves of a layer."""


def held(
    weight: AnalogWeight, mode: str, leaves: Leaves, array: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns what is beside an array in a step, and the array: a chip's, if it is one.

    Args:
      weight: the plan of the array.
      mode: the mode.
      leaves: what is beside it.
      array: what the layer multiplies by, as the layer sees it.

    Raises:
      ValueError: for weights of a chip in training, which makes its own of the stored.
    """
    leaves = dict(leaves)
    chip = leaves.pop(HELD, None)
    if chip is None:
        return leaves, array
    collect = collector()
    if collect is not None:
        collect(weight, chip, array)
        return leaves, array
    if mode == "train":
        raise ValueError(
            f"{weight.effective_path} holds the derived weights of a chip, but "
            f"training computes them from {weight.stored} at each step, so they would "
            "be stale afterwards. Delete that leaf before training, and create it "
            "again with hwtrain.materialize(analog, variables, *example)"
        )
    return leaves, jnp.asarray(chip, array.dtype)


def of_step(
    weight: AnalogWeight, mode: str, leaves: Leaves, array: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Does to an array in its layer what the weight side does to stored ones.

    Statistics and draws are those of float32, whatever the layer computes in.

    Args:
      weight: the plan of the array, as one layer sees it.
      mode: the mode.
      leaves: what is beside it in this step.
      array: what the layer multiplies by, nominal, or one matrix of it.

    Returns:
      What is beside it, with the mapping scale of the nominal array; and the array of
      the step.
    """
    leaves = dict(leaves)
    rounded = leaves.pop(ON_LEVELS.name, None) is not None
    if not weight.derived:
        return leaves, array
    if weight.shape != array.shape:  # one matrix
        weight = dataclasses.replace(
            weight, shape=array.shape, rows=(0,), columns=(1,), window=None
        )
    found = jnp.asarray(array, jnp.float32)
    traced = filled_weight(weight, leaves.get(CONSTANTS.name))
    scale = traced.derived_scale(weight.to_matrix(found))
    if scale is not None:
        leaves.setdefault(MAPPING_SCALE.name, jax.lax.stop_gradient(scale))
    if mode == "chip" and weight.hardware.rounds_chips:
        if not rounded:
            found = written(traced, found, None)
        weight = on_levels(weight)
    chip = weight.hardware
    if chip.modifies(mode) and not chip.modifies_in_layer(mode):
        key = weight_key(step_keys(leaves))
        found = kernel_draw(weight, {**leaves, WEIGHT_KEY: key}, found)
    return leaves, found.astype(array.dtype)


@functools.lru_cache(maxsize=4096)
def on_levels(weight: AnalogWeight) -> AnalogWeight:
    """Returns the plan of an array whose weights were rounded to levels already."""
    return dataclasses.replace(weight, hardware=weight.hardware.without_levels)


@functools.lru_cache(maxsize=4096)
def as_stored(weight: AnalogWeight) -> AnalogWeight:
    """Returns the plan of an array that is what its layer multiplies by."""
    return dataclasses.replace(weight, derived=None)
