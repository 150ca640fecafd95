"""Whether the hardware of a model draws any noise in training."""

from hwtrain._plan.plan import Plan


def quiet_training(plan: Plan) -> str | None:
    """Returns a warning if chips differ but training draws nothing; else `None`.

    Such a model is trained as a plain one, unless its objective draws. This is no
    error: a model may be trained without noise and evaluated on chips.

    >>> quiet_training(Plan(())) is None
    True

    Args:
      plan: the plan of the model.
    """
    chips = [weight.hardware for weight in plan.weights]
    drawn = any(
        chip.draws_weights("train")
        or chip.draws_currents("train")
        # A raw parameter has no periphery.
        or (weight.kind != "raw" and chip.reads("train"))
        or (chip.drift is not None and chip.drift.draws)
        for weight, chip in zip(plan.weights, chips)
    )
    if drawn or not any(chip.frozen for chip in chips):
        return None
    return (
        "Nothing is drawn in training, though chips differ: no weight has noise of its "
        'own. Give the Hardware modifier=WeightModifierParameter(type="add_normal", '
        "std_dev=0.1), or noise in forward"
    )
