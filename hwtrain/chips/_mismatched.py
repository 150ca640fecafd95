"""Frozen properties of a chip, over a tree of parameters: its key and mismatch."""

import math
import reprlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hwtrain._arrays import paths
from hwtrain._arrays.random import draw_key, fold_in
from hwtrain._errors import InputError
from hwtrain._plan.nominal import check_nominal
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._clip_bounds import with_clipped, with_open_bounds
from hwtrain.chips._crossbar import largest_weight, on_crossbar, with_written
from hwtrain.periphery._read_keys import CHIP_KEY
from hwtrain.weights.bases import Mismatch
from hwtrain.weights.mapping import MAPPING_SCALE


def chip_key(chip_seed: jax.typing.ArrayLike) -> jax.Array:
    """Returns the key of a chip, from which everything frozen is drawn.

    Args:
      chip_seed: the chip's number, from 0 to 2^32 - 1. May be traced.

    Raises:
      ValueError: unless it is a whole number in that range, of which JAX would take
        another one modulo 2^32.
    """
    dtype = getattr(chip_seed, "dtype", None)
    whole = isinstance(chip_seed, int) and not isinstance(chip_seed, bool)
    if not whole and (dtype is None or not jnp.issubdtype(dtype, jnp.integer)):
        raise InputError(
            f"a chip's seed must be a whole number; got {reprlib.repr(chip_seed)}"
        )
    known = not isinstance(chip_seed, Tracer)
    known = known and getattr(chip_seed, "is_fully_addressable", True)
    number = np.asarray(chip_seed) if known else 0
    if not np.all((number >= 0) & (number < 2**32)):
        raise InputError(f"a chip's seed must be in [0, 2^32); got {chip_seed}")
    return jax.random.key(chip_seed, impl="threefry2x32")


def frozen_keys(weight: AnalogWeight, key: jax.Array) -> jax.Array:
    """Returns the key data for the frozen properties of a layer's periphery.

    Args:
      weight: the plan of the layer's array.
      key: the key of the chip.

    Returns:
      `uint32`, `[*stack, 2]`: threefry key data, one for each layer of a stack.
    """
    return frozen_periphery(weight, draw_key(key, weight.owner, "frozen_periphery"))


def frozen_periphery(weight: AnalogWeight, key: jax.Array) -> jax.Array:
    """As `frozen_keys`, from the key of the draw itself, independent of names."""
    keys = fold_in(key, jnp.arange(math.prod(weight.stack)))
    # The key data of the other generators consist of threefry keys, one after another.
    data = jax.random.key_data(keys)[..., :2]
    return data.reshape(*weight.stack, 2)


def with_chip_leaves(
    params: paths.Tree, plan: Plan, nominal: paths.Tree, key: jax.Array
) -> paths.Tree:
    """Adds the leaves to a chip's parameters that only a chip has.

    These are the mapping scales of the nominal weights, for which the periphery is
    made: derived from the chip's own weights, they would follow its mismatch and drift.
    Then the key of the frozen properties of the periphery, and a mark of weights that
    were rounded to levels when written. A chip with none of these that differs from
    others gets `of_chip`, which only marks it as one. Existing leaves are kept.

    Args:
      params: the chip's parameters, nested mappings.
      plan: the plan; paths in the parameters are with or without its prefix.
      nominal: its nominal parameters, with the same paths.
      key: `chip_key(chip_seed)`.
    """
    values, present = paths.leaves(nominal), paths.leaves(params)
    entries = {}
    for weight in plan.weights:
        prefix = "" if weight.path in values else f"{plan.prefix}/"
        kernel = values[weight.path.removeprefix(prefix)]
        for leaf in weight.leaves("chip"):
            path = weight.leaf(leaf).removeprefix(prefix)
            if leaf is CHIP_KEY:
                entries[path] = frozen_keys(weight, key)
            elif leaf is MAPPING_SCALE:
                bound = weight.stored_bound(values, plan.prefix if prefix else "")
                scale = weight.derived_scale(weight.to_matrix(kernel), bound)
                entries[path] = weight.unit_scale if scale is None else scale
            else:
                entries[path] = leaf.value(weight, kernel)
    entries = {path: leaf for path, leaf in entries.items() if path not in present}
    return paths.insert(params, entries) if entries else params


def apply_mismatch(params: paths.Tree, plan: Plan, key: jax.Array) -> paths.Tree:
    """Returns the parameters of one chip: with its frozen mismatch.

    A pure function of the chip's key, each parameter's path and each element. The
    nominal parameters are not changed; parameters without mismatch are returned as is.

    Args:
      params: nominal parameters.
      plan: the plan.
      key: `chip_key(chip_seed)`.

    Returns:
      A tree like `params`. Beside the weights of a layer with a periphery it holds the
      chip's own leaves: a `mapping_scale` derived from the nominal weights, and a
      `chip_key`, from which a layer in `chip_mode` draws the frozen properties of its
      periphery. `on_levels` marks weights that were rounded before, and `of_chip`, if
      there is no other leaf, marks the weights as a chip's.

    Raises:
      ValueError: if the parameters lack a weight of the plan, or are a chip's already.
    """
    plan.check_effective()
    plan.check_weights(params)
    check_nominal(plan, params, "apply_mismatch")
    nominal, params = with_clipped(params, plan), with_written(params, plan)
    by_path = paths.leaves(nominal)
    weights = {w.path: w for w in plan.weights if w.hardware.mismatch is not None}

    def chip_value(path: str, leaf: jax.Array) -> jax.Array:
        weight = weights.get(path)
        if weight is None:
            return leaf
        scale = weight.stored_scale(by_path)
        kernel = jnp.asarray(by_path[path], jnp.float32)
        chip = mismatched(weight, kernel, scale, key, jnp.asarray(leaf, jnp.float32))
        return chip.astype(leaf.dtype)

    chip = with_open_bounds(paths.map_leaves(chip_value, params), plan)
    return with_chip_leaves(chip, plan, nominal, key)


def mismatched(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: jax.Array | None,
    key: jax.Array,
    written: jax.Array,
) -> jax.Array:
    """Returns one array with a chip's mismatch; `written` itself without mismatch.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal, in float32.
      scale: the stored mapping scale, if there is one.
      key: `chip_key(chip_seed)`.
      written: the array as it is written to the chip, in float32.
    """
    key = draw_key(key, weight.path, "mismatch")
    return deviated(weight, kernel, scale, key, written)


def deviated(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: jax.Array | None,
    key: jax.Array,
    written: jax.Array,
) -> jax.Array:
    """As `mismatched`, from the key of the draw itself, independent of names.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal, in float32.
      scale: the stored mapping scale, if there is one.
      key: the key of this array's mismatch.
      written: the array as it is written to the chip, in float32.
    """
    mismatch = weight.hardware.mismatch
    if mismatch is None:
        return written
    w, s = on_crossbar(weight, kernel, scale)
    w_max = largest_weight(weight, w, per_column=mismatch.per_column)
    w = written / s
    if isinstance(mismatch, Mismatch):
        return mismatch(key, w, w_max, weight) * s
    return mismatch(key, w, w_max) * s
