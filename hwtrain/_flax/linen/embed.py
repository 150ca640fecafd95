"""Linen's Embed: look-ups of analog weights, and a reimplemented `attend`."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from hwtrain._flax import embeddings
from hwtrain._plan.layer import Layer
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import add_built_in


def _layer(module: Any, *args: Any, **kwargs: Any) -> Layer:
    return embeddings.describe(module.num_embeddings, module.features)


def _attend(
    module: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    query: jax.Array,
) -> jax.Array:
    """Reimplements `Embed.attend` with an analog product."""
    query, embedding = module.promote_dtype(query, module.embedding, dtype=module.dtype)
    return embeddings.attend(
        weights[embeddings.LEAF], mode, leaves[embeddings.LEAF], query, embedding
    )


# A look-up has no product to replace.
add_built_in((nn.Embed,), embeddings.LEAF, kind="embed", layer=_layer)


add_built_in(
    (nn.Embed,),
    embeddings.LEAF,
    method="attend",
    kind="embed",
    layer=_layer,
    written=_attend,
)
