"""The weight side: transforms every analog weight on its way into the forward pass.

It works on the parameter tree at the root, so it covers stacked layers, recurrent cells
and raw parameters alike. Both frameworks use it.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths, tiling
from hwtrain._arrays.random import draw_name, fold_in, once, stable_hash, step_key
from hwtrain._flax.effective import on_levels
from hwtrain._flax.errors import missing_leaf
from hwtrain._flax.loops import shared
from hwtrain._flax.signal_side import anonymous
from hwtrain._flax.strength import check_mode, strengths
from hwtrain._parts.constant import CONSTANTS, stacked
from hwtrain._plan.constants import filled_weight
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips import chip_key
from hwtrain.chips._clip_bounds import clipped
from hwtrain.chips._crossbar import modified, written
from hwtrain.chips._mismatched import frozen_keys
from hwtrain.periphery._read_keys import CHIP_KEY, NOISE_KEY, NOISE_STRENGTH, read_keys
from hwtrain.weights.mapping import MAPPING_SCALE
from hwtrain.weights.modifier import ON_LEVELS
from hwtrain.weights.noise_current import NOISE_DENSITY

Values = Mapping[str, Sequence[Any]]
"""The traced constants of each weight's hardware, by path."""


def draws(plan: Plan, mode: str) -> bool:
    """Whether anything is drawn at a step in `mode`."""
    return any(
        # A raw parameter has no periphery.
        weight.hardware.draws_weights(mode)
        or weight.hardware.draws_currents(mode)
        or (weight.kind != "raw" and weight.hardware.reads(mode))
        for weight in plan.weights
    )


def needs_root(plan: Plan, mode: str, constants: Values | None = None) -> bool:
    """Whether a step in `mode` needs the root, because it modifies weights or draws.

    Traced constants need it too, because the root passes them to the layers.
    """
    return (
        bool(constants)
        or draws(plan, mode)
        or any(
            weight.hardware.modifies(mode)
            or weight.hardware.learns_clip
            or (mode == "chip" and weight.hardware.rounds_chips)
            or bool(weight.derived)
            for weight in plan.weights
        )
    )


def check_leaves(plan: Plan, params: paths.Tree) -> None:
    """Raises unless all leaves of the model are there, whether this mode uses them.

    Those that only the weight side reads would otherwise be noticed late, or never.

    Args:
      plan: the plan; its prefix is not part of the paths in `params`.
      params: parameters of the root.
    """
    present = paths.leaves(params).keys()
    for weight in plan.weights:
        for leaf in weight.leaves():
            if local(plan, weight.leaf(leaf)) not in present:
                raise missing_leaf(weight.layer_path, weight.leaf_name(leaf))


def no_key() -> jax.Array:
    """Returns a key for steps that modify weights by rounding, but draw nothing."""
    return jax.random.key(0)


def step_weights(
    params: paths.Tree,
    plan: Plan,
    mode: str,
    key: jax.Array,
    constants: Values | None = None,
) -> tuple[paths.Tree, dict[str, jax.Array]]:
    """Returns the parameters of one step, and the leaves that its layers need.

    Args:
      params: nominal parameters of the root.
      plan: the plan; its prefix is not part of the paths in `params`.
      mode: `"train"` or `"chip"`; `"eval"` only for learned clip bounds and constants.
      key: the step's key.
      constants: by path of a weight, values for the holes in its hardware, from
        `hwtrain._plan.constants.split_plan`.

    Returns:
      A tree like `params`, and by path in `params` the leaves for this step only:
      `noise_key` of every layer that needs the root, with the data of the keys of its
      reads, `[*stack, effects, 2]`, and of every capacitance with a noise current, with
      its `noise_density` `[*stack]`; `noise_strength` `[*stack]` of every layer whose
      noise is scaled; `hardware_constants` `[*stack, places]` of every layer with some;
      `chip_key` of every layer with frozen spreads; and the `mapping_scale` of the
      nominal kernel if it is not stored.
    """
    check_mode(mode)
    strength = strengths(plan)
    nominal = paths.leaves(params)
    weights = {local(plan, weight.path): weight for weight in plan.weights}
    values = {path: stacked(given) for path, given in (constants or {}).items()}
    with shared():
        weight_keys, layer_keys = _step_keys(plan, mode, key)

    def step_value(path: str, leaf: Any) -> Any:
        weight = weights.get(path)
        if weight is None or weight.derived:  # the layer transforms derived weights
            return leaf
        bound, chip = weight.stored_bound(nominal, plan.prefix), weight.hardware
        scale = weight.stored_scale(nominal, plan.prefix)
        if mode == "chip" and chip.rounds_chips:
            # Rounded once, before a chip's other effects; a chip's are rounded already.
            if local(plan, weight.leaf(ON_LEVELS)) not in nominal:
                with shared():
                    constant = values.get(weight.path)
                    leaf = _written(anonymous(weight), leaf, scale, bound, constant)
            weight, bound = on_levels(weight), None
            chip = weight.hardware
        if chip.redraws(mode):
            return leaf  # clipped by the layer, which stores no array of this size
        if not chip.modifies(mode) or chip.modifies_in_layer(mode):
            return clipped(weight, leaf, bound)
        noise = strength.get(weight.path)
        own = {
            x.name: weight.value_of(x, nominal, plan.prefix) for x in weight.own_leaves
        }
        with shared():
            constants, key = values.get(weight.path), weight_keys[weight.path]
            return _modified(
                anonymous(weight), leaf, scale, key, noise, bound, own, constants
            )

    beside = {}
    for weight in plan.weights:
        leaves, kernel = {}, nominal[local(plan, weight.path)]
        if weight.path in layer_keys:
            path = local(plan, weight.leaf(NOISE_KEY))
            leaves[path] = layer_keys[weight.path]
        if weight.kind == "raw":
            if leaves:
                density = _noise_density(weight, values, strength)
                path = local(plan, weight.leaf(NOISE_DENSITY))
                beside |= {**leaves, path: density}
            continue
        if weight.path in strength:
            path = local(plan, weight.leaf(NOISE_STRENGTH))
            leaves[path] = jnp.broadcast_to(strength[weight.path], weight.stack)
        if weight.path in values:
            path, array = local(plan, weight.leaf(CONSTANTS)), values[weight.path]
            leaves[path] = jnp.broadcast_to(array, (*weight.stack, *array.shape))
        path = local(plan, weight.leaf(CHIP_KEY))
        if weight.hardware.freezes(mode) and path not in nominal:
            # Training sees a new chip at every step; without a chip, it is number 0.
            chip = key if mode == "train" else chip_key(0)
            leaves[path] = frozen_keys(weight, chip)
        path = local(plan, weight.leaf(MAPPING_SCALE))
        scaled = weight.hardware.converts and not weight.derived
        if scaled and path not in nominal:
            bound = weight.stored_bound(nominal, plan.prefix)
            with shared():
                constant = values.get(weight.path)
                scale = _nominal_scale(anonymous(weight), constant, kernel, bound)
            if scale is not None:
                leaves[path] = scale
        # A map over the stack takes arrays that are spread alike.
        depth = len(weight.shape) - len(weight.rows) - len(weight.columns)
        for path, leaf in leaves.items():
            beside[path] = tiling.placed_along(leaf, kernel, depth)
    return paths.map_leaves(step_value, params), beside


def _noise_density(
    weight: AnalogWeight, constants: Any, strength: Mapping[str, jax.Array]
) -> jax.Array:
    """Returns the density of a capacitance's noise current in a step, `[*stack]`."""
    noise: Any = filled_weight(weight, constants.get(weight.path))
    density = jnp.asarray(noise.hardware.noise_current.density, jnp.float32)
    factor = strength.get(weight.path, 1.0)
    return jnp.broadcast_to(density * factor, weight.stack)


# Jitted, so that equal arrays of a program are traced and lowered once.


@functools.partial(jax.jit, static_argnums=0)
def _modified(weight: AnalogWeight, *args: Any) -> jax.Array:
    *others, constants = args
    return modified(filled_weight(weight, constants), *others)


@functools.partial(jax.jit, static_argnums=0)
def _written(weight: AnalogWeight, *args: Any) -> jax.Array:
    *others, constants = args
    return written(filled_weight(weight, constants), *others)


@functools.partial(jax.jit, static_argnums=0)
def _nominal_scale(
    weight: AnalogWeight,
    constants: jax.Array | None,
    kernel: jax.Array,
    bound: jax.Array | None,
) -> jax.Array | None:
    """Returns the mapping scale of a kernel, or of its learned clip bound."""
    weight = filled_weight(weight, constants)
    scale = weight.derived_scale(weight.to_matrix(kernel), bound)
    return None if scale is None else jax.lax.stop_gradient(scale)


def _step_keys(
    plan: Plan, mode: str, key: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the keys of a step by path; all names are folded in at once.

    Args:
      plan: the plan.
      mode: the mode.
      key: the step's key.

    Returns:
      The key for the noise of each array that is modified before the model; and for
      each layer that needs the root, the data of the keys of its reads,
      `[*stack, effects, 2]`.
    """
    modified = [
        weight
        for weight in plan.weights
        if weight.hardware.modifies(mode)
        and not weight.hardware.modifies_in_layer(mode)
        and not weight.derived
    ]
    layers = [
        weight
        for weight in plan.weights
        if (
            weight.hardware.needs_root(mode)
            if weight.kind != "raw"
            else weight.hardware.draws_currents(mode)
        )
    ]
    names = [draw_name(weight.path, "weight_noise") for weight in modified]
    names += [
        draw_name(weight.path, "noise_current")
        if weight.kind == "raw"
        else draw_name(weight.owner, "periphery")
        for weight in layers
    ]
    if not names:
        return {}, {}
    hashes = tuple(map(stable_hash, names))
    keys, of_reads = _named_keys(step_key(key), hashes, len(modified))
    weights = {weight.path: keys[i] for i, weight in enumerate(modified)}
    return weights, {
        weight.path: _of_stack(weight, keys[len(modified) + i], of_reads[i])
        for i, weight in enumerate(layers)
    }


@functools.partial(jax.jit, static_argnums=(1, 2))
def _named_keys(
    key: jax.Array, hashes: tuple[int, ...], weights: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the key of each name, and the keys of reads for names after weights."""

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = fold_in(key, np.array(hashes, np.uint32))
        of_reads = read_keys(keys[weights:])
        return jax.random.key_data(keys), jax.random.key_data(of_reads)

    wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(key))
    keys, of_reads = once(key, draw)
    return wrap(keys), wrap(of_reads)


def _of_stack(weight: AnalogWeight, key: jax.Array, of_read: jax.Array) -> jax.Array:
    """Returns the data of the keys of a layer's reads, for each entry of a stack.

    Args:
      weight: the plan of the layer's array.
      key: the key of the layer.
      of_read: `[effects]`, the keys of its reads.
    """
    if weight.stack:
        numbers = jnp.arange(math.prod(weight.stack)).reshape(weight.stack)
        of_read = read_keys(fold_in(key, numbers))
    # For the other generators, key data are consecutive threefry keys.
    return jax.random.key_data(of_read)[..., :2]


def local(plan: Plan, path: str) -> str:
    """Returns a path of the plan relative to the root."""
    if path == plan.prefix:
        return ""  # the root itself
    return path.removeprefix(f"{plan.prefix}/") if plan.prefix else path
