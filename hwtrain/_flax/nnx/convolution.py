"""NNX's convolutions.

A Conv is called through a stand-in with another convolution function. ConvTranspose has
no such attribute, so its call is reimplemented.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain._flax.convolutions import call_without_socket
from hwtrain._flax.nnx import flax_internals as internals
from hwtrain._flax.windows import describe_conv, describe_transpose
from hwtrain._plan.layer import Layer
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import add_built_in


def _conv(module: Any) -> Layer:
    if module.conv_general_dilated is not jax.lax.conv_general_dilated:
        return Layer(why="it has a conv_general_dilated of its own")
    return describe_conv(*_geometry(module))


def _transpose(module: Any) -> Layer:
    return describe_transpose(*_geometry(module))


def _geometry(module: Any) -> tuple[Any, Any, int, int, tuple[int, ...]]:
    sizes = module.kernel_size
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    padding = internals.canonical_padding(module.padding, len(sizes))
    return module, padding, module.in_features, module.out_features, sizes


def _call_transpose(
    layer: Any,
    weights: Mapping[str, AnalogWeight],
    leaves: Mapping[str, Mapping[str, jax.Array]],
    mode: str,
    inputs: jax.Array,
) -> jax.Array:
    """Reimplements `ConvTranspose.__call__` with its windows on crossbars."""

    def promote(x: jax.Array):
        kernel = layer.kernel[...]
        bias = layer.bias[...] if layer.bias is not None else None
        if layer.mask is not None:
            kernel = kernel * layer.mask
        return layer.promote_dtype((x, kernel, bias), dtype=layer.dtype)

    return call_without_socket(
        weights["kernel"],
        mode,
        leaves["kernel"],
        inputs,
        promote=promote,
        precision=layer.precision,
        dtype=layer.preferred_element_type,
    )


add_built_in(
    (nnx.Conv,), "kernel", kind="conv", layer=_conv, conv="conv_general_dilated"
)


add_built_in(
    (nnx.ConvTranspose,),
    "kernel",
    kind="conv_transpose",
    layer=_transpose,
    written=_call_transpose,
)
