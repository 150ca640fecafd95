"""Turns errors of a full or failing disk into one line with path and free space."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

AGAIN = "make room, and try again"
RESUME = "make room, and continue with --resume"


@contextmanager
def writing(path: Path, hint: str = AGAIN) -> Iterator[None]:
    """Turns the operating system's errors during a write into one line.

    >>> with writing(Path("run/results.json")):
    ...     raise OSError(28, "No space left on device")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    OSError: run/results.json: could not be written: No space left on ...

    Args:
      path: the path that is written.
      hint: the way out.

    Raises:
      OSError: with one line; its cause is the original error.
    """
    try:
        yield
    except Exception as error:
        why = reason(error)
        if why is None:
            raise
        raise OSError(
            f"{path}: could not be written: {why}, {free(path)} free there; {hint}"
        ) from error


@contextmanager
def complete(path: Path, hint: str = AGAIN) -> Iterator[Path]:
    """Yields a hidden path to write a file to, and renames it at the end.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with complete(Path(folder) / "a.txt") as partial:
    ...         _ = partial.write_text("all")
    ...     os.listdir(folder)
    ['a.txt']

    Args:
      path: the destination; an existing file is replaced.
      hint: the way out if it cannot be written.

    Raises:
      OSError: if it cannot be written; an existing file is then left unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path, hint):
            yield partial
            partial.replace(path)
    except BaseException:
        # Report the first error, not that there is nothing to remove.
        with suppress(OSError):
            partial.unlink()
        raise


def reason(error: BaseException | None) -> str | None:
    """Returns the operating system's message; `None` for other errors."""
    while error is not None:
        # TensorStore raises a ValueError whose text contains the error number.
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is not None:
            return os.strerror(int(number[1]))
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def free(path: Path) -> str:
    """Returns the free space at a path, which need not exist yet."""
    there = next(p for p in [path, *path.absolute().parents] if p.is_dir())
    space, unit = float(shutil.disk_usage(there).free), 0
    while space >= 1000 and unit < 4:
        space, unit = space / 1000, unit + 1
    return f"{space:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
