"""Linen's Dense and DenseGeneral: their `dot_general` is replaced for a call."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from hwtrain._plan.layer import Layer, dense_layer
from hwtrain.sockets._table import add_built_in


def _layer(module: Any, inputs: Any = None) -> Layer:
    if not jnp.ndim(inputs):
        return Layer(why="it is called without an array")
    shape = jnp.shape(inputs)
    features, axis, batch = (
        tuple(given) if isinstance(given, Iterable) else (given,)
        for given in (
            module.features,
            getattr(module, "axis", -1),
            getattr(module, "batch_dims", ()),
        )
    )
    # Flax sorts the axes by their order in the inputs, however they are given.
    stack = tuple(shape[i] for i in sorted(i % len(shape) for i in batch))
    sizes = tuple(shape[i] for i in sorted(i % len(shape) for i in axis))
    return dense_layer(stack, sizes, features)


add_built_in(
    (nn.Dense, nn.DenseGeneral),
    "kernel",
    kind="dense",
    layer=_layer,
    dot_general="dot_general",
)
