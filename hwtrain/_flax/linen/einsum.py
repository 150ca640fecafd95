"""Linen's Einsum, with a reimplemented `__call__`: it has no function to replace."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from hwtrain._flax import einsums
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._plan.layer import Layer
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import add_built_in


def _layer(module: Any, inputs: Any, einsum_str: str | None = None) -> Layer:
    return einsums.describe(_equation(module, einsum_str), tuple(module.shape))


def _equation(module: Any, einsum_str: str | None) -> str:
    return nn.merge_param("einsum_str", module.einsum_str, einsum_str).replace(" ", "")


def _call(
    module: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    inputs: jax.Array,
    einsum_str: str | None = None,
) -> jax.Array:
    """Reimplements `Einsum.__call__` with an analog multiplication."""
    equation = _equation(module, einsum_str)
    params = meta.unbox(module.variables["params"])
    kernel, bias = params["kernel"], params.get("bias")
    shape = ()
    if bias is not None:
        shape = internals.bias_shape(module, equation, inputs, kernel)
    inputs, kernel, bias = module.promote_dtype(
        inputs, kernel, bias, dtype=module.dtype
    )
    y = einsums.analog_einsum(weights["kernel"], mode, leaves["kernel"])(
        equation,
        inputs,
        kernel,
        precision=module.precision,
        preferred_element_type=module.preferred_element_type,
    )
    return y if bias is None else y + jnp.reshape(bias, shape)


add_built_in((nn.Einsum,), "kernel", kind="einsum", layer=_layer, written=_call)
