"""Analog parameters to plain ones."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import meta

from hwtrain import paths
from hwtrain.clip_bounds import clipped, learning
from hwtrain.leaf_names import is_effective, may_be_leaf, split
from hwtrain.physics.input_range import PROBE_SIZE
from hwtrain.plan import Plan
from hwtrain.transforms.nnx.layers import OUR_TYPES
from hwtrain.transforms.weight_side import local

_WITH_PLAN = "hwtrain.strip(params, plan), with plan = hwtrain.plan(analog, ...)"


def strip(params: Any, plan: Plan | None = None) -> Any:
    """Returns an analog model's parameters without the leaves that `analogize` added.

    A parameter of the model that has the name of one stays. The plan says which that
    are. Without it, an input range tells by its shape, and so does what has a type of
    `hwtrain` in an `nnx.State`.

    >>> layer = {"kernel": jnp.ones((4, 3)), "input_range": jnp.ones((1, 1)),
    ...          "probe": jnp.zeros((1, 1, 6))}
    >>> [list(stripped) for stripped in strip({"hidden": layer}).values()]
    [['kernel']]

    Args:
      params: nested mappings, such as Linen's `params` or an `nnx.State`.
      plan: the plan of the model; needed for learned output scales and clip bounds,
        which become part of the kernels, and where a parameter may be the model's.

    Raises:
      ValueError: for learned output scales or clip bounds without a plan: without them,
        the kernels would be those of another function; and for what may be a leaf or a
        parameter of the model.
    """
    if plan is None:
        ours = _certain(params)
    else:
        ours = _planned(params, plan)
        params = _with_output_scales(_with_clip_bounds(params, plan), plan)
    return _without(params, ours) if ours else params


def _planned(params: Any, plan: Plan) -> set[str]:
    """Returns the paths of the leaves of hardware, by the plan."""
    present = paths.leaves(params)
    of = {local(plan, w.path): w for w in plan.weights if w.kind != "raw"}
    users = {local(plan, path) for path in plan.users}
    ours = {local(plan, path) for weight in plan.weights for path in weight.owned}
    found = ours & present.keys()
    for path in present.keys() - ours - users:
        if not may_be_leaf(path, present):
            continue
        if any(owner in of for owner in split(path)[0]):
            found.add(path)  # left there by other hardware
            continue
        raise ValueError(
            f"the plan does not say whether {path!r} is a leaf of hardware or a "
            "parameter of the model: its example call does not reach it. Unite the "
            'plans: hwtrain.plan(analog, params, *example, method="...") | plan'
        )
    return found


def _certain(params: Any) -> set[str]:
    """Returns the paths of the leaves of hardware, as far as they show it themselves.

    Raises:
      ValueError: for one that may be a parameter of the model.
    """
    variables = _variables(params)
    present = paths.leaves(meta.unbox(params))
    found = set()
    for path, leaf in present.items():
        name, variable = split(path)[1], variables.get(path)
        if variable is not None and name:
            ours = isinstance(variable, OUR_TYPES)
        else:
            ours = may_be_leaf(path, present) and _shows(path, name, leaf, present)
        if ours is False:
            continue
        if name in ("output_scale", "clip_bound"):
            raise ValueError(
                f"{path} is learned: without it, the kernel beside would be that of "
                f"another function. Make it part of the kernel by {_WITH_PLAN}"
            )
        if ours is None:
            raise ValueError(
                f"{path} may be a leaf of hardware or a parameter of the model, and "
                f"nothing beside it says which. The plan does: {_WITH_PLAN}"
            )
        found.add(path)
    return found


def _variables(params: Any) -> dict[str, nnx.Variable]:
    """Returns the variables of a state by path; none of another tree."""
    flat = nnx.to_flat_state(params) if isinstance(params, nnx.State) else ()
    named = ((paths.join(keys), variable) for keys, variable in flat)
    return {path: x for path, x in named if isinstance(x, nnx.Variable)}


def _shows(path: str, name: str, leaf: Any, present: Mapping[str, Any]) -> bool | None:
    """Whether an array is a leaf of hardware; `None` where it may be the model's.

    Args:
      path: its path.
      name: the name of the leaf that it would be.
      leaf: the array, or its shape and dtype.
      present: all parameters by path.
    """
    at = path.removesuffix(name)
    stack = _stack(present.get(f"{at}input_range"), present.get(f"{at}probe"))
    if name in ("input_range", "probe"):
        return stack is not None  # there are always both
    shape, dtype = np.shape(leaf), jnp.result_type(leaf)
    if name == "chip_key":
        return dtype == jnp.uint32
    if is_effective(path):
        (array,) = split(path)[0]
        same = (np.shape(present[array]), jnp.result_type(present[array]))
        return None if same == (shape, dtype) else False
    if dtype != jnp.float32:
        return False
    if name in ("on_levels", "of_chip"):
        return True if shape == stack else None
    if len(shape) < 2:
        return False
    return True if stack is not None and shape[:-2] == stack else None


def _stack(tiles: Any, probe: Any) -> tuple[int, ...] | None:
    """Returns how layers are stacked by their input range; `None` if it is not one."""
    if tiles is None or probe is None:
        return None
    shape, dtypes = np.shape(tiles), {jnp.result_type(x) for x in (tiles, probe)}
    fits = len(shape) >= 2 and np.shape(probe) == (*shape, PROBE_SIZE)
    return shape[:-2] if fits and dtypes == {jnp.dtype("float32")} else None


def _without(params: Any, ours: set[str], above: str = "") -> Any:
    """Returns nested mappings without leaves; a mapping left with none stays."""
    entries = {}
    for name, entry in params.items():
        path = f"{above}{paths.join([name])}"
        if isinstance(entry, Mapping):
            entries[name] = _without(entry, ours, f"{path}/")
        elif path not in ours:
            entries[name] = entry
    return type(params)(entries)


def _with_clip_bounds(params: Any, plan: Plan) -> Any:
    values = paths.leaves(params)
    weights = {local(plan, weight.path): weight for weight in learning(plan)}

    def value(path: str, leaf: Any) -> Any:
        if path not in weights:
            return leaf
        bound = weights[path].stored_bound(values, plan.prefix)
        return clipped(weights[path], leaf, bound)

    return paths.map_leaves(value, params)


def _with_output_scales(params: Any, plan: Plan) -> Any:
    values = paths.leaves(params)
    scaled = [weight for weight in plan.weights if weight.hardware.scales_outputs]
    for weight in scaled:
        if weight.derived:
            raise ValueError(
                f"{weight.leaf('output_scale')} cannot become part of {weight.stored}, "
                f"which its {weight.layer} does not multiply by: {weight.derived}. "
                "Keep the analog parameters, or train without learn_out_scaling"
            )
    scales = {
        local(plan, weight.path): weight.spread(
            values[local(plan, weight.leaf("output_scale"))]
        )
        for weight in scaled
    }

    def value(path: str, leaf: Any) -> Any:
        return (leaf * scales[path]).astype(leaf.dtype) if path in scales else leaf

    return paths.map_leaves(value, params)
