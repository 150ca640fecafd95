"""Linen's Embed: look-ups of analog weights, and `attend` written again."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from hwtrain.plan import AnalogWeight
from hwtrain.transforms import embed
from hwtrain.transforms.layer import Layer
from hwtrain.transforms.linen import flax_internals as internals
from hwtrain.transforms.linen.fields import operand_marked


def describe(
    module: Any, cls: type, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Layer | None:
    """Returns what the plan must know of an embedding."""
    if not issubclass(cls, nn.Embed) or method not in ("__call__", "attend"):
        return None
    if not owned(cls, method):
        return Layer(why="it overrides a method of Embed")
    return embed.describe(module.num_embeddings, module.features)


def owned(cls: type, method: str) -> tuple[str, ...]:
    """Returns the names of the arrays that a method reads."""
    own = issubclass(cls, nn.Embed) and (
        (cls.__call__, cls.attend) == (nn.Embed.__call__, nn.Embed.attend)
    )
    return (embed.LEAF,) if own and method in ("__call__", "attend") else ()


def watched(
    module: Any,
    marked: Callable[[str, Any], Any],
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a layer with what it multiplies by marked, `marked(leaf, array)`."""
    with operand_marked(module, marked, embed.LEAF):
        return next_function(*args, **kwargs)


def call(
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    context: internals.InterceptorContext,
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Looks up as ever, and does what `Embed.attend` does with an analog product."""
    if context.method_name != "attend":
        return next_function(*args, **kwargs)
    return _attend(
        weights[embed.LEAF], leaves[embed.LEAF], mode, context, *args, **kwargs
    )


def _attend(weight, leaves, mode: str, context: Any, query: jax.Array) -> jax.Array:
    module = context.module
    query, embedding = module.promote_dtype(query, module.embedding, dtype=module.dtype)
    return embed.attend(weight, mode, leaves, query, embedding)
