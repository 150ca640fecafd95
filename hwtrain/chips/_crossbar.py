"""The weights as a crossbar holds them: divided by their mapping scale."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths, reductions, statistics, tiling
from hwtrain._errors import InputError
from hwtrain._parts.constant import replaced
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips import _conductances as conductances
from hwtrain.chips._clip_bounds import clipped
from hwtrain.weights import WeightModifier
from hwtrain.weights.modifier import ON_LEVELS


def on_crossbar(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array | None
) -> tuple[jax.Array, jax.Array | float]:
    r"""Returns the weights as the crossbar holds them, and their scale.

    .. math:: w = W / s

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      scale: the stored mapping scale, if there is one; otherwise it is derived.

    Returns:
      `(w, s)`: an array like `kernel`, and a scale broadcastable against it; 1 without
      scaling. No gradient passes through the scale.
    """
    if scale is None:
        scale = weight.derived_scale(weight.to_matrix(kernel))
    if scale is None:
        return kernel, 1.0
    scale = jax.lax.stop_gradient(weight.spread(scale)).astype(kernel.dtype)
    return kernel / scale, scale


def largest_weight(
    weight: AnalogWeight, kernel: jax.Array, *, per_column: bool
) -> jax.Array:
    """Returns the largest weight of each row tile.

    Args:
      weight: the plan of the array.
      kernel: an array like the stored one.
      per_column: take the maximum of each column alone.

    Returns:
      An array broadcastable against the stored one.
    """
    w_max = _largest_of_tiles(weight, kernel, None, per_column=per_column)
    return weight.spread(reductions.reduced(w_max))


def _largest_of_tiles(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: jax.Array | None,
    *,
    per_column: bool,
) -> jax.Array:
    r"""Returns the largest weight of each row tile, in units of the crossbar.

    .. math:: \max |W| / s = \max |W / s|

    also in floating point, since rounding keeps the order.

    Args:
      weight: the plan of the array.
      kernel: an array like the stored one.
      scale: `[*stack, row tiles, columns or 1]`, the divisor s; `None` for 1.
      per_column: take the maximum of each column alone.

    Returns:
      `[*stack, row tiles, columns or 1]`.
    """
    each = per_column or (scale is not None and scale.shape[-1] > 1)
    matrix = weight.to_matrix(kernel)
    w_max = statistics.absolute_maximum(matrix, weight.row_sizes, per_column=each)
    if scale is not None:
        w_max = w_max / scale.astype(w_max.dtype)
    if each and not per_column:
        w_max = jnp.max(w_max, axis=-1, keepdims=True)
    return w_max


def modified(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: jax.Array | None,
    key: jax.Array | None,
    strength: jax.Array | None = None,
    bound: jax.Array | None = None,
    leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
) -> jax.Array:
    """Returns the kernel with the weight modifier of its hardware applied.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      scale: the stored mapping scale, if there is one; otherwise it is derived.
      key: key of the draw; may be `None` if the modifier draws nothing.
      strength: factor on its noise, `[]` float32; `None` for 1.
      bound: the learned clip bound, if there is one; levels per column span it.
      leaves: the leaves beside the array by name, including those of a user's modifier.
    """
    modifier = weight.hardware.modifier
    if modifier is None:
        return clipped(weight, kernel, bound)
    steps = modifier.column_steps if bound is not None else None
    if steps is not None:
        modifier = modifier.without_levels
        assert modifier is not None  # what it adds to levels of columns
    kernel = clipped(weight, kernel, bound, steps)
    if scale is None:
        scale = weight.derived_scale(weight.to_matrix(kernel))
    w, s = on_crossbar(weight, kernel, scale)
    last = last_row(weight) if modifier.copy_last_column else None
    w_max = jnp.asarray(modifier.assumed_wmax, w.dtype)
    if modifier.rel_to_actual_wmax:
        divisor = scale
        if divisor is not None:
            divisor = jax.lax.stop_gradient(weight.of_columns(divisor))
        w_max = _largest_of_tiles(
            weight,
            kernel if last is None else jnp.where(last, 0, kernel),
            divisor,
            per_column=modifier.per_column,
        )
        if modifier.unitless and divisor is not None:
            # Saves two passes over the weights, and two over their gradient.
            w, s, w_max = kernel, 1.0, w_max * divisor.astype(w_max.dtype)
        w_max = weight.spread(reductions.reduced(w_max))
    changed = w if last is None else jnp.where(last, 0, w)
    # A user's modifier sees the array as it is stored, whatever its tiling.
    if isinstance(modifier, WeightModifier):
        own = modifier_leaves(weight, leaves)
        changed = modifier(key, changed, w_max, strength, own)
    elif not _cut_by_layer(weight):
        changed = modifier(key, changed, w_max, strength)
    else:
        # Cutting keeps the order of elements, and so their random numbers. But the
        # kernel that draws then writes the tiles that the layer multiplies by, and
        # needs no division to find the tile of an element.
        changed = _cut(weight, changed)
        changed = modifier(key, changed, _cut(weight, w_max), strength)
        changed = tiling.join(changed, weight.column_sizes, axis=-1)
        changed = tiling.join(changed, weight.row_sizes, axis=-2)
    changed = changed if last is None else jnp.where(last, w, changed)
    return jnp.asarray(changed * s, kernel.dtype)


def modifier_leaves(
    weight: AnalogWeight, leaves: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Returns the leaves of a user's modifier, broadcastable against the array.

    Args:
      weight: the plan of the array.
      leaves: the leaves beside the array, by name.

    Raises:
      ValueError: for a leaf with a shape neither of tiles nor of columns.
    """
    modifier: Any = weight.hardware.modifier
    own = {}
    for spec in modifier.leaves(weight):
        if not spec.there(weight, "model"):
            continue
        leaf = leaves[spec.name]
        last = {1, weight.tiles[1], sum(weight.column_sizes)}
        behind = leaf.shape[len(weight.stack) :]
        if len(behind) != 2 or behind[0] != weight.tiles[0] or behind[1] not in last:
            raise InputError(
                f"{weight.path}: a modifier reads leaves of tiles or of columns, "
                f"[row tiles, column tiles or columns]; {spec.name} has the shape "
                f"{leaf.shape} beside {math.prod(weight.stack)} matrices"
            )
        own[spec.name] = weight.spread(leaf)
    return own


def written(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: jax.Array | None,
    bound: jax.Array | None = None,
) -> jax.Array:
    """Returns the kernel as it is written to a chip.

    It is clipped to its learned bound, and rounded to the levels of a modifier that
    acts on chips too and to those of the devices: rounding precedes the effects of the
    chip.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      scale: the stored mapping scale, if there is one; otherwise it is derived.
      bound: the learned clip bound, if there is one.
    """
    chip, modifier = weight.hardware, weight.hardware.modifier
    converter = chip.converter
    if modifier is not None and modifier.rounds_chips:
        chip = replaced(chip, modifier=modifier.levels)
        rounding = dataclasses.replace(weight, hardware=chip)
        found = modified(rounding, kernel, scale, None, None, bound)
    else:
        found = clipped(weight, kernel, bound)
    if converter is None or not converter.rounds:
        return found
    # By the scale of the weights before rounding, as everywhere else.
    _, s = on_crossbar(weight, clipped(weight, kernel, bound), scale)
    w = weight.to_matrix(jnp.asarray(found / s, jnp.float32))
    levels = conductances.back_to_weights(weight, *conductances.targets(weight, w))
    return (weight.from_matrix(levels) * s).astype(kernel.dtype)


def with_written(params: paths.Tree, plan: Plan) -> paths.Tree:
    """Returns nominal parameters as they are written to a chip; see `written`.

    Weights with a leaf `on_levels`, such as those of a measured chip, have been rounded
    before and are not rounded again.

    Args:
      params: nominal parameters, nested mappings.
      plan: the plan.
    """
    leaves = paths.leaves(params)
    weights = {
        weight.path: weight
        for weight in plan.weights
        if weight.hardware.learns_clip or weight.hardware.rounds_chips
    }

    def value(path: str, leaf: jax.Array) -> jax.Array:
        weight = weights.get(path)
        if weight is None:
            return leaf
        scale, bound = weight.stored_scale(leaves), weight.stored_bound(leaves)
        if weight.leaf(ON_LEVELS) in leaves:
            return clipped(weight, jnp.asarray(leaf), bound)
        return written(weight, jnp.asarray(leaf), scale, bound)

    return paths.map_leaves(value, params) if weights else params


def _cut_by_layer(weight: AnalogWeight) -> bool:
    """Whether the layer cuts the stored array into tiles of one size."""
    chip, sizes = weight.hardware, (weight.row_sizes, weight.column_sizes)
    cuts = (chip.converts or chip.ranged) and weight.tiles != (1, 1)
    plain = weight.shape == (*weight.stack, *map(sum, sizes))
    return cuts and plain and all(len(set(each)) == 1 for each in sizes)


def _cut(weight: AnalogWeight, array: jax.Array) -> jax.Array:
    """Cuts into `[*stack, row tiles, rows, column tiles, columns]`; sizes of 1 stay.

    Args:
      weight: the plan of the array.
      array: broadcastable against the stored one, with as many axes; or a number.
    """
    if array.ndim == 0:
        return array
    for sizes, axis in ((weight.row_sizes, -2), (weight.column_sizes, -1)):
        one = array.shape[axis] == 1
        array = jnp.expand_dims(array, axis) if one else tiling.cut(array, sizes, axis)
    return array


def last_row(weight: AnalogWeight) -> jax.Array:
    """Returns a mask of the weights of the last input in the stored array."""
    rows, columns = sum(weight.row_sizes), sum(weight.column_sizes)
    last = np.arange(rows)[:, None] == rows - 1
    return weight.from_matrix(jnp.broadcast_to(last, (*weight.stack, rows, columns)))
