"""Imports what configurations name: `path/to/file.py:name` or `module:name`."""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from hwtrain._arrays.random import stable_hash
from hwtrain._errors import InputError
from hwtrain._parts.wording import closest

ENTRY_POINTS = "hwtrain.parts"
"""Entry point group through which installed packages provide parts."""


class MissingFileError(InputError):
    """A file that a configuration names is not there."""


def resolve(source: str, folder: str | Path = ".") -> Callable[..., Any]:
    """Returns the function that a configuration names.

    >>> resolve("math:sqrt")(4.0)
    2.0

    Args:
      source: `path/to/file.py:function`, or `module:function` of an installed package.
      folder: base of relative paths.

    Raises:
      ValueError: naming the file or module and the function, if it does not exist or
        cannot be imported.
    """
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise InputError(
            f"{source!r}: expected a function, as path/to/file.py:function, or as "
            "module:function of an installed package"
        )
    if place.endswith(".py"):
        module = _load_file(place, folder, source)
    else:
        module = _import_module(place, source)
    function = getattr(module, name, None)
    if not callable(function):
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_")
        ]
        match = closest(name, known)
        hint = f"; did you mean {match}?" if match else ""
        raise InputError(
            f"{source}: expected a function {name} in {module.__file__ or place}, "
            f"got none{hint}"
        )
    return function


def load_parts(sources: Iterable[Any], folder: str | Path = ".") -> None:
    """Imports the files or modules that register a user's parts.

    Args:
      sources: paths `path/to/file.py`, or names of modules.
      folder: base of relative paths.

    Raises:
      ValueError: naming the source that cannot be imported.
    """
    for source in sources:
        if str(source).endswith(".py"):
            _load_file(str(source), folder, str(source))
        else:
            _import_module(str(source), str(source))


def load_plugins() -> None:
    """Imports the parts that installed packages provide by entry points.

    Raises:
      ValueError: naming the package whose entry point cannot be loaded.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except (Exception, SystemExit) as error:
            package = point.dist.name if point.dist is not None else "(of no name)"
            raise InputError(
                f"the installed package {package} cannot be used: its entry point "
                f"{point.name!r} in the group {ENTRY_POINTS}, {point.value}, raised "
                f"{reason(error)}; repair or uninstall the package"
            ) from error


def reason(error: BaseException) -> str:
    """Returns the type and the first line of an error.

    >>> reason(KeyError("train"))
    "KeyError: 'train'"
    """
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _load_file(place: str, folder: str | Path, source: str) -> ModuleType:
    path = (Path(folder) / place).resolve()
    if not path.is_file():
        relative = f"; relative paths start at {Path(folder).resolve()}"
        raise MissingFileError(
            f"{source}: expected the file {path}, got none"
            f"{'' if Path(place).is_absolute() else relative}"
        )
    # A unique name, so that two recipes called train.py do not collide.
    name = f"hwtrain_recipe_{path.stem}_{stable_hash(str(path)):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{source}: expected a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    # A file that calls sys.exit would end the command as if all were well.
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(_import_failed(source, str(path), error)) from error
    return module


def _import_module(place: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise InputError(_import_failed(source, place, error)) from error


def _import_failed(source: str, place: str, error: BaseException) -> str:
    hint = ""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (place == missing or place.startswith(f"{missing}.")):
        hint = (
            "; a command looks for installed packages only: install yours (pip install "
            "-e .), or write a path such as chip.py"
        )
    elif missing:
        hint = "; the shipped recipes need: pip install 'hwtrain[recipes]'"
    return f"{source}: {place} cannot be imported: {reason(error)}{hint}"
