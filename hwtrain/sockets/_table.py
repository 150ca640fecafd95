"""The rows that `register` writes, and what reads them."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from hwtrain import paths


class Socket(NamedTuple):
    """A row of the table.

    Attributes:
      array: name of the array.
      equation: of inputs, array and result, or a function of the module that gives it.
      method: name of the method that multiplies.
      dot_general: name of the attribute that it calls as `jax.lax.dot_general`.
      einsum: name of the attribute that it calls as `jnp.einsum`.
      call: the method written again.
    """

    array: str
    equation: str | Callable[[Any], str]
    method: str
    dot_general: str | None
    einsum: str | None
    call: Callable[..., Any] | None

    @property
    def leaf(self) -> str:
        """The array's path from its layer."""
        return paths.join([self.array])

    @property
    def field(self) -> str | None:
        """Name of the attribute in whose place the product of hardware goes."""
        return self.dot_general or self.einsum


_rows: dict[type, list[Socket]] = {}
_forget: list[Callable[[], None]] = []

_EQUATION = re.compile(r"[A-Za-z.]+,([A-Za-z.]+)->[A-Za-z.]*")


def array_letters(equation: str) -> str:
    """Returns the letters of an equation's second operand, which is the array.

    >>> array_letters("...i, io -> ...o")
    'io'

    Raises:
      ValueError: if it is no equation of two operands and a result.
    """
    found = _EQUATION.fullmatch(equation.replace(" ", ""))
    if found is None:
        raise ValueError(
            "expected an equation of inputs, array and result, such as "
            f"'...i,io->...o'; got {equation!r}"
        )
    return found[1]


def add(cls: type, row: Socket) -> None:
    """Puts a row into the table, in the place of one for its array and method.

    Raises:
      ValueError: if it contradicts another one of the class.
    """
    rows = [old for old in _rows.get(cls, []) if not _replaces(row, old)]
    for old in rows:
        if old.method != row.method:
            continue
        if row.call is not old.call and None not in (row.call, old.call):
            raise ValueError(
                f"{cls.__name__}.{row.method} is written again already; one function "
                "multiplies by all of its arrays"
            )
        if row.field is not None and row.field == old.field:
            raise ValueError(
                f"{cls.__name__}.{row.field} multiplies by {old.array!r}; an attribute "
                "is in the place of one product"
            )
    _rows[cls] = [*rows, row]
    for forget in _forget:
        forget()


def _replaces(new: Socket, old: Socket) -> bool:
    return (new.array, new.method) == (old.array, old.method)


def when_registered(forget: Callable[[], None]) -> None:
    """Has a function called at each registration, such as that of a cache of classes.

    Args:
      forget: the function.
    """
    _forget.append(forget)


def rows_of(cls: type, method: str) -> tuple[Socket, ...]:
    """Returns the rows of a class for a method; none for one that it overrides."""
    for base in cls.__mro__:
        rows = tuple(row for row in _rows.get(base, ()) if row.method == method)
        if rows:
            same = getattr(cls, method) is getattr(base, method)
            return rows if same else ()
    return ()


def methods_of(cls: type) -> tuple[str, ...]:
    """Returns the methods that a class, or one of its parents, has rows for."""
    found = (row.method for base in cls.__mro__ for row in _rows.get(base, ()))
    return tuple(dict.fromkeys(found))


def overridden(cls: type, method: str) -> type | None:
    """Returns the registered class whose method a class overrides, if it does."""
    if rows_of(cls, method):
        return None
    for base in cls.__mro__:
        if any(row.method == method for row in _rows.get(base, ())):
            return base
    return None
