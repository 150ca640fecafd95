"""Agreement between the processes of one program.

What one process alone learns, such as an error, the others learn here: each of them
would otherwise wait for it without end at the next operation that all take part in.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from hwtrain._errors import InputError

Item = TypeVar("Item")

_END = object()
"""Stands for the item after the last."""


def exchanged(value: Any) -> list[Any]:
    """Returns the values of all processes in their order; all of them call it.

    >>> exchanged({"files": 3})
    [{'files': 3}]

    Args:
      value: what JSON holds.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    # Of few different lengths, because each is a program of its own.
    length = 1 << max(10, int(sizes.max() - 1).bit_length())
    padded = np.zeros(length, np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:size].tobytes())
        for row, size in zip(np.asarray(rows), sizes.tolist())
    ]


@contextlib.contextmanager
def together(shared: bool, error: type[Exception] = ValueError) -> Iterator[None]:
    """Raises on all processes if the block raises on one of them.

    Otherwise the others would wait for it without end.

    >>> with together(False):
    ...     pass

    Args:
      shared: whether all processes run the block; otherwise it does nothing.
      error: type of the error on those that succeeded.

    Raises:
      error: naming the first process that failed, and its error.
    """
    if not shared:
        yield
        return
    own: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        own = raised
    # An empty text would look like success.
    text = None if own is None else str(own) or type(own).__name__
    said = exchanged(text)
    if own is not None:
        raise own
    for process, why in enumerate(said):
        if why is not None:
            raise error(f"process {process} of {len(said)}: {why}")


def require_same(what: str, value: Any, error: type[Exception] = ValueError) -> None:
    """Raises on all processes unless a value is the same on all; all of them call it.

    >>> require_same("the path", "chip")

    Args:
      what: the value's name, for the message.
      value: what JSON holds.
      error: type of the error.

    Raises:
      error: naming the processes that differ.
    """
    said = exchanged(value)
    for process, other in enumerate(said):
        if other != said[0]:
            raise error(
                f"{what} should be the same on all processes, which call this "
                f"together; process 0 has {said[0]!r}, process {process} has {other!r}"
            )


def in_step(items: Iterable[Item], shared: bool) -> Iterator[Item]:
    """Yields items; if all processes do so, each of them yields as many.

    >>> list(in_step(range(2), False))
    [0, 1]

    Args:
      items: the items, such as batches.
      shared: whether all processes call this.

    Raises:
      ValueError: on all processes if some have fewer items, or getting one fails.
    """
    if not shared:
        yield from items
        return
    rest = iter(items)
    for number in itertools.count():
        with together(True):
            item = next(rest, _END)
        more = exchanged(item is not _END)
        if not all(more):
            if any(more):
                raise InputError(
                    f"process {more.index(False)} has {number} batches, and process "
                    f"{more.index(True)} has more; all take part in each of them, so "
                    "give all as many"
                )
            return
        yield item  # type: ignore[misc]


def source_of(knows: bool) -> int:
    """Returns the process that knows something; all of them call it.

    JAX calls a callback of a program on the process of the first device only.

    >>> source_of(True)
    0

    Args:
      knows: whether this process knows it; if none does, the first is named.
    """
    known = exchanged(knows)
    return known.index(True) if any(known) else 0


def answered(answer: Callable[[], Any], source: int, shared: bool) -> Any:
    """Returns what a function returns on one process, on all of them.

    >>> answered(lambda: ["a"], 0, False)
    ['a']

    Args:
      answer: returns what JSON holds.
      source: the process that calls it.
      shared: whether all processes call this; otherwise the function is called here.

    Raises:
      ValueError: on all processes if the function raises.
    """
    if not shared:
        return answer()
    found = None
    with together(True):
        if jax.process_index() == source:
            found = answer()
    return exchanged(found)[source]


def of_one(
    values: Callable[[], dict[str, np.ndarray]], knows: bool, shared: bool
) -> dict[str, np.ndarray]:
    """Returns arrays that one process knows, on all of them.

    >>> of_one(lambda: {"range": np.ones(1)}, True, False)
    {'range': array([1.])}

    Args:
      values: returns the arrays by name.
      knows: whether this process knows them; see `source_of`.
      shared: whether all processes call this.

    Raises:
      ValueError: on all processes if `values` raises.
    """
    if not shared:
        return values()
    source, found = source_of(knows), {}

    def described() -> list[Any]:
        found.update(values())
        return [[name, x.shape, x.dtype.name] for name, x in found.items()]

    here, data = jax.process_index() == source, {}
    rows = answered(described, source, True)
    with together(True):
        for name, shape, dtype in rows:
            array = found[name] if here else np.zeros(shape, np.dtype(dtype))
            # As bytes, because they are added up: a negative zero would lose its sign.
            data[name] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    arrays = {}
    for name, shape, dtype in rows:
        with together(True):
            sent = multihost_utils.broadcast_one_to_all(data[name], is_source=here)
            arrays[name] = np.asarray(sent).view(np.dtype(dtype)).reshape(shape)
    return arrays
