"""The noise that the weights of a layer arrive with: is it as strong as configured?"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain import paths
from hwtrain.clip_bounds import clipped
from hwtrain.crossbar import largest_weight, on_crossbar
from hwtrain.evaluate import bench
from hwtrain.evaluate.judgement import repeated, share_of, strength_of
from hwtrain.plan import AnalogWeight, Plan
from hwtrain.transforms.weight_side import local, step_weights


def modified_weights(
    weight: AnalogWeight,
    plan: Plan,
    params: paths.Tree,
    keys: list[jax.Array],
    steps: list[list[bench.Readings]],
) -> tuple[str, str | None] | None:
    """Returns the noise that a layer's weights arrive with, and what is wrong with it.

    Args:
      weight: the plan of the array.
      plan: the plan of the model.
      params: the model's parameters.
      keys: of the steps.
      steps: what was read of the layer: for each key, of each of its calls.

    Returns:
      The amount in words, and what is wrong or `None`; or `None` for no modifier.
    """
    chip = weight.hardware
    if not chip.modifies("train") or chip.modifies_in_layer("train"):
        return None
    values = paths.leaves(params)
    kernel = jnp.asarray(values[local(plan, weight.path)])
    kernel = clipped(weight, kernel, weight.stored_bound(values, plan.prefix))
    scale = weight.stored_scale(values, plan.prefix)
    w, s = on_crossbar(weight, kernel, scale)
    nominal = np.asarray(weight.to_matrix(kernel), np.float32)
    nominal = nominal.reshape(-1, *nominal.shape[-2:])
    if weight.kind == "raw" or not all(steps):
        # No layer to look into: what the root gives to the call.
        given = _given_by_root(weight, plan, params)
        matrices = np.stack([np.reshape(given(key), nominal.shape) for key in keys])
    else:
        matrices = np.stack([[np.asarray(call.w) for call in step] for step in steps])
    matrices = matrices.astype(np.float32)
    which = np.array([[_nearest(each, nominal) for each in step] for step in matrices])
    deviations = matrices - nominal[which]
    modifier: Any = chip.modifier
    amount = f"changes weights by {np.sqrt(np.mean(deviations**2)):.2g}"
    flat = deviations.reshape(len(deviations), -1)
    if modifier.type in ("drop_connect", "copy") and modifier.pdrop:
        held = nominal[which] != 0
        dropped = held & (deviations == -nominal[which])
        counts = int(dropped.sum()), int(held.sum())
        return share_of(*counts, modifier.pdrop)
    draws = chip.draws_weights("train")
    if not draws and _on_levels(weight, w):
        return "all weights lie on its levels", None
    if not flat.any(axis=1).all():
        return amount, (
            "the layer gets its nominal weights: the modifier does not reach it, or "
            "does nothing to weights like these"
        )
    if draws and repeated(flat):
        return amount, "the noise is the same at several step keys"
    if modifier.type in ("add_normal", "mult_normal") and not modifier.pdrop:
        sigma = w
        if modifier.type == "add_normal":
            sigma = jnp.asarray(modifier.assumed_wmax)
            if modifier.rel_to_actual_wmax:
                sigma = largest_weight(weight, w, per_column=modifier.per_column)
        sigma = modifier.std_dev * jnp.broadcast_to(abs(sigma * s), kernel.shape)
        each = np.asarray(weight.to_matrix(sigma), np.float32)
        each = each.reshape(nominal.shape)[which]
        with np.errstate(divide="ignore", invalid="ignore"):
            unit = np.where(each > 0, deviations / each, np.nan)
        return strength_of(unit, int((~np.isnan(unit)).sum()))
    return amount, None


def _given_by_root(
    weight: AnalogWeight, plan: Plan, params: paths.Tree
) -> Callable[[jax.Array], jax.Array]:
    """Returns what makes the matrices that a call gets in the step of a key."""

    @jax.jit
    def given(params: paths.Tree, key: jax.Array) -> jax.Array:
        step, _ = step_weights(params, plan, "train", key)
        return weight.to_matrix(paths.leaves(step)[local(plan, weight.path)])

    return functools.partial(given, params)


def _on_levels(weight: AnalogWeight, w: jax.Array) -> bool:
    """Returns whether nominal weights, in units of the crossbar, lie on levels already.

    So does the largest weight of a tile, and with it a tile that has only one.
    """
    modifier: Any = weight.hardware.modifier
    if modifier.type != "discretize":
        return False
    rounded = modifier(
        None, w, largest_weight(weight, w, per_column=modifier.per_column)
    )
    return bool(jnp.allclose(rounded, w, rtol=1e-6, atol=0))


def _nearest(w: np.ndarray, nominal: np.ndarray) -> int:
    """Returns which of the nominal matrices of a stack a matrix deviates from."""
    return int(np.argmin(np.square(w - nominal).sum(axis=(1, 2))))
