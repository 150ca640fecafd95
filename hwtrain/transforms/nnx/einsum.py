"""NNX's Einsum: a stand-in has another `einsum_op`."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from hwtrain.sockets._table import add_built_in
from hwtrain.transforms import einsum
from hwtrain.transforms.layer import Layer


def _layer(module: Any) -> Layer:
    if module.einsum_op is not jnp.einsum:
        return Layer(why="it has an einsum_op of its own")
    return einsum.describe(module.einsum_str, tuple(module.kernel_shape))


add_built_in((nnx.Einsum,), "kernel", kind="einsum", layer=_layer, einsum="einsum_op")
