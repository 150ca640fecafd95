"""A package that imports its public names when they are first asked for."""

import importlib
import sys
import warnings
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package whose names lie in its modules, which are imported when needed."""

    _homes: Mapping[str, str]  # of a name, the module that defines it
    _modules: frozenset[str]  # the package's own modules, which need no other home
    _renamed: Mapping[str, str]  # of an old name, the new one

    def __getattr__(self, name: str) -> Any:
        if name in self._renamed:
            new = self._renamed[name]
            # `from package import name` asks twice, first whether there is the name.
            asks = sys._getframe(1).f_globals.get("__name__")
            if asks != "importlib._bootstrap":
                warnings.warn(
                    f"{self.__name__}.{name} is now {self.__name__}.{new}; the old "
                    "name will be removed",
                    DeprecationWarning,
                    stacklevel=2,
                )
            return getattr(self, new)
        if name in self._homes:
            value = getattr(importlib.import_module(self._homes[name]), name)
        elif name in self._modules:
            value = importlib.import_module(f"{self.__name__}.{name}")
        else:
            raise AttributeError(
                f"module {self.__name__!r} has no attribute {name!r}",
                name=name,
                obj=self,
            )
        # Found without a question from now on.
        vars(self)[name] = value
        return value

    def __dir__(self) -> Iterable[str]:
        # The package's own modules are no names for users, though they are found.
        special = {name for name in vars(self) if name.startswith("__")}
        return {*special, *vars(self)["__all__"]}


def make_lazy(
    package: str,
    homes: Mapping[str, Iterable[str]],
    rooms: Iterable[str],
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Makes a package import its names when they are first asked for.

    Args:
      package: the package's name.
      homes: by module, as named from the package, which of the package's names it
        defines.
      rooms: the modules of the package that are reached as its attributes.
      renamed: by old name, the new one. The old one works, with a warning.

    Raises:
      ImportError: if a name is renamed to itself, directly or by others.
    """
    module = sys.modules[package]
    renamed = renamed or {}
    newest = {old: _newest(old, renamed) for old in renamed}
    state = {
        "_homes": {
            name: f"{package}.{home}" for home, names in homes.items() for name in names
        },
        "_modules": frozenset(rooms),
        "_renamed": newest,
    }
    vars(module).update(state)
    module.__class__ = LazyPackage


def _newest(old: str, renamed: Mapping[str, str]) -> str:
    """Returns the name that an old one has now, after all renamings."""
    names = [old]
    while names[-1] in renamed:
        names.append(renamed[names[-1]])
        if names[-1] in names[:-1]:
            raise ImportError(
                f"{' -> '.join(names)}: expected a new name at the end of renamings, "
                f"got {names[-1]!r} again; leave out one of them"
            )
    return names[-1]
