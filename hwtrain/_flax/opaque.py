"""Detects modules of the other framework, which must not silently be digital."""

from typing import Any

from hwtrain._flax.flax_internals import bridged_class
from hwtrain._plan.layer import Layer


def bridge(module: Any, cls: type) -> Layer | None:
    """Returns the layer of a bridge to the other framework, or `None`.

    Args:
      module: a module of either framework.
      cls: its plain class.
    """
    inner = bridged_class(module, cls)
    if inner is None:
        return None
    if hasattr(inner, "_hwtrain_assigned"):
        return Layer(why="an analog model of its own")
    why = f"{inner.__name__} is a module of the other framework"
    return Layer(why=why, opaque=True)
