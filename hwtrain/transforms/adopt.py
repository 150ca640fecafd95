"""Plain parameters to analog ones, and back."""

from collections.abc import Container, Mapping
from typing import Any

from flax import nnx
from flax.core import meta

from hwtrain import paths
from hwtrain.clip_bounds import clipped, learning
from hwtrain.plan import OWNERS, Plan
from hwtrain.transforms.analogize import plan as plan_of
from hwtrain.transforms.layer import added
from hwtrain.transforms.nnx.layers import LEAF_TYPES
from hwtrain.transforms.signal_side import initial_leaves
from hwtrain.transforms.weight_side import local


def adopt(analog: Any, params: Any, *example: Any, **kwargs: Any) -> Any:
    """Returns a plain checkpoint's parameters with the leaves of an analog model.

    Input ranges start at `init_value`, mapping scales from the kernels. Leaves that are
    there already are kept.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from hwtrain.hardware import Hardware, InputRangeParameter
    >>> from hwtrain.transforms.analogize import analogize
    >>> x = jnp.ones((1, 3))
    >>> params = nn.Dense(4).init(jax.random.key(0), x)["params"]
    >>> analog = analogize(nn.Dense(4), Hardware(input_range=InputRangeParameter()))
    >>> sorted(adopt(analog, params, x))
    ['bias', 'input_range', 'kernel', 'probe']

    Args:
      analog: the analog model.
      params: the plain model's `params`, or Linen variables that hold them.
      *example: Linen: arguments of a call, as for `plan`.
      **kwargs: Linen: keyword arguments of the call.

    Returns:
      A tree like `params`.
    """
    found = plan_of(analog, params, *example, **kwargs)
    if "params" in params and isinstance(params["params"], Mapping):
        inner = _with_leaves(found, params["params"])
        return type(params)({**params, "params": inner})
    return _with_leaves(found, params)


def _with_leaves(found: Any, params: Any) -> Any:
    present = paths.leaves(meta.unbox(params))
    entries = {}
    for weight in found.weights:
        if weight.kind == "raw":
            continue
        kernel = present[local(found, weight.path)]
        for name, value in initial_leaves(weight, kernel).items():
            path = local(found, weight.leaf(name))
            if path not in present:
                boxed = isinstance(params, nnx.State)
                entries[path] = LEAF_TYPES[name](value) if boxed else value
    return paths.insert(params, entries)


def strip(params: Any, plan: Plan | None = None) -> Any:
    """Returns an analog model's parameters without the leaves that `analogize` added.

    >>> strip({"hidden": {"kernel": 1, "input_range": 2, "probe": 3}})
    {'hidden': {'kernel': 1}}

    Args:
      params: nested mappings, such as Linen's `params` or an `nnx.State`.
      plan: the plan of the model; needed only for learned output scales and clip
        bounds, which become part of the kernels.

    Raises:
      ValueError: for learned output scales or clip bounds without a plan: without them,
        the kernels would be those of another function.
    """
    if plan is not None:
        params = _with_output_scales(_with_clip_bounds(params, plan), plan)
    else:
        present = paths.leaves(params)
        learned = [
            path
            for path in present
            if path.endswith(("output_scale", "clip_bound")) and _ours(path, present)
        ]
        if learned:
            raise ValueError(
                f"{learned[0]} is learned: without it, the kernel beside would be that "
                "of another function. Make it part of the kernel by hwtrain.strip("
                "params, plan), with plan = hwtrain.plan(analog, params, *example)"
            )
    return _stripped(params)


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
    scales = {
        local(plan, weight.path): weight.spread(
            values[local(plan, weight.leaf("output_scale"))]
        )
        for weight in plan.weights
        if weight.hardware.scales_outputs
    }

    def scaled(path: str, leaf: Any) -> Any:
        return (leaf * scales[path]).astype(leaf.dtype) if path in scales else leaf

    return paths.map_leaves(scaled, params)


def _stripped(params: Any) -> Any:
    entries = {
        name: _stripped(entry) if isinstance(entry, Mapping) else entry
        for name, entry in params.items()
        if isinstance(entry, Mapping) or not _ours(str(name), params)
    }
    return type(params)(entries)


def _ours(path: str, present: Container[Any]) -> bool:
    """Whether a leaf is one that `analogize` puts beside an array."""
    layer, _, name = path.rpartition("/")
    owners = (f"{layer}/{owner}".removeprefix("/") for owner in OWNERS)
    return added(name) and any(owner in present for owner in owners)
