"""The weight side: every analog weight transformed on its way into the forward pass.

It works on the tree of parameters at the root, so it reaches stacked layers, recurrent
cells and raw parameters alike. Both frameworks call it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain import paths
from hwtrain.crossbar import largest_weight, on_crossbar
from hwtrain.physics.random import draw_key
from hwtrain.plan import AnalogWeight, Plan


def draws(plan: Plan, mode: str) -> bool:
    """Whether anything is drawn at a step in `mode`."""
    return any(weight.hardware.draws(mode) for weight in plan.weights)


def modifies(plan: Plan, mode: str) -> bool:
    """Whether any weight is modified at a step in `mode`."""
    return any(weight.hardware.modifies(mode) for weight in plan.weights)


def no_key() -> jax.Array:
    """Returns the key of steps that modify weights, by rounding, but draw nothing."""
    return jax.random.key(0)


def step_weights(
    params: paths.Tree, plan: Plan, mode: str, key: jax.Array
) -> tuple[paths.Tree, dict[str, jax.Array]]:
    """Returns the parameters of one step, and the noise keys of its layers.

    Args:
      params: nominal parameters of the root.
      plan: the plan; its prefix is not part of the paths in `params`.
      mode: `"train"` or `"chip"`.
      key: the step's key.

    Returns:
      A tree like `params`, and for every layer with modified weights, by its path in
      `params`, the `uint32` key data `[*stack, 2]`.
    """
    nominal = paths.leaves(params)
    active = {
        local(plan, weight.path): weight
        for weight in plan.weights
        if weight.hardware.modifies(mode)
    }

    def step_value(path: str, leaf: Any) -> Any:
        weight = active.get(path)
        if weight is None:
            return leaf
        scale = nominal.get(local(plan, weight.leaf("mapping_scale")))
        return _modified(weight, leaf, scale, key)

    keys = {
        path.rpartition("/")[0]: _layer_keys(weight, key)
        for path, weight in active.items()
        if weight.kind != "raw"
    }
    return paths.map_leaves(step_value, params), keys


def local(plan: Plan, path: str) -> str:
    """Returns a path of the plan relative to the root."""
    return path.removeprefix(f"{plan.prefix}/") if plan.prefix else path


def _modified(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array | None, key: jax.Array
) -> jax.Array:
    """Returns the kernel with the weight modifier of its hardware applied."""
    modifier = weight.hardware.modifier
    if modifier is None:
        return kernel
    w, s = on_crossbar(weight, kernel, scale)
    w_max = jnp.asarray(modifier.assumed_wmax, w.dtype)
    if modifier.rel_to_actual_wmax:
        w_max = largest_weight(weight, w, per_column=modifier.per_column)
    w = modifier(draw_key(key, weight.path, "weight_noise"), w, w_max)
    return jnp.asarray(w * s, kernel.dtype)


def _layer_keys(weight: AnalogWeight, key: jax.Array) -> jax.Array:
    """Returns the keys of a layer's periphery, one for each layer of a stack."""
    key = draw_key(key, weight.layer_path, "periphery")
    count = math.prod(weight.stack)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(
        jnp.arange(count, dtype=jnp.uint32)
    )
    data = jax.random.key_data(keys)
    return data.reshape(*weight.stack, data.shape[-1])
