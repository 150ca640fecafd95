"""All that hwtrain needs of Flax's bridge of its frameworks beyond what it documents.

The rest stands in the files of this name in `linen/` and `nnx/`.
"""

from typing import Any

from flax import nnx


def bridged_class(module: Any, cls: type) -> type | None:
    """Returns the class of the module that a bridge holds; `None` if it is no bridge.

    Flax names the module in attributes that its documentation leaves out.

    Args:
      module: a module of either framework.
      cls: its plain class.
    """
    if issubclass(cls, nnx.bridge.ToNNX):
        return type(module.to_nnx__module)
    if issubclass(cls, nnx.bridge.ToLinen):
        return module.nnx_class
    return None
