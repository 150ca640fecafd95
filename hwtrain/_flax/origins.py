"""Origins of a program's values: parameters, and the operations that changed them."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Passage(NamedTuple):
    """A way through a user's product.

    Attributes:
      number: number of the product.
      path: for its results, the parameter that they are multiplied by; empty for its
        inputs.
    """

    number: int
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Origin:
    """An origin of a value.

    Attributes:
      source: the path of a stored parameter, the number of a mark, or a passage.
      by: the first operation that changed it; empty if none did.
    """

    source: str | int | Passage
    by: str = ""


Origins = frozenset[Origin]

INPUT = Origin("")
"""The origin of the call's arguments; a value with it is not a weight."""


def parameters(values: Iterable[Origins]) -> list[Origin]:
    """Returns the origins that are parameters or arguments of the call."""
    return [o for value in values for o in value if isinstance(o.source, str)]


def passages(origins: Origins) -> dict[Origin, Passage]:
    """Returns the origins that are passages, with their passages."""
    return {o: o.source for o in origins if isinstance(o.source, Passage)}


def changed(origins: Iterable[Origin], by: str) -> Origins:
    """Returns the origins of an operation's result."""
    return frozenset(o if o.by or o == INPUT else Origin(o.source, by) for o in origins)


def chosen(origins: Origins, by: Origins) -> Origins:
    """Returns the origins of a value that is selected by another value."""
    if passages(by):
        through = passages(origins)
        origins = (origins - through.keys()) | changed(through, "cond")
    is_changed = any(origin.by for origin in origins)
    return origins | (by & {INPUT}) if is_changed else origins


def either(found: Sequence[Origins], name: str) -> Origins:
    """Returns the origins of a value that may be any one of several."""
    if len(set(found)) == 1:
        return found[0]
    return changed(frozenset().union(*found), name)
