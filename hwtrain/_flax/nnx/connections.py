"""Marks the layers of an NNX model to find their connections."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain._flax.attributes import plain_class
from hwtrain._flax.calls import divided
from hwtrain._flax.connections import Connections, connections_of, marked
from hwtrain._flax.nnx.step import modules_of


def nnx_connections(
    model: Any, example: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> Connections:
    """Returns the connections of the layers in a call.

    Args:
      model: the model.
      example: the arguments of the call.
      kwargs: its keyword arguments.
      name: the method that is called.
    """
    told = getattr(model, "analog_assigned", None)
    prefix = told.name if told is not None else ""
    model = nnx.clone(model)
    running: list[str] = []
    for path, module in modules_of(model).items():
        base = plain_class(type(module))
        owns = any(isinstance(value, nnx.Param) for value in vars(module).values())
        full = "/".join(name for name in (prefix, path) if name)
        module.__class__ = _marking(base, full, running) if owns else base
    traced, static = divided(kwargs)
    leaves, treedef = jax.tree.flatten((example, traced))
    graphdef, state = nnx.split(model)

    def run(state, *arrays):
        args, given = jax.tree.unflatten(treedef, arrays)
        method = getattr(nnx.merge(graphdef, state), name)
        return jax.tree.leaves(method(*args, **given, **static))

    return connections_of(run, state, leaves)


def _marking(base: type, path: str, running: list[str]) -> type:
    def call(self, *args, **kwargs):
        original: Any = base.__call__
        if running:
            return original(self, *args, **kwargs)
        running.append(path)
        try:
            return marked(lambda *a, **k: original(self, *a, **k), path, args, kwargs)
        finally:
            running.pop()

    return type(
        base.__name__, (base,), {"__call__": call, "__module__": base.__module__}
    )
