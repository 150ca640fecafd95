"""NNX's Linear and LinearGeneral: their stand-ins have another `dot_general`."""

from collections.abc import Iterable
from typing import Any

from flax import nnx

from hwtrain._plan.layer import Layer, dense_layer
from hwtrain.sockets._table import add_built_in


def _layer(module: Any) -> Layer:
    stack = tuple(getattr(module, "batch_axis", {}).values())
    sizes, features = (
        tuple(given) if isinstance(given, Iterable) else (given,)
        for given in (module.in_features, module.out_features)
    )
    return dense_layer(stack, sizes, features)


add_built_in(
    (nnx.LoRALinear, nnx.Linear, nnx.LinearGeneral),
    "kernel",
    kind="dense",
    layer=_layer,
    dot_general="dot_general",
)
