"""Undocumented parts of Flax's bridge between its frameworks that hwtrain uses.

The others are in the files of the same name in `linen/` and `nnx/`.
"""

from typing import Any

from flax import nnx


def bridged_class(module: Any, cls: type) -> type | None:
    """Returns the class of the module inside a bridge; `None` if it is not a bridge.

    Flax stores the module in undocumented attributes.

    Args:
      module: a module of either framework.
      cls: its plain class.
    """
    if issubclass(cls, nnx.bridge.ToNNX):
        return type(module.to_nnx__module)
    if issubclass(cls, nnx.bridge.ToLinen):
        return module.nnx_class
    return None
