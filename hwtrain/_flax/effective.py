"""Derived weights: those that a layer computes from stored ones and multiplies by.

Something between the stored array and the product changes it, such as a WeightNorm, a
mask or a factor. The layer then applies the weight effects to the derived weights, and
gradients flow through the derivation to the stored ones.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from hwtrain._errors import InputError
from hwtrain._flax.observation import collector
from hwtrain._flax.read_keys import step_keys, weight_key
from hwtrain._flax.redraw import kernel_draw
from hwtrain._parts.constant import CONSTANTS
from hwtrain._plan.constants import filled_weight
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import written
from hwtrain.periphery._read_keys import WEIGHT_KEY
from hwtrain.weights.mapping import MAPPING_SCALE
from hwtrain.weights.modifier import ON_LEVELS

Leaves = Mapping[str, jax.Array]

HELD = "effective"
"""The name of a chip's derived weights among the leaves of a layer."""


def held(
    weight: AnalogWeight, mode: str, leaves: Leaves, array: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns the leaves beside an array in a step, and the array or its chip's.

    Args:
      weight: the plan of the array.
      mode: the mode.
      leaves: the leaves beside it.
      array: the layer's array that it multiplies by.

    Raises:
      ValueError: for a chip's weights in training, which derives its own from the
        stored ones.
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
        raise InputError(
            f"{weight.effective_path} holds the derived weights of a chip, but "
            f"training computes them from {weight.stored} at each step, so they would "
            "be stale afterwards. Delete that leaf before training, and create it "
            "again with hwtrain.materialize(analog, variables, *example)"
        )
    return leaves, jnp.asarray(chip, array.dtype)


def of_step(
    weight: AnalogWeight, mode: str, leaves: Leaves, array: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Applies the weight effects to a derived array in its layer.

    Statistics and draws are in float32, whatever the layer's dtype.

    Args:
      weight: the plan of the array, for one layer.
      mode: the mode.
      leaves: the leaves beside it in this step.
      array: the nominal array that the layer multiplies by, or one matrix of it.

    Returns:
      The leaves beside it, with the mapping scale of the nominal array; and the array
      of the step.
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
    """Returns the plan of an array whose weights are already rounded to levels."""
    return dataclasses.replace(weight, hardware=weight.hardware.without_levels)


@functools.lru_cache(maxsize=4096)
def as_stored(weight: AnalogWeight) -> AnalogWeight:
    """Returns the plan of a derived array, treated like a stored one."""
    return dataclasses.replace(weight, derived=None)
