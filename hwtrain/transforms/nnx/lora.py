"""NNX's LoRA, whose `__call__` is written again: its factors lie on two crossbars.

`LoRALinear` is a `Linear` with a LoRA inside, and its base module a layer of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.transforms.effective import held
from hwtrain.transforms.layer import Layer, LayerWeight
from hwtrain.transforms.nnx.stand_in import operand_marked
from hwtrain.transforms.signal_side import analog_matmul, has_signal_side

FACTORS = ("lora_a", "lora_b")


def describe(module: Any, cls: type) -> Layer | None:
    """Returns what the plan must know of the factors of a LoRA."""
    if not issubclass(cls, nnx.LoRA):
        return None
    if not owned(cls):
        return Layer(why="it overrides LoRA.__call__")
    rank = module.lora_a.shape[-1]
    shapes = ((module.in_features, rank), (rank, module.out_features))
    weights = (
        LayerWeight(leaf=leaf, shape=shape, rows=(0,), columns=(1,))
        for leaf, shape in zip(FACTORS, shapes)
    )
    return Layer(kind="lora", weights=tuple(weights))


def owned(cls: type) -> dict[str, tuple[str, ...]]:
    """Returns the methods that multiply, with the names of the arrays they need."""
    ours = issubclass(cls, nnx.LoRA) and cls.__call__ is nnx.LoRA.__call__
    return {"__call__": FACTORS} if ours else {}


def watched(
    layer: Any, base: type, method: str, marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns a method with what it multiplies by marked, `marked(leaf, array)`."""
    return getattr(operand_marked(layer, base, marked, *FACTORS), method)


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
    """Does what `LoRA.__call__` does, with its two products made analog."""

    def multiply(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        weight = weights.get(name)
        if weight is None or not has_signal_side(weight):
            return jnp.matmul(x, w)
        beside, w = held(weight, mode, leaves[name], w)
        return analog_matmul(weight, mode, beside, x, w)

    def adapted(x: jax.Array, **options: Any) -> jax.Array:
        x, a, b = layer.promote_dtype(
            (x, layer.lora_a[...], layer.lora_b[...]), dtype=layer.dtype
        )
        y = multiply("lora_b", multiply("lora_a", x, a), b)
        if layer.base_module is None:
            return y
        if not callable(layer.base_module):
            raise ValueError("`self.base_module` must be callable.")
        base_output: Any = layer.base_module(x, **options)
        return y + base_output

    return adapted(*args, **kwargs)
