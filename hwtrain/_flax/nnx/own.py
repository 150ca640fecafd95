"""Marks the arrays of users' NNX objects whose methods state products."""

from collections.abc import Callable
from typing import Any


class Watch:
    """Marks the arrays for which a module states products in an abstract call.

    Attributes:
      marked: called with the path of an array from its module, and the array.
      seen: the paths of the marked arrays.
    """

    def __init__(self, marked: Callable[[str, Any], Any]):
        self.seen: set[str] = set()
        self._marked = marked

    def marked(self, leaf: str, array: Any) -> Any:
        """Returns the array marked."""
        self.seen.add(leaf)
        return self._marked(leaf, array)
