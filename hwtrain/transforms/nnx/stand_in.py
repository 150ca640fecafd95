"""A layer's stand-in for one call, with other attributes."""

from typing import Any


def stand_in(layer: Any, base: type, **attributes: Any) -> Any:
    """Returns a shallow copy of a layer that shares its variables.

    Nothing is set on the layer itself, which may belong to another trace.

    Args:
      layer: the layer.
      base: class of the copy: the user's, not the analog one.
      **attributes: what the copy has instead.
    """
    copy = object.__new__(base)
    copy.__dict__.update(layer.__dict__, **attributes)
    return copy
