"""Linen's Embed: look-ups of analog weights, and `attend` written again."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from hwtrain.plan import AnalogWeight
from hwtrain.sockets._table import add_built_in
from hwtrain.transforms import embed
from hwtrain.transforms.layer import Layer


def _layer(module: Any, *args: Any, **kwargs: Any) -> Layer:
    return embed.describe(module.num_embeddings, module.features)


def _attend(
    module: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    query: jax.Array,
) -> jax.Array:
    """Does what `Embed.attend` does, with an analog product."""
    query, embedding = module.promote_dtype(query, module.embedding, dtype=module.dtype)
    return embed.attend(weights[embed.LEAF], mode, leaves[embed.LEAF], query, embedding)


# A look-up has no product to replace.
add_built_in((nn.Embed,), embed.LEAF, kind="embed", layer=_layer)
add_built_in(
    (nn.Embed,),
    embed.LEAF,
    method="attend",
    kind="embed",
    layer=_layer,
    written=_attend,
)
