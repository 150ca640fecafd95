"""Linen's convolutions.

The function that a Conv convolves with is replaced for a call. ConvTranspose and
ConvLocal have no such field: their calls are written again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from hwtrain.plan import AnalogWeight
from hwtrain.transforms.convolution import analog_conv, call_without_socket
from hwtrain.transforms.layer import Layer, calls_as
from hwtrain.transforms.linen import flax_internals as internals
from hwtrain.transforms.linen.fields import operand_marked, replaced_fields
from hwtrain.transforms.windows import describe_conv, describe_local, describe_transpose

CLASSES = (nn.Conv, nn.ConvLocal, nn.ConvTranspose)


def describe(
    module: Any, cls: type, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Layer | None:
    """Returns what the plan must know of a convolution."""
    base = _base(cls)
    if base is None or method != "__call__":
        return None
    inputs: Any = args[0] if args else next(iter(kwargs.values()), None)
    if not owned(cls, method):
        return Layer(why=f"it overrides {base.__name__}.__call__")
    if not jnp.ndim(inputs):
        return Layer(why="it is called without an array")
    own = ("conv_general_dilated", "conv_general_dilated_cls")
    if any(getattr(module, name, None) is not None for name in own):
        return Layer(why="it has a conv_general_dilated of its own")
    sizes = module.kernel_size
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    *shape, channels = jnp.shape(inputs)
    padding = internals.canonical_padding(module.padding, len(sizes))
    geometry = (module, padding, channels, module.features, sizes)
    if base is nn.ConvTranspose:
        return describe_transpose(*geometry)
    if base is nn.ConvLocal:
        return describe_local(*geometry, tuple(shape[len(shape) - len(sizes) :]))
    return describe_conv(*geometry)


def _base(cls: type) -> type | None:
    return next((base for base in CLASSES if issubclass(cls, base)), None)


def owned(cls: type, method: str) -> tuple[str, ...]:
    """Returns the names of the arrays that a method multiplies by."""
    ours = method == "__call__" and calls_as(cls, CLASSES)
    return ("kernel",) if ours else ()


def watched(
    module: Any,
    marked: Callable[[str, Any], Any],
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a layer with what it multiplies by marked, `marked(leaf, array)`."""
    if _base(type(module)) is not nn.Conv:
        with operand_marked(module, marked, "kernel", mask=None):
            return next_function(*args, **kwargs)

    def conv(x, kernel, *geometry, **options):
        kernel = marked("kernel", kernel)
        return jax.lax.conv_general_dilated(x, kernel, *geometry, **options)

    # The plan knows the mask, and the analog layer its zeros.
    with replaced_fields(module, conv_general_dilated=conv, mask=None):
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
    """Calls a convolution with its windows on crossbars."""
    module: Any = context.module
    weight, beside = weights["kernel"], leaves["kernel"]
    if weight.kind == "conv":
        analog = analog_conv(weight, mode, beside)
        with replaced_fields(module, conv_general_dilated=analog):
            return next_function(*args, **kwargs)

    def promote(x: jax.Array):
        kernel = meta.unbox(module.get_variable("params", "kernel"))
        bias = None
        if module.use_bias:
            bias = meta.unbox(module.get_variable("params", "bias"))
        if module.mask is not None:
            kernel = kernel * module.mask
        return module.promote_dtype(x, kernel, bias, dtype=module.dtype)

    return call_without_socket(
        weight,
        mode,
        beside,
        *args,
        promote=promote,
        precision=module.precision,
        dtype=getattr(module, "preferred_element_type", None),
        **kwargs,
    )
