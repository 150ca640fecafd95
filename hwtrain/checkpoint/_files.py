"""Checks the files of a checkpoint: regular, inside its directory, and all listed."""

import contextlib
import os
import stat
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO

from hwtrain.checkpoint._errors import HardwareCheckpointError

MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that Orbax adds to the directory of an item."""


def path_of(path: Any, what: str) -> Path:
    """Returns a caller's argument as a path.

    >>> try:
    ...     path_of(None, "load takes the directory that export wrote")
    ... except HardwareCheckpointError as error:
    ...     print(error)
    load takes the directory that export wrote, as a str or a Path; got None

    Args:
      path: the argument.
      what: which function takes which path, for the message.
    """
    if not isinstance(path, str | os.PathLike):
        raise HardwareCheckpointError(f"{what}, as a str or a Path; got {_short(path)}")
    return Path(path)


def _short(value: Any) -> str:
    return "None" if value is None else f"one of type {type(value).__name__}"


@contextlib.contextmanager
def opened(directory: Path, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a file of a checkpoint, and yields it with its size in bytes.

    Args:
      directory: the checkpoint.
      name: the file's name in it.

    Raises:
      HardwareCheckpointError: if it cannot be read, or is not a regular file inside the
        directory; in that case nothing is read from it.
    """
    path = directory / name
    try:
        target = path.resolve()
        if not target.is_relative_to(directory.resolve()):
            raise HardwareCheckpointError(
                f"{path} leads out of the checkpoint, to {target}; it was not read. "
                "Copy the checkpoint together with the targets of its links"
            )
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise damaged(path, "it is not a regular file")
            yield file, found.st_size
    except (OSError, RuntimeError) as error:
        # Before Python 3.13, a cycle of links raises a RuntimeError.
        why = getattr(error, "strerror", None) or error
        raise damaged(path, f"it cannot be read ({why})") from error


def check_listed(directory: Path, listed: Set[str]) -> None:
    """Raises if a checkpoint contains files that it does not list.

    Args:
      directory: the checkpoint.
      listed: the names of its files.

    Raises:
      HardwareCheckpointError: naming the first such file.
    """
    for folder, folders, names in os.walk(directory, onerror=_unreadable):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*names, *links]):
            path = Path(folder, name)
            relative = path.relative_to(directory).as_posix()
            if relative not in listed and relative not in MARKS:
                raise HardwareCheckpointError(
                    f"{path} is in the checkpoint but not in its manifest, so it "
                    "cannot be trusted. Move it out of the directory"
                )


def _unreadable(error: OSError) -> None:
    raise HardwareCheckpointError(
        f"{error.filename} cannot be read: {error.strerror}. Check its permissions"
    ) from error


def damaged(path: Path, why: str) -> HardwareCheckpointError:
    """Returns the error for a file that differs from the one that was written."""
    return HardwareCheckpointError(
        f"{path} is damaged or was edited: {why}. Get the checkpoint again from its "
        "source, or export the model again"
    )
