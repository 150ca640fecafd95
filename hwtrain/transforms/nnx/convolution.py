"""NNX's convolutions.

A stand-in of a Conv convolves with another function. ConvTranspose has no such
attribute: its call is written again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.transforms.convolution import analog_conv, call_without_socket
from hwtrain.transforms.layer import Layer, calls_as
from hwtrain.transforms.nnx import flax_internals as internals
from hwtrain.transforms.nnx.stand_in import operand_marked, stand_in
from hwtrain.transforms.windows import describe_conv, describe_transpose

CLASSES = (nnx.Conv, nnx.ConvTranspose)


def describe(module: Any, cls: type) -> Layer | None:
    """Returns what the plan must know of a convolution."""
    base = _base(cls)
    if base is None:
        return None
    if not owned(cls):
        return Layer(why=f"it overrides {base.__name__}.__call__")
    own = getattr(module, "conv_general_dilated", jax.lax.conv_general_dilated)
    if own is not jax.lax.conv_general_dilated:
        return Layer(why="it has a conv_general_dilated of its own")
    sizes = module.kernel_size
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    padding = internals.canonical_padding(module.padding, len(sizes))
    describe_this = describe_transpose if base is nnx.ConvTranspose else describe_conv
    return describe_this(
        module, padding, module.in_features, module.out_features, sizes
    )


def _base(cls: type) -> type | None:
    return next((base for base in CLASSES if issubclass(cls, base)), None)


def owned(cls: type) -> dict[str, tuple[str, ...]]:
    """Returns the methods that multiply, with the names of the arrays they need."""
    return {"__call__": ("kernel",)} if calls_as(cls, CLASSES) else {}


def watched(
    layer: Any, base: type, method: str, marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns a method with what it multiplies by marked, `marked(leaf, array)`."""
    del method
    if _base(base) is not nnx.Conv:
        copy = operand_marked(layer, base, marked, "kernel", mask=None)
        return copy.__call__

    def conv(x, kernel, *geometry, **options):
        kernel = marked("kernel", kernel)
        return jax.lax.conv_general_dilated(x, kernel, *geometry, **options)

    # The plan knows the mask, and the analog layer its zeros.
    return stand_in(layer, base, conv_general_dilated=conv, mask=None).__call__


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
    """Calls a convolution with its windows on crossbars."""
    del method
    weight, beside = weights["kernel"], leaves["kernel"]
    if weight.kind == "conv":
        analog = analog_conv(weight, mode, beside)
        copy = stand_in(layer, base, conv_general_dilated=analog)
        return base.__call__(copy, *args, **kwargs)  # type: ignore[operator]

    def promote(x: jax.Array):
        kernel = layer.kernel[...]
        bias = layer.bias[...] if layer.bias is not None else None
        if layer.mask is not None:
            kernel = kernel * layer.mask
        return layer.promote_dtype((x, kernel, bias), dtype=layer.dtype)

    return call_without_socket(
        weight,
        mode,
        beside,
        *args,
        promote=promote,
        precision=layer.precision,
        dtype=layer.preferred_element_type,
        **kwargs,
    )
