"""Errors for bad input on the command line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class BadInputError(Exception):
    """The user's input is wrong; the message is one line for them."""


@contextmanager
def bad_input(*kinds: type[Exception]) -> Iterator[None]:
    r"""Turns hwtrain's errors about files, names and values into one line.

    The page of the docs that an error names, in a note, comes last.

    >>> with bad_input():
    ...     raise ValueError("config.toml: expected a file,\n got none")
    Traceback (most recent call last):
    hwtrain.cli._errors.BadInputError: config.toml: expected a file, got none

    Args:
      *kinds: the types of errors to turn; by default `ValueError` and `OSError`.

    Raises:
      BadInputError: with the line; its cause is the original error.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, kinds or (ValueError, OSError)):
            raise
        line = " ".join(str(error).split())
        pages = [note.removeprefix("See ") for note in getattr(error, "__notes__", ())]
        raise BadInputError(f"{line} ({pages[0]})" if pages else line) from error


def print_error(text: str) -> None:
    """Prints one line to stderr."""
    print(f"hwtrain: {text}", file=sys.stderr)
