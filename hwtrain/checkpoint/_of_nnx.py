"""Converts an NNX model's variables to collections, as stored in a checkpoint."""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from hwtrain._arrays import paths
from hwtrain._flax.nnx.layers import PASSING
from hwtrain._flax.nnx.root import claim_chip_leaves
from hwtrain.checkpoint._errors import HardwareCheckpointError

CONSTANTS = "constants"
"""The collection of arrays that are not variables."""


def collections_of(model: Any) -> dict[str, Any]:
    """Returns the variables of an NNX model by collection, in nested dicts.

    Parameters form `params` and statistics `batch_stats`, as in Linen; variables of
    other types form collections named as Flax registers the type. Rng streams, caches
    and intermediates of a call are left out.

    Args:
      model: a module, or its `nnx.State`.
    """
    state = nnx.state(model) if isinstance(model, nnx.Module) else model
    found: dict[str, dict[tuple[Any, ...], Any]] = {"params": {}}
    for keys, variable in nnx.to_flat_state(state):
        if isinstance(variable, PASSING):
            continue
        # The raw value, because a variable may transform it on access.
        own = isinstance(variable, nnx.Variable)
        value = variable.get_raw_value() if own else variable
        # NNX norms name their statistics by paths, which are tuples.
        named = tuple(str(key) if isinstance(key, tuple) else key for key in keys)
        found.setdefault(_collection(variable), {})[named] = value
    return {name: unflatten_dict(leaves) for name, leaves in found.items()}


def filled(
    model: Any, variables: Mapping[str, Any], of_chip: Container[str] = ()
) -> Any:
    """Returns a copy of an NNX model with the values of a checkpoint.

    Args:
      model: the module; it is not changed.
      variables: values by collection.
      of_chip: paths of parameters that belong to a chip's weights, which the model need
        not have.

    Raises:
      HardwareCheckpointError: if a variable gets no value, or a value has no variable
        or one of another shape.
    """
    if not isinstance(model, nnx.Module):
        raise HardwareCheckpointError(
            f"into() fills an NNX module, got a {type(model).__name__}. A Linen model "
            "holds no variables: model.apply(checkpoint.variables, ...)"
        )
    copy = nnx.clone(model)
    own = {name: paths.leaves(tree) for name, tree in collections_of(copy).items()}
    given = {name: paths.leaves(tree) for name, tree in variables.items()}
    for name in sorted(own.keys() | given.keys()):
        more = of_chip if name == "params" else ()
        _check(name, own.get(name, {}), given.get(name, {}), more)
    state = nnx.to_flat_state(nnx.state(copy))
    named = {str(key): key for keys, _ in state for key in keys}
    tuples = {name: key for name, key in named.items() if isinstance(key, tuple)}
    for tree in variables.values():
        nnx.update(copy, _renamed(tree, tuples))
    plan = getattr(copy, "analog_plan", None)
    if plan is not None:
        claim_chip_leaves(copy, plan)
    return copy


def _renamed(tree: Any, names: Mapping[str, Any]) -> Any:
    """Returns nested mappings with some entries renamed."""
    if not isinstance(tree, Mapping) or not names:
        return tree
    return {names.get(name, name): _renamed(tree[name], names) for name in tree}


def _collection(variable: Any) -> str:
    if isinstance(variable, nnx.Param):
        return "params"
    if not isinstance(variable, nnx.Variable):
        return CONSTANTS
    return nnx.variable_name_from_type(type(variable), allow_register=True)


def _check(
    name: str,
    own: Mapping[str, Any],
    given: Mapping[str, Any],
    of_chip: Container[str],
) -> None:
    """Raises unless model and checkpoint have the same values of a collection."""
    chips = {path for path in given.keys() - own.keys() if path in of_chip}
    missing = sorted(own.keys() - given.keys())
    unknown = sorted(given.keys() - own.keys() - chips)
    if missing or unknown:
        what = [f"the checkpoint has no {name}/{path}" for path in missing]
        what += [f"the model has no {name}/{path}" for path in unknown]
        raise HardwareCheckpointError(
            f"the model is not the one that was exported: {'; '.join(what[:5])}. Build "
            "it as it was, and analogize it with the same hardware"
        )
    for path, value in given.items():
        shapes = np.shape(own.get(path, value)), np.shape(value)
        if shapes[0] != shapes[1]:
            raise HardwareCheckpointError(
                f"{name}/{path} has the shape {shapes[1]} in the checkpoint and "
                f"{shapes[0]} in the model; build the model as it was exported"
            )
