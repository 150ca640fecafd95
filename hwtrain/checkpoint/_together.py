"""Writes a checkpoint in several processes."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from hwtrain._arrays.paths import join
from hwtrain._arrays.processes import exchanged, require_same, together
from hwtrain._arrays.shared import is_shared
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint._contents import Contents
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._items import Tensors
from hwtrain.checkpoint._manifest import sha256, sync
from hwtrain.checkpoint._progress import Report
from hwtrain.checkpoint._shares import as_json, from_json, own_items

on_all = functools.partial(together, True, HardwareCheckpointError)
"""Raises on all processes if its block raises on one."""


def write_together(
    path: str | os.PathLike[str], contents: Contents, report: Report | None = None
) -> None:
    """Writes a checkpoint; all processes call it. See `export`.

    Args:
      path: the destination.
      contents: the contents, equal on all processes.
      report: called with the number of written layers and the total.
    """
    require_equal(contents, str(path))
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        name = None
        with on_all():
            if first:
                made = stack.enter_context(destination.new(path, folder=True))
                contents.writer(made)
                name = str(made.absolute())
        partial = Path(exchanged(name)[0])
        # Without a common file system, only the first process writes.
        with on_all():
            there, items = partial.is_dir(), contents.items()
        sees = exchanged(there)
        writers = [process for process, there in enumerate(sees) if there]
        tensors: Tensors = {}
        layers, done = len(contents.plan), 0
        for item, turn in own_items(items, writers):
            done += sum(each.weight is not None for each in turn)
            with on_all(), _named(path):
                if item is not None:
                    tensors |= contents.writer(partial).write(item)
                if report is not None and turn[0].weight is not None:
                    report(done, layers)
        with on_all():
            own = as_json(tensors)
        said = exchanged(own)
        with on_all():
            if first:
                contents.finish(partial, from_json(said))
                stack.close()


def require_equal(contents: Contents, path: str = "") -> None:
    """Raises on all processes unless they are about to write the same; collective.

    Args:
      contents: the contents.
      path: the destination.
    """
    leaves = [
        (join(leaf.keys), leaf.kind, leaf.kind != "empty" and leaf.dtype.name)
        for leaf in contents.leaves
    ]
    shapes = [
        (leaf.shape, is_shared(leaf.value) and str(leaf.value.sharding))
        for leaf in contents.leaves
    ]
    # Only a digest of what is too long for a message.
    for what, value in {
        "the path": path,
        "the chip seeds": [*contents.seeds, *contents.measured],
        "the plan": sha256(repr(contents.plan).encode())[:8],
        "the names, shapes, dtypes and shardings of the variables": (
            sha256(repr((leaves, shapes)).encode())[:8]
        ),
    }.items():
        require_same(what, value, HardwareCheckpointError)


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Words the system's errors as those of the destination."""
    try:
        yield
    except OSError as error:
        raise destination.unwritten(Path(path), error) from error


def share_of(contents: Contents, directory: Path) -> Callable[[], None]:
    """Takes this process's share of the layers to its host; all processes call it.

    Args:
      contents: the contents, equal on all processes.
      directory: the directory that all processes write to.

    Returns:
      A function that writes the share, without the other processes. If one of them
      fails before, it raises on all: Orbax waits for all, so that an error of one would
      be one of time.
    """
    writers = range(jax.process_count())
    try:
        require_equal(contents)
        with on_all():
            items = contents.items()
        own = [item for item, _ in own_items(items, writers) if item is not None]
        with on_all():
            for item in own:
                item.check()
    except Exception as error:
        failed = error
        return lambda: _raise(failed)

    def write() -> None:
        writer, tensors = contents.writer(directory), {}
        for item in own:
            tensors |= writer.write(item)
        path = directory / _SHARE.format(jax.process_index())
        path.write_text(json.dumps(as_json(tensors)))
        sync(path)

    return write


def finish_shares(directory: Path, contents: Contents) -> None:
    """Writes the manifest of the shares that all processes wrote; one calls it.

    Args:
      directory: the directory.
      contents: the contents.

    Raises:
      HardwareCheckpointError: if the directory lacks the share of a process.
    """
    files = [directory / _SHARE.format(i) for i in range(jax.process_count())]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    if missing:
        raise HardwareCheckpointError(
            f"{directory} lacks the layers of process {missing[0]}: all processes "
            "should write to one file system, which each of them sees. Give the "
            "CheckpointManager a directory on a shared one, and Orbax's default "
            "primary_host=0; or export on one process"
        )
    tensors = from_json(json.loads(file.read_text()) for file in files)
    for file in files:
        file.unlink()
    contents.finish(directory, tensors)


_SHARE = "share-{}.json"
"""The name of the file that tells what a process wrote, until the step is finished."""


def _raise(error: Exception) -> None:
    raise error
