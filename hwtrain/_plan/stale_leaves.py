"""Finds leaves that belong to other weights, for example after loading weights.

States that training may reach are never refused, nor averages over its steps. So only
states that no update can produce are errors: see `LeafSpec.fits`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan

_WAY_OUT = (
    "Weights that were loaded after analogize need leaves of their own: params = "
    "hwtrain.adopt(analog, hwtrain.strip(params, plan), *example)"
)


def check_fit(plan: Plan, params: Any) -> None:
    """Raises for leaves that cannot belong to their weights.

    The weights of a chip pass: mismatch and drift move them out of their leaves' range.

    Args:
      plan: the plan.
      params: `params`, with or without the prefix. Traced values cannot be checked and
        pass.

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
        for spec in weight.leaves():
            leaf = _value(plan, present, weight.leaf(spec))
            if spec.fits is None or leaf is None:
                continue
            why = spec.fits(weight, leaf, _value(plan, present, weight.path))
            if why:
                raise InputError(f"{weight.leaf(spec)} {why}. {_WAY_OUT}")


def _value(plan: Plan, present: Mapping[str, Any], path: str) -> Any:
    """Returns a parameter; `None` if it is missing or traced."""
    leaf = present.get(path, present.get(path.removeprefix(f"{plan.prefix}/")))
    concrete = isinstance(leaf, jax.Array | np.ndarray) and not isinstance(leaf, Tracer)
    return leaf if concrete else None
