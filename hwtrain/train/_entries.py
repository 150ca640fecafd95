"""Errors that name the configuration entry that caused them."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hwtrain._errors import InputError
from hwtrain._parts.source import reason


class EntryError(InputError):
    """An entry of a configuration is wrong; the message begins with its key.

    Attributes:
      key: the entry's key, names joined by dots.
    """

    def __init__(self, key: str, text: str):
        super().__init__(f"{key}: {text}")
        self.key = key


@contextmanager
def named(key: str, source: str = "", *, given: str = "") -> Iterator[None]:
    """Turns any error raised under an entry of a configuration into one line naming it.

    >>> try:
    ...     with named("data", "recipe.py:data"):
    ...         {}["train"]
    ... except EntryError as error:
    ...     print(error)
    data: recipe.py:data raised KeyError: 'train'

    Args:
      key: the entry's key.
      source: the function that is called, as the configuration names it.
      given: its arguments, for the message.

    Raises:
      EntryError: (a `ValueError`) with one line; its cause is the original error. An
        `EntryError` of another entry passes unchanged.
    """
    try:
        yield
    except EntryError:
        raise
    # A recipe that calls sys.exit would end the command as if all were well.
    except (Exception, SystemExit) as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        module = frames[-1][0].f_globals.get("__name__", "")
        if isinstance(error, ValueError) and module.startswith("hwtrain."):
            raise EntryError(key, " ".join(str(error).split())) from error
        given = f", given {given}" if given else ""
        raised = f"{source or 'what it leads to'} raised {reason(error)}{given}"
        raise EntryError(key, raised) from error
