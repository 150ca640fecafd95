"""Optimisers that keep parameters of their own, or call the loss themselves."""

from typing import Any

import jax
import optax
from optax import contrib

from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan

_ANEW = "sets the weights anew from initial ones that it keeps, in every step"
_HOLDING = {
    contrib.ScheduleFreeState: (
        "optax.contrib.schedule_free",
        "evaluates with weights that it extrapolates from parameters of its own",
    ),
    contrib.COCOBState: ("optax.contrib.cocob", _ANEW),
    contrib.MechanicState: ("optax.contrib.mechanize", _ANEW),
    contrib.MadgradState: ("optax.contrib.madgrad", _ANEW),
}
"""For each type of state, the optimiser's name and what it does."""

_Lookahead: Any = optax.LookaheadState
_SEARCHES: Any = (
    optax.ScaleByZoomLinesearchState,
    optax.ScaleByBacktrackingLinesearchState,
)


def check_own_parameters(plan: Plan, state: Any) -> None:
    """Raises for a base that would evade the clip or the drift of weights.

    Also raises for a line search: it calls the whole model's loss, but only has the
    parameters that a base sees.

    Args:
      plan: the plan of the weights that are trained.
      state: the base optimiser's state.

    Raises:
      ValueError: naming the optimiser.
    """
    kinds = (*_HOLDING, _Lookahead, *_SEARCHES)
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kinds))
    for part in parts:
        if isinstance(part, _Lookahead):
            raise InputError(
                "optax.lookahead trains a pair of fast and slow parameters, and "
                "hardware_aware sees those of one model. Put it around: "
                "optax.lookahead(hardware_aware(base, plan), ...)"
            )
        if isinstance(part, _SEARCHES):
            raise InputError(
                "a line search calls the loss with the plain model's parameters, "
                "without input ranges and other leaves. Use a base without a line "
                "search, such as optax.lbfgs(learning_rate, linesearch=None)"
            )
        name, what = _HOLDING.get(type(part), ("", ""))
        for weight in plan.weights if name else ():
            clip, drifts = weight.hardware.clip, weight.hardware.drifts
            if drifts or (clip is not None and clip.active):
                effect = "drift" if drifts else "clip"
                raise InputError(
                    f"{name} {what}, so that the {effect} of {weight.path} would not "
                    f"hold for them. Take another base, such as optax.adamw, or "
                    f"hardware without: Hardware({effect}=None)"
                )
