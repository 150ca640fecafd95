"""Hardware as a file writes it: presets with changes, and rules that add to it."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from hwtrain import presets
from hwtrain._parts.cost_constants import CostParameter
from hwtrain._parts.fields import to_dict
from hwtrain._parts.source import resolve
from hwtrain._plan.hardware import Hardware
from hwtrain.evaluate import technologies
from hwtrain.train._entries import EntryError, named

T = TypeVar("T")


class InPlaceOfTable(str):
    """A `"none"` of an override where the file has a table, which it leaves out."""


PRESET = "preset"
NONE = "none"
"""In the place of a table, leaves it out."""

_OF_RULE = ("pattern", "params", "rows", "columns", "digital", "frozen", "hardware")


def written_out(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a configuration, given as plain data, with all its hardware written out.

    >>> data = {"hardware": {"preset": "hermes", "clip": {"type": "layer_gaussian"}}}
    >>> sorted(written_out(data, Path())["hardware"])
    ['clip', 'converter', 'noise_model']

    Args:
      data: the configuration; entries of a wrong kind are left for others to refuse.
      folder: the folder that relative paths refer to.

    Raises:
      EntryError: (a `ValueError`) for a preset that there is not.
    """
    found = dict(data)
    if isinstance(data.get("cost"), dict):
        found["cost"] = _cost(data["cost"], folder)
    base = data.get("hardware", {})
    if not isinstance(base, dict):
        return found
    if "hardware" in data:
        base = found["hardware"] = _merged({}, base, "hardware", folder)
    rules = data.get("rules", [])
    if isinstance(rules, list) and "rules" in data:
        found["rules"] = [
            _rule(rule, base, f"rules.{number}", folder)
            if isinstance(rule, dict)
            else rule
            for number, rule in enumerate(rules)
        ]
    return found


def preset_names(module: ModuleType = presets) -> list[str]:
    """Returns the names of the presets.

    Args:
      module: the module that defines them.
    """
    functions = inspect.getmembers(module, inspect.isfunction)
    return [name for name, one in functions if one.__module__ == module.__name__]


def _cost(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the constants of a technology; a source tells what was changed."""
    changes = {name: value for name, value in data.items() if name != PRESET}
    if PRESET not in data:
        return changes
    preset = technology(data[PRESET], f"cost.{PRESET}", folder)
    base = to_dict(preset)
    if changes and "source" not in changes:
        base["source"] = f"{preset.source}; changed: {', '.join(changes)}"
    return base | changes


def technology(name: Any, key: str, folder: Path) -> CostParameter:
    """Returns the constants of a technology by name.

    Args:
      name: that of a function of `hwtrain.evaluate.technologies`, or the place of one
        of a user's own.
      key: the entry that names it.
      folder: the folder that relative paths refer to.

    Raises:
      EntryError: (a `ValueError`) if there are none of that name.
    """
    return _called(name, technologies, CostParameter, key, folder)


def _rule(
    rule: dict[str, Any], base: dict[str, Any], key: str, folder: Path
) -> dict[str, Any]:
    own = {name: value for name, value in rule.items() if name in _OF_RULE}
    changes = {name: value for name, value in rule.items() if name not in _OF_RULE}
    if own.get("digital") is True:
        if changes:
            raise EntryError(
                key,
                f"expected nothing beside digital = true, got {', '.join(changes)}; "
                "leave out one or the other",
            )
        return own
    if "hardware" not in own:
        own["hardware"] = _merged(base, changes, key, folder)
        return own
    return {**own, **changes}


def _merged(
    base: dict[str, Any], changes: dict[str, Any], key: str, folder: Path
) -> dict[str, Any]:
    """Returns hardware with changes; a preset among them takes the place of `base`."""
    changes = dict(changes)
    preset = changes.pop(PRESET, None)
    if preset is not None:
        base = _preset(preset, f"{key}.{PRESET}", folder)
    off = [name for name, value in changes.items() if value == NONE]
    for name in off:
        if name not in base and not isinstance(changes[name], InPlaceOfTable):
            raise EntryError(
                f"{key}.{name}",
                f'"none" leaves out what is there, and there is no {name}; got "none"',
            )
    kept = {name: value for name, value in base.items() if name not in off}
    added = {name: value for name, value in changes.items() if name not in off}
    return over(kept, added)


def over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns tables with changes; one of another type replaces a table as a whole.

    >>> over({"clip": {"type": "a", "sigma": 2}}, {"clip": {"sigma": 3}})
    {'clip': {'type': 'a', 'sigma': 3}}

    A table of indices in the place of a list changes these entries.

    >>> over({"stages": [{"a": 1}, {"a": 2}]}, {"stages": {"1": {"a": 3}}})
    {'stages': [{'a': 1}, {'a': 3}]}

    Args:
      base: tables by name.
      changes: likewise.
    """
    found = dict(base)
    for name, value in changes.items():
        before = found.get(name)
        found[name] = value
        if isinstance(before, dict) and isinstance(value, dict):
            kind = before.get("type")
            if value.get("type", kind) == kind:
                found[name] = over(before, value)
        elif isinstance(before, list) and isinstance(value, dict):
            entries = {str(index): entry for index, entry in enumerate(before)}
            if value.keys() <= entries.keys():
                found[name] = list(over(entries, value).values())
    return found


def _preset(name: Any, key: str, folder: Path) -> dict[str, Any]:
    return to_dict(_called(name, presets, Hardware, key, folder))


def _called(name: Any, module: ModuleType, kind: type[T], key: str, folder: Path) -> T:
    """Returns what a preset's function returns."""
    known = preset_names(module)
    if isinstance(name, str) and ":" in name:
        with named(key, name):
            found = resolve(name, folder)()
    elif name in known:
        found = getattr(module, name)()
    else:
        raise EntryError(
            key,
            f"expected one of {', '.join(known)}, or a function of your own as "
            f'"path/to/file.py:function", got {name!r}',
        )
    if not isinstance(found, kind):
        raise EntryError(
            key,
            f"expected {name} to return a {kind.__name__}, got {type(found).__name__}",
        )
    return found
