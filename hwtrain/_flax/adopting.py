"""Turns plain parameters into analog ones."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from flax.core import meta

from hwtrain._arrays import paths
from hwtrain._arrays.processes import together
from hwtrain._arrays.shared import is_shared, placed_beside, require_alike
from hwtrain._flax.functional import require_same_plan
from hwtrain._flax.modes import plan as plan_of
from hwtrain._flax.nnx.layers import TYPES, PartLeaf
from hwtrain._flax.signal_side import initial_leaves
from hwtrain._flax.weight_side import local


def adopt(analog: Any, params: Any, *example: Any, **kwargs: Any) -> Any:
    """Returns a plain model's parameters with the leaves of an analog model added.

    Input ranges start at `init_value`, and mapping scales follow from the kernels.
    Existing leaves are kept.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from hwtrain import Hardware, InputRangeParameter
    >>> from hwtrain import analogize
    >>> x = jnp.ones((1, 3))
    >>> params = nn.Dense(4).init(jax.random.key(0), x)["params"]
    >>> analog = analogize(nn.Dense(4), Hardware(input_range=InputRangeParameter()))
    >>> sorted(adopt(analog, params, x))
    ['bias', 'input_range', 'kernel', 'probe']

    Args:
      analog: the analog model.
      params: the plain model's `params`, or Linen variables that contain them.
      *example: Linen: arguments of a call, as for `plan`.
      **kwargs: Linen: keyword arguments of the call.

    Returns:
      A tree like `params`.
    """
    shared = is_shared({"params": params, "example": example, "kwargs": kwargs})
    with together(shared):
        found = plan_of(analog, params, *example, **kwargs)
    require_same_plan(found, shared)
    if shared:
        require_alike(params)
    if "params" in params and isinstance(params["params"], Mapping):
        inner = _with_leaves(found, params["params"], shared)
        return type(params)({**params, "params": inner})
    return _with_leaves(found, params, shared)


def _with_leaves(found: Any, params: Any, shared: bool) -> Any:
    present = paths.leaves(meta.unbox(params))
    kernels = [
        (weight, present[local(found, weight.path)])
        for weight in found.weights
        if weight.kind != "raw"
    ]
    # First the reductions of kernels, in which several processes take part.
    initial = [initial_leaves(weight, kernel) for weight, kernel in kernels]
    entries = {}
    with together(shared):
        for (weight, kernel), values in zip(kernels, initial):
            for name, value in values.items():
                path = local(found, weight.leaf(name))
                if path not in present:
                    value = placed_beside(kernel, value)
                    boxed = isinstance(params, nnx.State)
                    entries[path] = TYPES.get(name, PartLeaf)(value) if boxed else value
        return paths.insert(params, entries)
