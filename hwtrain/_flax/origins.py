"""What the values of a program are made of: parameters, and what became of them."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Passage(NamedTuple):
    """The way through a product of a user's own.

    Attributes:
      number: which product it is.
      path: of its results, the parameter that they are multiplied by; empty of its
        inputs.
    """

    number: int
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a value is made of.

    Attributes:
      source: the path of a stored parameter, the number of a mark, or a passage.
      by: the operation that changed it first; empty if none did.
    """

    source: str | int | Passage
    by: str = ""


Origins = frozenset[Origin]


INPUT = Origin("")
"""What the arguments of the call are made of: a value with it is no weight."""


def parameters(values: Iterable[Origins]) -> list[Origin]:
    """Returns the origins that are parameters, or arguments of the call."""
    return [o for value in values for o in value if isinstance(o.source, str)]


def passages(origins: Origins) -> dict[Origin, Passage]:
    """Returns the origins that are passages, and these."""
    return {o: o.source for o in origins if isinstance(o.source, Passage)}


def changed(origins: Iterable[Origin], by: str) -> Origins:
    """Returns the origins of a value that an operation made."""
    return frozenset(o if o.by or o == INPUT else Origin(o.source, by) for o in origins)


def chosen(origins: Origins, by: Origins) -> Origins:
    """Returns the origins of a value that another one has chosen."""
    if passages(by):
        through = passages(origins)
        origins = (origins - through.keys()) | changed(through, "cond")
    is_changed = any(origin.by for origin in origins)
    return origins | (by & {INPUT}) if is_changed else origins


def either(found: Sequence[Origins], name: str) -> Origins:
    """Returns the origins of a value that is one of several."""
    if len(set(found)) == 1:
        return found[0]
    return changed(frozenset().union(*found), name)
