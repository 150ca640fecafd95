"""What a parameter tree holds for the optimiser, checked against the plan."""

from typing import Any

from hwtrain import paths
from hwtrain.plan import AnalogWeight, Plan


def require(params: Any, name: str) -> None:
    """Raises if a transformation that needs the parameters did not get them."""
    if params is None:
        raise ValueError(
            f"{name} needs the parameters: write tx.update(grads, state, params)"
        )


def ranged(plan: Plan) -> list[AnalogWeight]:
    """Returns the weights whose layers have an input range."""
    return [weight for weight in plan.weights if weight.ranged]


def added(plan: Plan) -> set[str]:
    """Returns the paths of the leaves that `analogize` put beside the kernels."""
    names = [
        (weight.leaf("input_range"), weight.leaf("probe"))
        for weight in plan.weights
        if weight.ranged
    ]
    scales = [
        weight.leaf("mapping_scale")
        for weight in plan.weights
        if weight.hardware.stores_scale and weight.kind != "raw"
    ]
    return {path for pair in names for path in pair} | set(scales)


def check(plan: Plan, params: Any) -> None:
    """Raises if a tree lacks what the plan says it holds.

    Raises:
      ValueError: naming the first path that is missing.
    """
    present = paths.leaves(params)
    for weight in plan.weights:
        if weight.path not in present:
            hint = (
                f" The plan has the prefix {plan.prefix!r}, from analogize(name=): it "
                "is for the parameters of the model around."
                if plan.prefix
                else " Pass `params`, not the variables around them."
            )
            raise ValueError(
                f"the plan has {weight.path!r}, but the parameters do not; they have "
                f"{sorted(present)}.{hint}"
            )
    for path in sorted(added(plan)):
        if path not in present:
            raise ValueError(
                f"the parameters have no {path!r}. They seem to come from the plain "
                "model; write params = hwtrain.adopt(analog, params, *example) first"
            )
