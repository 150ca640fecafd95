"""NNX's Einsum: its stand-in has another `einsum_op`."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from hwtrain._flax import einsums
from hwtrain._plan.layer import Layer
from hwtrain.sockets._table import add_built_in


def _layer(module: Any) -> Layer:
    if module.einsum_op is not jnp.einsum:
        return Layer(why="it has an einsum_op of its own")
    return einsums.describe(module.einsum_str, tuple(module.kernel_shape))


add_built_in((nnx.Einsum,), "kernel", kind="einsum", layer=_layer, einsum="einsum_op")
