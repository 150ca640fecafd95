"""The table of products that `register` writes to, and its queries."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hwtrain._arrays import paths
from hwtrain._errors import InputError


class Socket(NamedTuple):
    """A row of the table.

    Attributes:
      array: name of the array; or a path of names if it belongs to a module within.
      equation: equation of inputs, array and result, or a function that returns it, of
        the module or, in Linen, of the module and the method's arguments.
      method: name of the method that multiplies.
      dot_general: name of the attribute that it calls as `jax.lax.dot_general`.
      einsum: name of the attribute that it calls as `jnp.einsum`.
      conv: name of the attribute that it calls as `jax.lax.conv_general_dilated`.
      call: the rewritten method, which states its products.
      written: the rewritten method, which receives its hardware. Called with the
        module, the plans of its arrays and the leaves beside them, each by array, the
        mode, and the method's arguments.
      kind: how it multiplies, one of `KINDS`.
      layer: for hwtrain's own rows, instead of an equation: returns the layer's data
        for the plan. Called with the module and, in Linen, the method's arguments.
      watched: calls the method with the array marked. Needed if the array is neither
        the second operand of its product nor returned by its `promote_dtype`.
      built_in: whether the row is hwtrain's own.
    """

    array: str | tuple[str, ...]
    equation: str | Callable[..., str] = ""
    method: str = "__call__"
    dot_general: str | None = None
    einsum: str | None = None
    conv: str | None = None
    call: Callable[..., Any] | None = None
    written: Callable[..., Any] | None = None
    kind: str = "einsum"
    layer: Callable[..., Any] | None = None
    watched: Callable[..., Any] | None = None
    built_in: bool = False

    @property
    def leaf(self) -> str:
        """Path of the array relative to its layer."""
        names = (self.array,) if isinstance(self.array, str) else self.array
        return paths.join(names)

    @property
    def field(self) -> str | None:
        """Name of the attribute that the hardware's product replaces."""
        return self.dot_general or self.einsum or self.conv


_rows: dict[type, list[Socket]] = {}
_digital: dict[type, str] = {}
_rewriting: set[type] = set()
_forget: list[Callable[[], None]] = []

_EQUATION = re.compile(r"[A-Za-z.]+,([A-Za-z.]+)->[A-Za-z.]*")


def array_letters(equation: str) -> str:
    """Returns the letters of the second operand of an equation, the array.

    >>> array_letters("...i, io -> ...o")
    'io'

    Raises:
      ValueError: unless it is an equation of two operands and a result.
    """
    found = _EQUATION.fullmatch(equation.replace(" ", ""))
    if found is None:
        raise InputError(
            "expected an equation of inputs, array and result, such as "
            f"'...i,io->...o'; got {equation!r}"
        )
    return found[1]


def add(cls: type, row: Socket) -> None:
    """Adds a row to the table, replacing one for the same array and method.

    A user's rows take precedence over hwtrain's own. These are kept, because they tell
    what a parent's method of the same name multiplies by.

    Raises:
      ValueError: if it contradicts another row of the class.
    """
    rows = [old for old in _rows.get(cls, []) if not _replaces(row, old)]
    for old in rows:
        if (old.method, old.built_in) != (row.method, row.built_in):
            continue
        if row.call is not old.call and None not in (row.call, old.call):
            raise InputError(
                f"{cls.__name__}.{row.method} is already replaced; one function must "
                "multiply by all of its arrays"
            )
        if row.field is not None and row.field == old.field:
            raise InputError(
                f"{cls.__name__}.{row.field} multiplies by {old.array!r}; an attribute "
                "can replace only one product"
            )
    _rows[cls] = [*rows, row]
    for forget in _forget:
        forget()


def _replaces(new: Socket, old: Socket) -> bool:
    return (new.array, new.method, new.built_in) == (
        old.array,
        old.method,
        old.built_in,
    )


def add_built_in(
    classes: Iterable[type],
    *arrays: str | tuple[str, ...],
    **options: Any,
) -> None:
    """Adds rows of hwtrain's own to the table.

    A class that overrides one of the methods with rows is not covered by them.

    Args:
      classes: classes of Flax.
      *arrays: the arrays that a method multiplies by.
      **options: the other fields of `Socket`.
    """
    for cls in classes:
        for array in arrays:
            add(cls, Socket(array, built_in=True, **options))


def keep_digital(classes: Iterable[type], why: str) -> None:
    """Records why classes without rows stay digital."""
    _digital.update(dict.fromkeys(classes, why))


def why_digital(cls: type) -> str | None:
    """Returns why a class stays digital, by itself or through a parent."""
    return next((_digital[base] for base in cls.__mro__ if base in _digital), None)


def add_rewriting(classes: Iterable[type]) -> None:
    """Registers modules that compute the arrays of their inner layer at each call."""
    _rewriting.update(classes)


def is_rewriting(module: Any) -> bool:
    """Whether a module computes the arrays of its inner layer at each call."""
    return isinstance(module, tuple(_rewriting))


def when_registered(forget: Callable[[], None]) -> None:
    """Calls a function at each registration, for example to clear a cache.

    Args:
      forget: the function.
    """
    _forget.append(forget)


def rows_of(cls: type, method: str, built_in: bool | None = None) -> tuple[Socket, ...]:
    """Returns the rows of a class for a method; none if it overrides the method.

    Args:
      cls: the class.
      method: name of the method.
      built_in: `True` for hwtrain's own rows only, `False` for users' rows only; `None`
        for users' rows if there are any, else hwtrain's.
    """
    for base in cls.__mro__:
        rows = _of(base, method, built_in)
        if rows:
            # Methods that Flax defines together have to be overridden together.
            own = _methods(base, True) if rows[0].built_in else (method,)
            same = all(getattr(cls, name) is getattr(base, name) for name in own)
            return rows if same else ()
    return ()


def _of(base: type, method: str, built_in: bool | None) -> tuple[Socket, ...]:
    rows = [row for row in _rows.get(base, ()) if row.method == method]
    if built_in is not None:
        return tuple(row for row in rows if row.built_in == built_in)
    users = [row for row in rows if not row.built_in]
    return tuple(users or rows)


def _methods(base: type, built_in: bool | None) -> tuple[str, ...]:
    rows = (r for r in _rows.get(base, ()) if built_in in (None, r.built_in))
    return tuple(dict.fromkeys(row.method for row in rows))


def methods_of(cls: type, built_in: bool | None = None) -> tuple[str, ...]:
    """Returns the methods for which a class, or one of its parents, has rows.

    Args:
      cls: the class.
      built_in: `True` for hwtrain's own rows only, `False` for users' rows only.
    """
    found = (name for base in cls.__mro__ for name in _methods(base, built_in))
    return tuple(dict.fromkeys(found))


def arrays_of(cls: type, built_in: bool | None = None) -> dict[str, tuple[str, ...]]:
    """Returns the multiplying methods of a class, with the arrays that each needs."""
    found = {name: rows_of(cls, name, built_in) for name in methods_of(cls, built_in)}
    return {
        method: tuple(row.leaf for row in rows)
        for method, rows in found.items()
        if rows
    }


def overridden(cls: type, method: str) -> tuple[str, bool] | None:
    """Returns the method with rows that a class overrides, if there is one.

    Returns:
      Its name, and whether the rows are hwtrain's own.
    """
    if rows_of(cls, method):
        return None
    for base in cls.__mro__:
        rows = _of(base, method, None)
        if rows and not rows[0].built_in:
            return f"{base.__name__}.{method}", False
        if rows and rows[0].layer is not None:
            name, several = base.__name__, len(_methods(base, True)) > 1
            return f"a method of {name}" if several else f"{name}.{method}", True
    return None
