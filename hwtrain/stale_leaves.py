"""Leaves beside a kernel that belong to other weights, as after loading some.

What training may lead to is never refused, nor an average over its steps. So only what
no update can make is certain: see `largest_stored`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hwtrain import paths
from hwtrain.physics import tiling
from hwtrain.plan import AnalogWeight, Plan

_ROUNDING = 1.02
"""A narrow dtype rounds weights beyond their bound."""

_WAY_OUT = (
    "Weights that were loaded after analogize need leaves of their own: params = "
    "hwtrain.adopt(analog, hwtrain.strip(params, plan), *example)"
)


def largest_stored(weight: AnalogWeight) -> float | None:
    r"""Returns the largest weight, in units of a stored scale, that training leads to.

    A scale starts with the largest weight at omega. Remapping comes last in an update
    and leaves the largest at `remapped_wmax`, whatever the clip is; without it, the
    scale stays, and a fixed value bounds the weights. An average of such weights is no
    larger than that of their bounds.

    Returns:
      `None` where nothing bounds it, or the scale is derived: without omega, where the
      first scale is 1 for weights of any size; with an average of channels alone, whose
      bound grows with the weights; with `max_scale_range`, which cuts scales.
    """
    mapping, chip = weight.hardware.mapping, weight.hardware
    omega = 0.0 if mapping is None else mapping.weight_scaling_omega
    if not weight.stores_scale or omega == 0:
        return None
    bounds = [omega]
    if chip.clip is not None and chip.clip.fixed_value is not None:
        bounds.append(chip.clip.fixed_value)
    if chip.remap is not None and chip.remap.active:
        if chip.remap.max_scale_range:
            return None
        bounds.append(chip.remap.remapped_wmax)
    return max(bounds) if len(bounds) > 1 else None


def check_fit(plan: Plan, params: Any) -> None:
    """Raises for leaves that their weights can never have had.

    The weights of a chip pass: mismatch and drift take them beyond their leaves.

    Args:
      plan: the plan.
      params: `params`, with or without the prefix; what is traced has no values to look
        at, and passes.

    Raises:
      ValueError: naming the first such leaf, and the way out.
    """
    present = paths.leaves(params)
    if plan.leaves_of_chip(params):
        return
    with jax.ensure_compile_time_eval():  # constants of a program have values
        _check(plan, present)


def _check(plan: Plan, present: Mapping[str, Any]) -> None:
    for weight in plan.weights:
        for name in ("mapping_scale", "clip_bound"):
            if name in weight.leaf_shapes:
                _check_positive(weight.leaf(name), _value(plan, present, weight, name))
        scale = _value(plan, present, weight, "mapping_scale")
        if scale is None or not weight.stores_scale:
            continue
        _check_one(weight, scale)
        kernel = _value(plan, present, weight)
        if kernel is not None:
            _check_largest(weight, kernel, scale)


def _value(
    plan: Plan, present: Mapping[str, Any], weight: AnalogWeight, name: str = ""
) -> Any:
    """Returns a weight, or a leaf beside it; `None` if it has no values here."""
    path = weight.leaf(name) if name else weight.path
    leaf = present.get(path, present.get(path.removeprefix(f"{plan.prefix}/")))
    concrete = isinstance(leaf, jax.Array | np.ndarray) and not isinstance(leaf, Tracer)
    return leaf if concrete else None


def _check_positive(path: str, leaf: Any) -> None:
    # What is not finite has an error of its own.
    if leaf is not None and bool(jnp.any(jnp.asarray(leaf) <= 0)):
        raise ValueError(
            f"{path} is {float(jnp.min(jnp.asarray(leaf))):.3g} at its smallest, and "
            f"never zero or less. {_WAY_OUT}"
        )


def _check_one(weight: AnalogWeight, scale: Any) -> None:
    """Raises for a scale that nothing can have moved from 1."""
    mapping, chip = weight.hardware.mapping, weight.hardware
    if chip.remaps or (mapping is not None and mapping.weight_scaling_omega):
        return
    found = jnp.asarray(scale, jnp.float32)
    far = max(
        float(jnp.min(found)), float(jnp.max(found)), key=lambda value: abs(value - 1)
    )
    if not abs(far - 1) < _ROUNDING - 1:
        raise ValueError(
            f"{weight.leaf('mapping_scale')} is {far:.3g}, but the hardware of "
            f"{weight.path} has no weight_scaling_omega and no remap: its scale is 1. "
            f"It seems to come from other hardware. {_WAY_OUT}"
        )


def _check_largest(weight: AnalogWeight, kernel: Any, scale: Any) -> None:
    largest = largest_stored(weight)
    if largest is None:
        return
    matrix = weight.to_matrix(jnp.asarray(kernel, jnp.float32))
    w_max = tiling.absolute_maximum(matrix, weight.row_sizes, per_column=True)
    found = float(jnp.max(w_max / weight.of_columns(jnp.asarray(scale))))
    if found > _ROUNDING * largest:
        raise ValueError(
            f"{weight.leaf('mapping_scale')} belongs to other weights than "
            f"{weight.path}: in its unit the largest is {found:.3g}, where {largest:g} "
            f"is the most that clip and mapping leave. {_WAY_OUT}"
        )
