"""The weight side: every analog weight transformed on its way into the forward pass.

It works on the tree of parameters at the root, so it reaches stacked layers, recurrent
cells and raw parameters alike. Both frameworks call it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hwtrain import paths
from hwtrain.chips import chip_key, layer_keys
from hwtrain.clip_bounds import clipped
from hwtrain.crossbar import modified
from hwtrain.physics.random import draw_key
from hwtrain.plan import Plan
from hwtrain.transforms.strength import check_mode, strengths


def draws(plan: Plan, mode: str) -> bool:
    """Whether anything is drawn at a step in `mode`."""
    return any(
        # A raw parameter has no periphery.
        weight.hardware.draws_weights(mode)
        or (weight.kind != "raw" and weight.hardware.reads(mode))
        for weight in plan.weights
    )


def needs_root(plan: Plan, mode: str) -> bool:
    """Whether a step in `mode` goes through the root: it modifies weights, or draws."""
    return draws(plan, mode) or any(
        weight.hardware.modifies(mode) or weight.hardware.learns_clip
        for weight in plan.weights
    )


def no_key() -> jax.Array:
    """Returns the key of steps that modify weights, by rounding, but draw nothing."""
    return jax.random.key(0)


def step_weights(
    params: paths.Tree, plan: Plan, mode: str, key: jax.Array
) -> tuple[paths.Tree, dict[str, jax.Array]]:
    """Returns the parameters of one step, and what its layers need beside them.

    Args:
      params: nominal parameters of the root.
      plan: the plan; its prefix is not part of the paths in `params`.
      mode: `"train"` or `"chip"`; `"eval"` for learned clip bounds alone.
      key: the step's key.

    Returns:
      A tree like `params`, and by path in `params` leaves that are there for this step
      only: `noise_key` of every layer that needs the root, key data `[*stack, 2]`,
      `noise_strength` `[*stack]` of every layer whose noise is scaled,
      `chip_key` of every layer with frozen spreads, and the `mapping_scale` of the
      nominal kernel where it is not stored.
    """
    check_mode(mode)
    strength = strengths(plan)
    nominal = paths.leaves(params)
    weights = {local(plan, weight.path): weight for weight in plan.weights}

    def step_value(path: str, leaf: Any) -> Any:
        weight = weights.get(path)
        if weight is None:
            return leaf
        bound, chip = weight.stored_bound(nominal, plan.prefix), weight.hardware
        if chip.redraws(mode):
            return leaf  # clipped by the layer, which keeps nothing of its size
        if not chip.modifies(mode) or chip.modifies_in_layer(mode):
            return clipped(weight, leaf, bound)
        scale = weight.stored_scale(nominal, plan.prefix)
        weight_key = draw_key(key, weight.path, "weight_noise")
        noise = strength.get(weight.path)
        return modified(weight, leaf, scale, weight_key, noise, bound)

    leaves = {}
    for weight in plan.weights:
        if weight.kind == "raw":
            continue
        if weight.hardware.needs_root(mode):
            data = layer_keys(weight, key, "periphery")
            leaves[local(plan, weight.leaf("noise_key"))] = data
        if weight.path in strength:
            path = local(plan, weight.leaf("noise_strength"))
            leaves[path] = jnp.broadcast_to(strength[weight.path], weight.stack)
        path = local(plan, weight.leaf("chip_key"))
        if weight.hardware.freezes(mode) and path not in nominal:
            # Training sees a new chip at every step; without a chip, it is number 0.
            chip = key if mode == "train" else chip_key(0)
            leaves[path] = layer_keys(weight, chip, "frozen_periphery")
        path = local(plan, weight.leaf("mapping_scale"))
        if weight.hardware.converts and path not in nominal:
            bound = weight.stored_bound(nominal, plan.prefix)
            kernel = clipped(weight, nominal[local(plan, weight.path)], bound)
            scale = weight.derived_scale(weight.to_matrix(kernel))
            if scale is not None:
                leaves[path] = jax.lax.stop_gradient(scale)
    return paths.map_leaves(step_value, params), leaves


def local(plan: Plan, path: str) -> str:
    """Returns a path of the plan relative to the root."""
    return path.removeprefix(f"{plan.prefix}/") if plan.prefix else path
