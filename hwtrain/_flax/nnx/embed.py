"""NNX's Embed: look-ups of analog weights, and a reimplemented `attend`."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain._flax import embeddings
from hwtrain._flax.signal_side import Product
from hwtrain._plan.layer import Layer
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import add_built_in


def _layer(module: Any) -> Layer:
    return embeddings.describe(module.num_embeddings, module.features)


def _attend(
    layer: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    query: jax.Array,
    out_sharding: Any = None,
) -> jax.Array:
    """Reimplements `Embed.attend` with an analog product."""
    query, embedding = layer.promote_dtype(
        (query, layer.embedding[...]), dtype=layer.dtype
    )
    weight, beside = weights[embeddings.LEAF], leaves[embeddings.LEAF]
    product = Product(options=(("out_sharding", out_sharding),))
    return embeddings.attend(weight, mode, beside, query, embedding, product)


# A look-up has no product to replace.
add_built_in((nnx.Embed,), embeddings.LEAF, kind="embed", layer=_layer)


add_built_in(
    (nnx.Embed,),
    embeddings.LEAF,
    method="attend",
    kind="embed",
    layer=_layer,
    written=_attend,
)
