"""What is known of the call of an analog Linen root while it runs."""

import contextlib
import contextvars
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple


class Call(NamedTuple):
    """The call at hand; outside of all, one of nothing.

    Attributes:
      depth: how many roots are running, one inside the other.
      running: the roots whose methods are running, each with what says of a module
        that it is the root's: their inner calls are plain calls.
      kept: names of leaves beside an array that maps of variables are not to change.
      own_leaves: the names of leaves that users' parts declare.
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
    """Returns the call at hand."""
    return _call.get()


@contextlib.contextmanager
def changed(**fields: Any) -> Iterator[None]:
    """Changes what is known of the call at hand.

    Args:
      **fields: those of `Call`.
    """
    token = _call.set(_call.get()._replace(**fields))
    try:
        yield
    finally:
        _call.reset(token)
