"""Marks the layers of a Linen model to find their connections."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import unfreeze

from hwtrain._arrays import paths
from hwtrain._flax.attributes import plain_class
from hwtrain._flax.calls import divided
from hwtrain._flax.connections import Connections, connections_of, marked
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.linen.kept_leaves import AnyLeaf, kept
from hwtrain._flax.linen.prepass import analog_trace, fresh
from hwtrain._flax.linen.scopes import before_the_call, belonging


def linen_connections(
    module: nn.Module,
    variables: Mapping[str, Any],
    example: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
) -> Connections:
    """Returns the connections of the layers in a call.

    Args:
      module: the model.
      variables: its variables.
      example: the arguments of the call.
      kwargs: its keyword arguments.
      name: the method that is called.
    """
    plain, base = module.clone(), plain_class(type(module))
    internals.put(plain, __class__=base)
    told = getattr(type(module), "_hwtrain_assigned", None)
    prefix = told.name if told is not None else ""
    own = told.own_leaves if told is not None else ()
    running: list[str] = []

    def interceptor(next_function, args, kwargs, context):
        if not ours(context.module):
            return next_function(*args, **kwargs)
        held = context.module.variables.get("params", {})
        owns = any(not isinstance(leaf, Mapping) for leaf in held.values())
        # A map of a layer's variables calls it in a helper that its class lacks.
        its = hasattr(type(context.module), context.method_name)
        if running or not owns or not its or context.method_name == "setup":
            return next_function(*args, **kwargs)
        at = paths.join(context.module.path)
        path = f"{prefix}/{at}" if prefix and at else prefix or at
        running.append(path)
        try:
            return marked(next_function, path, args, kwargs)
        finally:
            running.pop()

    def method(module, *args, **kwargs):
        nonlocal ours
        with belonging(module) as ours:
            return getattr(base, name)(module, *args, **kwargs)

    ours: Callable[[nn.Module], bool] = before_the_call
    traced, static = divided(kwargs)
    leaves, treedef = jax.tree.flatten((example, traced))

    def run(variables, *arrays):
        args, given = jax.tree.unflatten(treedef, arrays)
        given = {**given, **static}
        rngs = {"dropout": jax.random.key(0)}
        outputs, _ = plain.apply(
            unfreeze(variables), *args, rngs=rngs, mutable=True, method=method, **given
        )
        return jax.tree.leaves(outputs)

    with (
        nn.intercept_methods(interceptor),
        analog_trace(("graph", next(fresh))),
        kept(AnyLeaf(own), own),
    ):
        return connections_of(run, variables, leaves)
