"""Finds the graph of a model in the traced program of a call."""

from typing import Any

from flax import linen as nn
from flax import nnx

from hwtrain._errors import InputError
from hwtrain._flax.linen.connections import linen_connections
from hwtrain._flax.nnx.connections import nnx_connections
from hwtrain.checkpoint._description import Graph


def trace_graph(
    model: Any, variables: Any = None, *example: Any, **kwargs: Any
) -> Graph:
    """Returns the connections of a model's layers, for `export(..., graph=)`.

    The model is traced, not run. A layer is a module with its own parameters. An
    operation between two layers is a node with the name that JAX gives it, such as
    "relu"; "identity" stands for none. An addition of outputs is not a node: both
    outputs lead to the next node.

    >>> import jax, jax.numpy as jnp
    >>> model = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    >>> x = jnp.ones((1, 3))
    >>> variables = model.init(jax.random.key(0), x)
    >>> for edge in trace_graph(model, variables, x).edges:
    ...     print(*edge)
    input layers_0
    layers_0 relu
    relu layers_2
    layers_2 output

    Args:
      model: a Linen or an NNX model, analog or not.
      variables: Linen: its variables, or `params` alone; arrays, or shapes and dtypes.
        NNX: `None`.
      *example: arguments of a call, arrays with the examples first; only shapes and
        dtypes matter.
      **kwargs: keyword arguments of the call; `method=` selects another method than
        `__call__`.

    Raises:
      ValueError: if the model is neither Linen nor NNX, or there is no example.
    """
    if not isinstance(model, nn.Module | nnx.Module):
        raise InputError(
            "trace_graph takes a flax.linen.Module or a flax.nnx.Module; got "
            f"{type(model).__name__}"
        )
    method = kwargs.pop("method", None) or "__call__"
    method = getattr(method, "__name__", method)
    if not example and not kwargs:
        raise InputError(
            "how layers are connected is known only by a call: write "
            "trace_graph(model, variables, *example)"
        )
    if isinstance(model, nnx.Module):
        found = nnx_connections(model, example, kwargs, method)
    else:
        tree = variables if "params" in variables else {"params": variables}
        found = linen_connections(model, tree, example, kwargs, method)
    return Graph(nodes=found.nodes, edges=found.edges)
