"""Fields of a bound Linen module, replaced for a call."""

import contextlib
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from hwtrain.transforms.linen import flax_internals as internals


@contextlib.contextmanager
def replaced_fields(module: nn.Module, **fields: Any):
    """Sets fields of a frozen, bound module for the duration of a call."""
    before = {name: getattr(module, name) for name in fields}
    try:
        internals.put(module, **fields)
        yield
    finally:
        internals.put(module, **before)


def operand_marked(
    module: nn.Module, marked: Callable[[str, Any], Any], leaf: str, **fields: Any
):
    """Marks an array of a layer for a call, where the layer has promoted it.

    Args:
      module: a bound module with a field `promote_dtype`; its array stands first if
        alone, else second.
      marked: called with the name of the array and the array.
      leaf: the name.
      **fields: other fields that are replaced.
    """
    promote: Any = module.promote_dtype  # type: ignore[attr-defined]

    def promoted(*arrays, **options):
        found = [*promote(*arrays, **options)]
        place = min(1, len(found) - 1)
        found[place] = marked(leaf, found[place])
        return tuple(found)

    return replaced_fields(module, promote_dtype=promoted, **fields)
