"""Fields of a bound Linen module, replaced for a call."""

import contextlib
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from hwtrain._flax.linen import flax_internals as internals


@contextlib.contextmanager
def replaced_fields(module: nn.Module, **fields: Any):
    """Sets fields of a frozen, bound module for the duration of a call."""
    before = {name: getattr(module, name) for name in fields}
    try:
        internals.put(module, **fields)
        yield
    finally:
        internals.put(module, **before)


def marking_promotion(
    module: nn.Module, marked: Callable[[str, Any], Any], *leaves: str
) -> Callable[..., Any]:
    """Returns a layer's `promote_dtype` that also marks its arrays.

    Args:
      module: a module with this field; its arrays are the first arguments if there are
        no others, else they follow the inputs.
      marked: called with the name of an array and the array.
      *leaves: the names of the arrays.
    """
    promote: Any = module.promote_dtype  # type: ignore[attr-defined]

    def promoted(*arrays, **options):
        found = [*promote(*arrays, **options)]
        for place, leaf in enumerate(leaves, min(1, len(found) - 1)):
            found[place] = marked(leaf, found[place])
        return tuple(found)

    return promoted
