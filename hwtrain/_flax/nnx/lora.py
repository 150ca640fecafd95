"""NNX's LoRA, with a reimplemented `__call__`: its factors lie on two crossbars.

`LoRALinear` is a `Linear` with a LoRA inside; its base module is a separate layer.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hwtrain._errors import InputError
from hwtrain._flax.effective import held
from hwtrain._flax.signal_side import analog_matmul, has_signal_side
from hwtrain._plan.layer import Layer, LayerWeight
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import add_built_in

FACTORS = ("lora_a", "lora_b")


def _layer(module: Any) -> Layer:
    rank = module.lora_a.shape[-1]
    shapes = ((module.in_features, rank), (rank, module.out_features))
    weights = (
        LayerWeight(leaf=leaf, shape=shape, rows=(0,), columns=(1,))
        for leaf, shape in zip(FACTORS, shapes)
    )
    return Layer(weights=tuple(weights))


def _call(
    layer: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    x: jax.Array,
    **options: Any,
) -> jax.Array:
    """Reimplements `LoRA.__call__` with both products made analog."""

    def multiply(name: str, x: jax.Array, w: jax.Array) -> jax.Array:
        weight = weights.get(name)
        if weight is None or not has_signal_side(weight):
            return jnp.matmul(x, w)
        beside, w = held(weight, mode, leaves[name], w)
        return analog_matmul(weight, mode, beside, x, w)

    x, a, b = layer.promote_dtype(
        (x, layer.lora_a[...], layer.lora_b[...]), dtype=layer.dtype
    )
    y = multiply("lora_b", multiply("lora_a", x, a), b)
    if layer.base_module is None:
        return y
    if not callable(layer.base_module):
        raise InputError("`self.base_module` must be callable.")
    base_output: Any = layer.base_module(x, **options)
    return y + base_output


add_built_in((nnx.LoRA,), *FACTORS, kind="lora", layer=_layer, written=_call)
