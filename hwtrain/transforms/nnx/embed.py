"""NNX's Embed: look-ups of analog weights, and `attend` written again."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.sockets._table import add_built_in
from hwtrain.transforms import embed
from hwtrain.transforms.layer import Layer
from hwtrain.transforms.signal_side import Product


def _layer(module: Any) -> Layer:
    return embed.describe(module.num_embeddings, module.features)


def _attend(
    layer: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    query: jax.Array,
    out_sharding: Any = None,
) -> jax.Array:
    """Does what `Embed.attend` does, with an analog product."""
    query, embedding = layer.promote_dtype(
        (query, layer.embedding[...]), dtype=layer.dtype
    )
    weight, beside = weights[embed.LEAF], leaves[embed.LEAF]
    product = Product(options=(("out_sharding", out_sharding),))
    return embed.attend(weight, mode, beside, query, embedding, product)


# A look-up has no product to replace.
add_built_in((nnx.Embed,), embed.LEAF, kind="embed", layer=_layer)
add_built_in(
    (nnx.Embed,),
    embed.LEAF,
    method="attend",
    kind="embed",
    layer=_layer,
    written=_attend,
)
