"""Modules that are applied on their own inside a call: they are not part of it.

Their paths begin anew, and may be those of the model's own layers.
"""

import contextlib
from collections.abc import Iterator

from flax import linen as nn


class OwnCalls:
    """Tells the calls of a model's modules from those of modules that it applies."""

    def __init__(self):
        self._root: type | None = None
        self._scopes: list[object] = []
        self._away = 0

    @contextlib.contextmanager
    def entered(self, module: nn.Module, path: str) -> Iterator[bool]:
        """Enters a call, and says whether its module is one of the model's.

        Args:
          module: the module, bound.
          path: its path relative to the root, empty if it is the root, or shares its
            scope.
        """
        if self._root is None:
            self._root = type(module)
        # A lifted root is called again, in a scope of its own.
        known = type(module) is self._root or not self._scopes
        known = known or any(module.scope is scope for scope in self._scopes)
        if self._away or (not path and not known):
            self._away += 1
            try:
                yield False
            finally:
                self._away -= 1
            return
        here = [] if path else [module.scope]
        self._scopes += here
        try:
            yield True
        finally:
            del self._scopes[len(self._scopes) - len(here) :]
