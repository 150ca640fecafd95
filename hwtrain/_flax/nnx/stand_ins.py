"""Stand-ins for layers, with other attributes for one call."""

from collections.abc import Callable
from typing import Any

from hwtrain._flax.nnx.flax_internals import shallow_copy


def stand_in(layer: Any, base: type, **attributes: Any) -> Any:
    """Returns a shallow copy of a layer that shares its variables.

    Nothing is set on the layer itself, which may belong to another trace.

    Args:
      layer: the layer.
      base: class of the copy: the user's, not the analog one.
      **attributes: attributes to set on the copy.
    """
    return shallow_copy(layer, base, **attributes)


def marking_promotion(
    layer: Any, marked: Callable[[str, Any], Any], *leaves: str
) -> Callable[..., Any]:
    """Returns a layer's `promote_dtype` that also marks its arrays.

    Args:
      layer: a layer with this attribute; its arrays are the first arguments if there
        are no others, else they follow the inputs.
      marked: called with the name of an array and the array.
      *leaves: the names of the arrays.
    """

    def promote(arrays, **options):
        found = [*layer.promote_dtype(arrays, **options)]
        first = min(1, len(found) - 1)
        for place, leaf in enumerate(leaves, first):
            found[place] = marked(leaf, found[place])
        return tuple(found)

    return promote
