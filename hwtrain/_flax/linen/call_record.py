"""The state of a running call of an analog Linen root."""

import contextlib
import contextvars
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple


class Call(NamedTuple):
    """The current call; outside of calls, an empty one.

    Attributes:
      depth: number of running roots, nested in each other.
      running: the roots whose methods are running, each with a predicate for the
        root's modules: their inner calls are plain calls.
      kept: names of leaves beside an array that maps of variables must not change.
      own_leaves: the names of leaves declared by users' parts.
    """

    depth: int = 0
    running: tuple[tuple[Any, Any], ...] = ()
    kept: Container[str] = ()
    own_leaves: Sequence[str] = ()


_NONE = Call()

_call: contextvars.ContextVar[Call] = contextvars.ContextVar(
    "hwtrain_call", default=_NONE
)


def call() -> Call:
    """Returns the current call."""
    return _call.get()


@contextlib.contextmanager
def changed(**fields: Any) -> Iterator[None]:
    """Changes fields of the current call within a context.

    Args:
      **fields: fields of `Call`.
    """
    token = _call.set(_call.get()._replace(**fields))
    try:
        yield
    finally:
        _call.reset(token)
