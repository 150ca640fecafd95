"""NNX's Embed: look-ups of analog weights, and `attend` written again."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.transforms import embed
from hwtrain.transforms.layer import Layer
from hwtrain.transforms.nnx.stand_in import operand_marked
from hwtrain.transforms.signal_side import Product


def describe(module: Any, cls: type) -> Layer | None:
    """Returns what the plan must know of an embedding."""
    if not issubclass(cls, nnx.Embed):
        return None
    if not owned(cls):
        return Layer(why="it overrides a method of Embed")
    return embed.describe(module.num_embeddings, module.features)


def owned(cls: type) -> dict[str, tuple[str, ...]]:
    """Returns the methods that read the embedding, with its name."""
    own = issubclass(cls, nnx.Embed) and (
        (cls.__call__, cls.attend) == (nnx.Embed.__call__, nnx.Embed.attend)
    )
    return {"__call__": (embed.LEAF,), "attend": (embed.LEAF,)} if own else {}


def watched(
    layer: Any, base: type, method: str, marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns a method with what it multiplies by marked, `marked(leaf, array)`."""
    return getattr(operand_marked(layer, base, marked, embed.LEAF), method)


def call(
    layer: Any,
    base: type,
    method: str,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Looks up as ever, and does what `Embed.attend` does with an analog product."""
    if method != "attend":
        return getattr(base, method)(layer, *args, **kwargs)
    return _attend(
        layer, weights[embed.LEAF], leaves[embed.LEAF], mode, *args, **kwargs
    )


def _attend(
    layer: Any,
    weight: AnalogWeight,
    leaves: Mapping[str, jax.Array],
    mode: str,
    query: jax.Array,
    out_sharding: Any = None,
) -> jax.Array:
    query, embedding = layer.promote_dtype(
        (query, layer.embedding[...]), dtype=layer.dtype
    )
    product = Product(options=(("out_sharding", out_sharding),))
    return embed.attend(weight, mode, leaves, query, embedding, product)
