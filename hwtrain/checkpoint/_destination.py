"""Writes files and directories atomically."""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hwtrain.checkpoint import _disk as disk
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._files import path_of
from hwtrain.checkpoint._manifest import sync


@contextlib.contextmanager
def new(out: str | os.PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """Yields a hidden path beside `out` to write to, and renames it at the end.

    A killed process may leave the hidden path behind, but never a part of `out`; the
    next process that writes to `out` removes it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     with new(f"{directory}/chip.txt") as partial:
    ...         _ = partial.write_text("complete")
    ...     os.listdir(directory)
    ['chip.txt']

    Args:
      out: the destination; must not exist.
      folder: whether to create an empty directory; otherwise a file is expected.

    Raises:
      HardwareCheckpointError: if `out` exists or cannot be written. Nothing is left
        behind.
    """
    destination = path_of(out, "expected where to write to, which must not exist")
    check_free(destination)
    _remove_abandoned(destination)
    partial = destination.with_name(
        f".{destination.name}.{secrets.token_hex(4)}.partial"
    )
    lock = None
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            partial.mkdir()
            lock = _lock(partial)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        if os.path.lexists(destination):
            raise FileExistsError(f"{destination} was created in the meantime")
        partial.rename(destination)
        sync(destination.parent)
    except OSError as error:
        # Removed before the message states the free space, which this increases.
        _remove(partial)
        raise unwritten(destination, error) from error
    finally:
        _remove(partial)
        if lock is not None:
            os.close(lock)


def unwritten(destination: Path, error: OSError) -> HardwareCheckpointError:
    """Returns the error for a destination that the system could not write to."""
    return HardwareCheckpointError(
        f"{destination} could not be written: {disk.reason(error)}, "
        f"{disk.free(destination)} free there. Nothing was left behind; make room, "
        "or check permissions, and write it again"
    )


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        # Report the first error, not that there is nothing to remove.
        with contextlib.suppress(OSError):
            partial.unlink()


def check_free(path: Path) -> None:
    """Raises if a path exists already, or lies below a file."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise HardwareCheckpointError(
            f"{path} cannot be written, because {above} is a file; choose another path"
        )
    if os.path.lexists(path):
        raise HardwareCheckpointError(
            f"{path} exists and is never overwritten; choose another path, or "
            "remove it first"
        )


def check_writable(path: Path) -> None:
    """Raises if a path exists already or cannot be written, before work for it.

    Args:
      path: where a file will be written; folders above it need not exist.

    Raises:
      HardwareCheckpointError: saying why.
    """
    check_free(path)
    above = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        # Permissions alone do not tell: of a disk that is read-only, or for root.
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise unwritten(path, error) from error


def _lock(partial: Path) -> int | None:
    """Locks a directory for the lifetime of this process; `None` if it cannot."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # Its writer holds the lock, or the file system has no locks.
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(destination: Path) -> None:
    """Removes hidden paths that killed writers of a destination left behind."""
    pattern = f".{glob.escape(destination.name)}.{'[0-9a-f]' * 8}.partial"
    for partial in destination.parent.glob(pattern):
        if not partial.is_dir() or partial.is_symlink():
            continue
        lock = _lock(partial)
        if lock is not None:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
