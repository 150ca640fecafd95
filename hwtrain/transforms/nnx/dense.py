"""NNX's Linear and LinearGeneral: a stand-in has another `dot_general`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.transforms.layer import Layer, calls_as, dense_layer
from hwtrain.transforms.nnx.stand_in import stand_in
from hwtrain.transforms.own_products import watched_product
from hwtrain.transforms.signal_side import analog_dot_general

CLASSES = (nnx.LoRALinear, nnx.Linear, nnx.LinearGeneral)


def describe(module: Any, cls: type) -> Layer | None:
    """Returns what the plan must know of a dense layer."""
    base = next((base for base in CLASSES if issubclass(cls, base)), None)
    if base is None:
        return None
    if not owned(cls):
        return Layer(why=f"it overrides {base.__name__}.__call__")
    stack = tuple(getattr(module, "batch_axis", {}).values())
    sizes, features = (
        tuple(given) if isinstance(given, Iterable) else (given,)
        for given in (module.in_features, module.out_features)
    )
    return dense_layer(stack, sizes, features)


def owned(cls: type) -> dict[str, tuple[str, ...]]:
    """Returns the methods that multiply, with the names of the arrays they need."""
    return {"__call__": ("kernel",)} if calls_as(cls, CLASSES) else {}


def watched(
    layer: Any, base: type, method: str, marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns a method with what it multiplies by marked, `marked(leaf, array)`."""
    cls = getattr(layer, "dot_general_cls", None)
    before = layer.dot_general or jax.lax.dot_general

    made = None if cls is None else lambda: watched_product(cls(), marked)
    copy = stand_in(
        layer, base, dot_general=watched_product(before, marked), dot_general_cls=made
    )
    return getattr(copy, method)


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
    """Calls a dense layer with its matrix multiplication made analog."""
    before = layer.dot_general
    if getattr(layer, "dot_general_cls", None) is not None:
        before = layer.dot_general_cls()
    analog = analog_dot_general(
        weights["kernel"], mode, leaves["kernel"], before or jax.lax.dot_general
    )
    copy = stand_in(layer, base, dot_general=analog, dot_general_cls=None)
    return getattr(base, method)(copy, *args, **kwargs)
