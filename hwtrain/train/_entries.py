"""Entries of a configuration that lead to code which raises."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hwtrain._parts.source import reason


class EntryError(ValueError):
    """An entry of a configuration is wrong; the message begins with its key.

    Attributes:
      key: of the entry, names joined by dots.
    """

    def __init__(self, key: str, text: str):
        super().__init__(f"{key}: {text}")
        self.key = key


@contextmanager
def named(key: str, source: str = "", *, given: str = "") -> Iterator[None]:
    """Turns whatever an entry of a configuration leads to into one line that names it.

    >>> with named("data", "recipe.py:data"):
    ...     {}["train"]
    Traceback (most recent call last):
    hwtrain.train._entries.EntryError: data: recipe.py:data raised KeyError: 'train'

    Args:
      key: of the entry.
      source: the function that is called, as the configuration names it.
      given: what it was given, for the message.

    Raises:
      EntryError: (a `ValueError`) the line; its cause is what was raised. Where it is
        of another entry, it passes as it is.
    """
    try:
        yield
    except EntryError:
        raise
    except Exception as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        module = frames[-1][0].f_globals.get("__name__", "")
        if isinstance(error, ValueError) and module.startswith("hwtrain."):
            raise EntryError(key, " ".join(str(error).split())) from error
        given = f", given {given}" if given else ""
        raised = f"{source or 'what it leads to'} raised {reason(error)}{given}"
        raise EntryError(key, raised) from error
