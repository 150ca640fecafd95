"""Which options of a weight modifier have an effect, and which can be combined."""

import dataclasses
from typing import Any

from hwtrain._errors import InputError

LEVELS = ("discretize", "discretize_add_normal", "dorefa")
_NOISE = ("add_normal", "mult_normal", "discretize_add_normal", "poly", "prog_noise")
PCM = ("pcm_noise",)
GAUSSIAN = ("add_normal", "mult_normal", "poly")
_RELATIVE = (
    "add_normal",
    "discretize",
    "discretize_add_normal",
    "dorefa",
    "poly",
    "prog_noise",
    "pcm_noise",
)
_ACTIVE = (*_RELATIVE, "mult_normal", "drop_connect")


# The types that each option has an effect on.
_EFFECTIVE = {
    "std_dev": _NOISE + PCM,
    "per_column": _RELATIVE,
    "rel_to_actual_wmax": _RELATIVE,
    "res": LEVELS,
    "sto_round": LEVELS,
    "dorefa_clip": ("dorefa",),
    "pdrop": (*_ACTIVE, "copy"),
    "coeffs": ("poly", "prog_noise"),
    "g_max": ("prog_noise", "pcm_noise"),
    "pcm_zero_thres": PCM,
    "pcm_t_inference": PCM,
    "pcm_t0": PCM,
    "pcm_prob_at_reset": PCM,
    "pcm_prob_at_gmax": PCM,
    "pcm_prob_at_random": PCM,
    "reparameterized": (*_ACTIVE, "copy"),
    "enable_during_test": (*_ACTIVE, "copy"),
    "per_batch_sample": (*_ACTIVE, "copy"),
    "per_vector": GAUSSIAN,
    "redraw": (*_ACTIVE, "copy"),
    "copy_last_column": (*_ACTIVE, "copy"),
}


def check(modifier: Any) -> None:
    """Raises for options without effect, missing options and exclusive ones.

    Args:
      modifier: a `WeightModifierParameter`.
    """
    for field in dataclasses.fields(modifier):
        types = _EFFECTIVE.get(field.name)
        value = getattr(modifier, field.name)
        if types and modifier.type not in types and value != field.default:
            raise InputError(
                f'{field.name}={value} does nothing with type="{modifier.type}"; leave '
                f"it out, or use a type that takes it: {', '.join(types)}"
            )
    if modifier.type in LEVELS and modifier.res == 0:
        raise InputError(
            f'type="{modifier.type}" needs the step of its levels: write res=254, the '
            "number of steps, or res=1/254"
        )
    if modifier.rel_to_actual_wmax and modifier.assumed_wmax != 1.0:
        raise InputError(
            f"assumed_wmax={modifier.assumed_wmax} does nothing while A is taken from "
            "the weights; write rel_to_actual_wmax=False too, or leave it out"
        )
    if modifier.coeffs == ():
        raise InputError("coeffs must hold at least c_0; got none")
    stuck = sum(modifier.stuck)
    if stuck > 1:
        raise InputError(
            "pcm_prob_at_reset, pcm_prob_at_gmax and pcm_prob_at_random must not "
            f"sum to more than 1; got {stuck}"
        )
    _check_inputs(modifier)


def _check_inputs(modifier: Any) -> None:
    """Raises for draws inside the layer that draw nothing, or that are impossible."""
    ways = ("per_vector", "per_batch_sample", "redraw")
    given = [name for name in ways if getattr(modifier, name)]
    if given and not modifier.draws:
        raise InputError(
            f"{given[0]}=True does nothing, because this modifier draws nothing; leave "
            "it out, or write std_dev, pdrop or sto_round"
        )
    if modifier.redraw and len(given) > 1:
        raise InputError(
            f"redraw=True does nothing with {given[0]}=True, which keeps no weights "
            "for the backward pass anyway; leave one of the two out"
        )
    others = ("per_batch_sample", "copy_last_column", "pdrop", "reparameterized")
    for name in others:
        if modifier.per_vector and getattr(modifier, name):
            raise InputError(
                "per_vector=True draws normal numbers at the output, and takes no "
                f"{name}; leave one of the two out"
            )
