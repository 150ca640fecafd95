"""Checks an optimiser's parameter tree against the plan."""

from typing import Any

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._parts.leaf import LeafSpec, Trained
from hwtrain._plan.leaf_names import may_be_leaf, split
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery.input_range import PROBE, RANGE


def require(params: Any, name: str) -> None:
    """Raises if a transformation that needs the parameters did not get them."""
    if params is None:
        raise InputError(
            f"{name} needs the parameters: write tx.update(grads, state, params)"
        )


def ranged(plan: Plan) -> list[AnalogWeight]:
    """Returns the trained weights whose layers have an input range."""
    return [weight for weight in plan.trained.weights if weight.ranged]


def trained_by(plan: Plan, rule: Trained | None) -> dict[str, LeafSpec]:
    """Returns the leaves by path that `rule` trains; with `None`, untrained ones."""
    found = plan.leaves().items()
    return {path: leaf for path, (_, leaf) in found if leaf.trained == rule}


def check(plan: Plan, params: Any) -> None:
    """Raises unless a tree has the plan's leaves, and no unknown ranges or probes.

    Leaves that the plan's rules freeze may be missing.

    Raises:
      ValueError: naming the first path that is missing, of another shape, or unknown.
    """
    present = paths.leaves(params)
    _check_filter(plan, present)
    plan.trained.check_weights(params)
    known = _all_shapes(plan)
    for path, shapes in _all_shapes(plan.trained).items():
        if path not in present:
            raise InputError(
                f"the parameters have no {path!r}. They seem to come from the plain "
                "model; write params = hwtrain.adopt(analog, params, *example) first. "
                "Or a filter leaves it out: write nnx.Optimizer(model, tx, "
                "wrt=nnx.Param), and Rule(..., frozen=True) for what is not trained"
            )
        found = tuple(present[path].shape)
        if found not in shapes:
            expected = " or ".join(map(str, shapes))
            raise InputError(
                f"{path} has the shape {found}, but the hardware's tiles ask for "
                f"{expected}. It seems to come from other hardware; remove it with "
                "hwtrain.strip(params, plan), and write params = "
                "hwtrain.adopt(analog, params, *example)"
            )
    for path in present:
        layer = path.rpartition("/")[0]
        if path in known or path in plan.users or not path.startswith(plan.prefix):
            continue
        ranged = split(path)[1] in (RANGE.name, PROBE.name)
        if ranged and may_be_leaf(path, present):
            raise InputError(
                f"the plan does not know {path!r}: its example call does not reach "
                f"{layer!r}, or that belongs to an analog model of its own. Unite "
                'the plans: hwtrain.plan(analog, params, *example, method="...") '
                "| plan"
            )


def _check_filter(plan: Plan, present: dict[str, Any]) -> None:
    """Raises if the parameters are the plan's, with trained weights filtered out."""
    missing = [path for path in plan.trained if path not in present]
    digital = {entry.path for entry in plan.digital}
    if missing and present and all(p in plan or p in digital for p in present):
        layer = plan[missing[0]].layer_path
        raise InputError(
            f"the optimiser gets {len(present)} parameters of the model, but not the "
            f"analog weight {missing[0]!r}, which the plan trains: a filter leaves it "
            "out, such as wrt= of nnx.Optimizer. If it is to stay as it is, write "
            f"Rule({layer!r}, hardware, frozen=True) for it in hwtrain.analogize; if "
            "not, nnx.Optimizer(model, tx, wrt=nnx.Param)"
        )


def _all_shapes(plan: Plan) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Returns the possible shapes, by path, of all leaves beside the kernels."""
    return {path: x.shapes_of(weight) for path, (weight, x) in plan.leaves().items()}
