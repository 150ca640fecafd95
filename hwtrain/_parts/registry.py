"""The registry of parts by name, and the order of stages around a tile."""

import dataclasses
import difflib
import graphlib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_type_hints

from hwtrain._errors import InputError
from hwtrain._parts.part import Draws, Part
from hwtrain._parts.wording import suggestion

T = TypeVar("T", bound=Callable[..., Any])


class Entry(NamedTuple):
    """A registered part.

    Attributes:
      part: its class, or its function.
      inside: names of parts of its kind that enclose it.
      outside: names of parts of its kind that it encloses.
    """

    part: Any
    inside: tuple[str, ...]
    outside: tuple[str, ...]


KINDS = {
    "adapter": "a function that writes a checkpoint for another program",
    "clip": "keeping weights within the range of the device after an update",
    "converter": "the conversion of weights to conductances",
    "drift_compensation": "the correction of the mean drift of a tile",
    "mismatch": "the differences between the weights of chips",
    "modifier": "the change of the weights in every training step",
    "noise_model": "the effect of programming, time and reads on conductances",
    "objective": "the quantity minimised in place of the loss",
    "output_format": "the numbers that a digital unit can store",
    "stage": "an effect around a tile",
}
"""The kinds of parts."""

_BUILT_IN = {
    "clip": "hwtrain.weights",
    "converter": "hwtrain.devices",
    "drift_compensation": "hwtrain.devices",
    "mismatch": "hwtrain.weights",
    "modifier": "hwtrain.weights",
    "noise_model": "hwtrain.devices",
    "objective": "hwtrain.objectives",
    "output_format": "hwtrain.periphery",
    "stage": "hwtrain.periphery",
}
"""The rooms whose files register the built-in parts when they are imported, by kind."""

_known: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
"""Entries by kind, then by name."""

_RESERVED = {"of", "version", *(name for name in dir(Part) if name[0] != "_")}
"""Keys beside a part's fields in data, and attributes of every part."""

_DRAWS = get_args(Draws)


def register(
    kind: str,
    name: str,
    *,
    inside: str | Iterable[str] = (),
    outside: str | Iterable[str] = (),
) -> Callable[[T], T]:
    """Registers a part by name for configurations, `inspect`, `load` and commands.

    >>> import hwtrain
    >>> @hwtrain.register("stage", "leak", inside="adc")
    ... class Leak(hwtrain.Part):
    ...     share: float = 0.1
    >>> hwtrain.IOParameters(stages=(Leak(share=0.2),)).stages[0].type
    'leak'

    Args:
      kind: `"noise_model"`, `"converter"`, `"drift_compensation"`, `"mismatch"`,
        `"modifier"`, `"clip"`, `"objective"`, `"output_format"`, `"stage"` for a stage
        around a tile, or `"adapter"`, for which the part is a function.
      name: its name in configurations and checkpoints, unique within its kind.
      inside: names of the stages that enclose this stage, which is nearer to the tile.
        They are registered before it.
      outside: names of the stages that this stage encloses, registered before it too.

    Returns:
      A decorator of the part's class, or of the adapter.

    Raises:
      ValueError: for an unknown kind, a name in use, a field named like an attribute of
        every part, an unregistered stage, or a contradictory order.
    """
    if kind not in _known:
        raise InputError(f"expected a kind of {', '.join(_known)}; got {kind!r}")
    entries = _known[kind]
    around = _names(inside), _names(outside)

    def known(part: T) -> T:
        if kind in _BUILT_IN and not _home(part).startswith("hwtrain."):
            # Their names are taken, and stand in the order, whatever was used before.
            importlib.import_module(_BUILT_IN[kind])
        for other in (*around[0], *around[1]):
            if other not in entries:
                raise InputError(
                    f"{name!r} is placed relative to the {kind} {other!r}, which is "
                    f"not registered. Known are: {', '.join(entries)}"
                )
        before = entries.get(name)
        if before is not None and _home(before.part) != _home(part):
            raise InputError(
                f"the {kind} {name!r} is {_home(before.part)} already; register "
                f"{_home(part)} under another name"
            )
        if kind != "adapter" and not _home(part).startswith("hwtrain."):
            _check(part)
        named = part.__dict__.get("_registered", (kind, name))
        if named != (kind, name) and not _home(part).startswith("hwtrain."):
            raise InputError(
                f"{_home(part)} is already registered as the {named[0]} {named[1]!r}"
            )
        entries[name] = Entry(part, *around)
        try:
            order(kind)
        except graphlib.CycleError as error:
            entries.pop(name) if before is None else entries.update({name: before})
            circle = " inside ".join(error.args[1])
            raise InputError(f"{name!r} cannot be placed there: {circle}") from None
        part._registered = (kind, name)  # type: ignore[attr-defined]
        return part

    return known


def register_types(kind: str) -> Callable[[T], T]:
    """Makes one class known by each `type` that it may have; for the built-in ones."""

    def known(part: T) -> T:
        for name in get_args(get_type_hints(part)["type"]):
            register(kind, name)(part)
        return part

    return known


def built_in(kind: str) -> Any:
    """Returns the union of the classes of a kind that come with hwtrain.

    Its order is that of their names, whichever file was imported first.
    """
    classes = dict.fromkeys(named(kind, name) for name in sorted(_known[kind]))
    return Union[tuple(x for x in classes if _home(x).startswith("hwtrain."))]  # noqa: UP007


def forget(kind: str, name: str) -> None:
    """Removes a name from the registry."""
    del _known[kind][name]


def named(kind: str, name: str) -> Any:
    """Returns the part with a name.

    Raises:
      ValueError: if the name is not registered.
    """
    if name not in _known[kind]:
        raise InputError(
            f"expected the {kind} to be one of {', '.join(sorted(_known[kind]))}, or "
            "one of your own, once the file that registers it is imported; got "
            f"{name!r}{like(kind, name)}"
        )
    return _known[kind][name].part


def like(kind: str, name: str) -> str:
    """Returns the hint `; did you mean ...?`; empty if no name of a kind is similar."""
    return suggestion(name, _known[kind])


def names(kind: str) -> tuple[str, ...]:
    """Returns the names of a kind, in the order of their registration."""
    return tuple(_known[kind])


def parts_of(kind: str) -> tuple[Any, ...]:
    """Returns all parts of a kind."""
    return tuple(entry.part for entry in _known[kind].values())


def order(kind: str) -> tuple[str, ...]:
    """Returns the names of a kind from the outermost to the innermost.

    Ties are broken alphabetically.
    """
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for name, entry in _known[kind].items():
        sorter.add(name, *entry.inside)
        for inner in entry.outside:
            sorter.add(inner, name)
    sorter.prepare()
    found: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()])
        found.append(ready.pop(0))
        sorter.done(found[-1])
    return tuple(found)


def ordered(kind: str, parts: Iterable[Any]) -> tuple[Any, ...]:
    """Returns parts from the outermost to the innermost.

    Raises:
      ValueError: for a part that is not registered.
    """
    places = {name: place for place, name in enumerate(order(kind))}
    return tuple(sorted(parts, key=lambda part: places[name_of(kind, type(part))]))


def name_of(kind: str, part: type) -> str:
    """Returns the name of a part.

    Raises:
      ValueError: if it is not registered itself, even if its parent is.
    """
    name = part.__dict__.get("_registered", ("", ""))[1]
    if name not in _known[kind] or _known[kind][name].part is not part:
        raise InputError(
            f"expected a registered {kind}; got {_home(part)}. Write "
            f"@hwtrain.register({kind!r}, ...) above its class"
        )
    return name


def _check(part: Any) -> None:
    """Raises for a user's class that is not a valid part."""
    home = _home(part)
    if not isinstance(part, type) or not issubclass(part, Part):
        raise InputError(f"{home} should be a class that inherits from hwtrain.Part")
    draws = (part.draws,) if isinstance(part.draws, str) else part.draws
    if not set(draws) <= set(_DRAWS):
        raise InputError(
            f"{home}: draws should be one of {', '.join(_DRAWS)}, or a tuple of these; "
            f"got {part.draws!r}"
        )
    kind: Any = part
    fields = {field.name: field for field in dataclasses.fields(kind)}
    taken = sorted(fields.keys() & _RESERVED)
    if taken:
        raise InputError(
            f"{home}: a field cannot be called {', '.join(taken)}: every part has that "
            "already. Choose another name"
        )
    _check_names(part, fields)
    for name, hint in get_type_hints(part).items():
        if name not in fields or type(None) not in get_args(hint):
            continue
        default = fields[name].default
        if getattr(default, "default", default) is not None:
            raise InputError(
                f"{home}: {name} may be None, which TOML cannot express: make None its "
                "default, so that it can be left out"
            )


def _check_names(part: type, fields: Iterable[str]) -> None:
    """Raises for a method that almost has the name of one that it may replace.

    Nothing would ever call it, and the parent's would act in its place.
    """
    own, known = set[str](), set[str]()
    for cls in part.__mro__:
        functions = {name for name, value in vars(cls).items() if callable(value)}
        (known if cls.__module__.startswith("hwtrain.") else own).update(functions)
    replaceable = known - own - {*fields}
    for name in sorted(own - known - {*fields}):
        if name.startswith("_") or not inspect.isfunction(getattr(part, name)):
            continue
        match = difflib.get_close_matches(name, replaceable, n=1, cutoff=0.9)
        if match:
            raise InputError(
                f"{_home(part)}: nothing calls {name}; did you mean {match[0]}? "
                "Begin the name of a function of its own with an underscore"
            )


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _home(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}"
