"""Linen's convolutions.

The convolution function of a Conv is replaced for a call. ConvTranspose and ConvLocal
have no such field, so their calls are reimplemented.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from hwtrain._flax.convolutions import call_without_socket
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.windows import describe_conv, describe_local, describe_transpose
from hwtrain._plan.layer import Layer
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import add_built_in


def _conv(module: Any, inputs: Any = None) -> Layer:
    return _windows(module, inputs) or describe_conv(*_geometry(module, inputs))


def _transpose(module: Any, inputs: Any = None) -> Layer:
    return _windows(module, inputs) or describe_transpose(*_geometry(module, inputs))


def _local(module: Any, inputs: Any = None) -> Layer:
    why = _windows(module, inputs)
    if why is not None:
        return why
    geometry = _geometry(module, inputs)
    shape, sizes = jnp.shape(inputs)[:-1], geometry[-1]
    return describe_local(*geometry, tuple(shape[len(shape) - len(sizes) :]))


def _windows(module: Any, inputs: Any) -> Layer | None:
    """Returns the reason why a convolution stays digital, if its windows do not fit."""
    if not jnp.ndim(inputs):
        return Layer(why="it is called without an array")
    own = ("conv_general_dilated", "conv_general_dilated_cls")
    if any(getattr(module, name, None) is not None for name in own):
        return Layer(why="it has a conv_general_dilated of its own")
    return None


def _geometry(module: Any, inputs: Any) -> tuple[Any, Any, int, int, tuple[int, ...]]:
    sizes = module.kernel_size
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    padding = internals.canonical_padding(module.padding, len(sizes))
    return module, padding, jnp.shape(inputs)[-1], module.features, sizes


def _without_socket(
    module: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    inputs: jax.Array,
) -> jax.Array:
    """Reimplements `ConvTranspose.__call__` and `ConvLocal.__call__` on crossbars."""

    def promote(x: jax.Array):
        kernel = meta.unbox(module.get_variable("params", "kernel"))
        bias = None
        if module.use_bias:
            bias = meta.unbox(module.get_variable("params", "bias"))
        if module.mask is not None:
            kernel = kernel * module.mask
        return module.promote_dtype(x, kernel, bias, dtype=module.dtype)

    return call_without_socket(
        weights["kernel"],
        mode,
        leaves["kernel"],
        inputs,
        promote=promote,
        precision=module.precision,
        dtype=getattr(module, "preferred_element_type", None),
    )


add_built_in(
    (nn.Conv,), "kernel", kind="conv", layer=_conv, conv="conv_general_dilated"
)


add_built_in(
    (nn.ConvTranspose,),
    "kernel",
    kind="conv_transpose",
    layer=_transpose,
    written=_without_socket,
)


add_built_in(
    (nn.ConvLocal,), "kernel", kind="conv_local", layer=_local, written=_without_socket
)
