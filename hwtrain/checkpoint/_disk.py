"""A disk that is full or refuses: one line that names the path and the free space."""

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
    """Turns what the disk says while something is written into one line.

    >>> with writing(Path("run/results.json")):
    ...     raise OSError(28, "No space left on device")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    OSError: run/results.json: could not be written: No space left on ...

    Args:
      path: what is written.
      hint: the way out.

    Raises:
      OSError: the line; its cause is what was raised.
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
    """Gives a hidden path to write a file to, which is `path` when all is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with complete(Path(folder) / "a.txt") as partial:
    ...         _ = partial.write_text("all")
    ...     os.listdir(folder)
    ['a.txt']

    Args:
      path: where the file shall be; what lies there is replaced.
      hint: the way out where it cannot be.

    Raises:
      OSError: if it cannot be written; what was there before is left as it is.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path, hint):
            yield partial
            partial.replace(path)
    except BaseException:
        # The first error is told, not that there is nothing to remove.
        with suppress(OSError):
            partial.unlink()
        raise


def reason(error: BaseException | None) -> str | None:
    """Returns what the operating system said; `None` if it was not that."""
    while error is not None:
        # TensorStore raises a ValueError, whose text ends with the number.
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is not None:
            return os.strerror(int(number[1]))
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def free(path: Path) -> str:
    """Returns the space that is free where a path lies, or is to lie."""
    there = next(p for p in [path, *path.absolute().parents] if p.is_dir())
    space, unit = float(shutil.disk_usage(there).free), 0
    while space >= 1000 and unit < 4:
        space, unit = space / 1000, unit + 1
    return f"{space:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
