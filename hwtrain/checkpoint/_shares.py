"""Which process writes which files of a checkpoint, and what it reports of them."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from hwtrain._arrays.processes import together
from hwtrain.checkpoint._entries import TensorEntry
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._items import Item, Tensors


def shares(items: Sequence[Item], writers: Sequence[int]) -> list[list[Item]]:
    """Returns the items that each process writes, of about equal sizes.

    The largest items come first, so that processes that write at once take as long.

    Args:
      items: the items.
      writers: the processes that write, in order. A single one keeps the items' order.
    """
    if len(writers) == 1:
        return [[*items]]
    found: list[list[Item]] = [[] for _ in writers]
    sizes = [0] * len(writers)
    for item in sorted(items, key=lambda item: -item.bytes):
        least = sizes.index(min(sizes))
        found[least].append(item)
        sizes[least] += item.bytes
    return found


def own_items(
    items: Sequence[Item], writers: Sequence[int]
) -> Iterator[tuple[Item | None, list[Item]]]:
    """Yields the items that this process writes, with their values on its host.

    All processes call it, in the same turns.

    A layer is sent to the process that writes it, when its turn comes; at any time each
    process holds the one that it writes, and while it is sent, each device a copy.

    Args:
      items: all items.
      writers: the processes that write; see `shares`.

    Yields:
      For each turn: the process's own item, or `None` if it has none, and the items of
      all processes.

    Raises:
      HardwareCheckpointError: on all processes if one has no values, or no memory.
    """
    me = jax.process_index()
    with together(True, HardwareCheckpointError):
        for item in items:
            item.require_values()
    for turn in itertools.zip_longest(*shares(items, writers)):
        own = None
        for writer, item in zip(writers, turn):
            if item is None:
                continue
            with together(True, HardwareCheckpointError):
                found = item.on_host(writer)
            own = found if writer == me else own
            del found
        yield own, [item for item in turn if item is not None]


def as_json(tensors: Tensors) -> dict[str, Any]:
    """Returns entries as JSON holds them."""
    return {
        file: {name: entry.model_dump(mode="json") for name, entry in entries.items()}
        for file, entries in tensors.items()
    }


def from_json(said: Iterable[dict[str, Any]]) -> Tensors:
    """Returns the entries of several processes; see `as_json`."""
    return {
        file: {
            name: TensorEntry.model_validate_json(json.dumps(entry))
            for name, entry in entries.items()
        }
        for part in said
        for file, entries in part.items()
    }
