"""Distinguishes nominal weights from those of a chip."""

from typing import Any

from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan


def check_nominal(plan: Plan, params: Any, taker: str) -> None:
    """Raises for the weights of a chip, since chips are drawn from nominal weights.

    Args:
      plan: the plan.
      params: `params`, with or without the prefix; arrays or their shapes.
      taker: name of the public function that draws chips, for the message.

    Raises:
      ValueError: naming the leaf that shows it, and the way out.
    """
    found = plan.leaves_of_chip(params)
    if found:
        raise InputError(
            f"{taker} takes nominal weights, but these are a chip's: {found[0]} is "
            "stored beside them. Mismatch and programming would act twice. Pass the "
            "nominal ones (checkpoint.variables, or into(model) without chip=); to "
            "evaluate this very chip, call hwtrain.chip_mode(analog) with it"
        )
