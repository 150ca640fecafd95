"""What NNX objects of a user's own multiply by, where their methods say it."""

from collections.abc import Callable
from typing import Any


class Watch:
    """Marks what a module of an abstract call multiplies by, where its methods say it.

    Attributes:
      marked: called with the path of an array from its module, and the array.
      seen: the paths of those that were.
    """

    def __init__(self, marked: Callable[[str, Any], Any]):
        self.seen: set[str] = set()
        self._marked = marked

    def marked(self, leaf: str, array: Any) -> Any:
        """Returns an array marked."""
        self.seen.add(leaf)
        return self._marked(leaf, array)
