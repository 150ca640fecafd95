"""Arrays that are spread over several processes.

A tree is shared if one of its arrays has parts on the devices of all processes, which
then call a function on it together; on other arrays, each for itself.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from hwtrain._arrays.paths import leaves as leaves_of
from hwtrain._arrays.processes import exchanged, together
from hwtrain._errors import InputError


def is_shared(tree: Any) -> bool:
    """Returns whether a tree has an array with parts that other processes hold.

    >>> is_shared({"kernel": jnp.ones(3)})
    False

    Raises:
      ValueError: if such arrays are on the devices of some processes only: those to
        which an array is local would not wait for the others.
    """
    partly = None
    for path, leaf in leaves_of(tree).items():
        try:
            if is_on_all(leaf, path):
                return True
        except ValueError as error:
            partly = error
    if partly is not None:
        raise partly
    return False


def is_on_all(leaf: Any, path: str = "") -> bool:
    """Returns whether one leaf is shared; see `is_shared`.

    >>> is_on_all(jnp.ones(3))
    False

    Args:
      leaf: the leaf.
      path: its path, for the message.
    """
    array = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    if not array or leaf.is_fully_addressable:
        return False
    found = sorted({device.process_index for device in leaf.sharding.device_set})
    if len(found) < jax.process_count():
        raise InputError(
            f"{path or 'an array'} is on devices of the processes {found} only, of "
            f"{jax.process_count()}, and this is process {jax.process_index()}: spread "
            "arrays over the devices of all processes, which then call this together; "
            "or let the one process that has them call it"
        )
    return True


def require_alike(tree: Any) -> None:
    """Raises on all processes unless they hold like arrays; all of them call it.

    Otherwise one would start a program that the others do not take part in.

    >>> require_alike({"kernel": jnp.ones(3)})

    Args:
      tree: arrays, or numbers.

    Raises:
      ValueError: naming an array of another shape, dtype or sharding.
    """
    with together(True):
        described = [[x, _text(leaf, x)] for x, leaf in leaves_of(tree).items()]
    said = exchanged(described)
    for process, other in enumerate(said):
        for one, another in itertools.zip_longest(said[0], other):
            if one != another:
                raise InputError(
                    "all processes should call this with like arrays; process 0 has "
                    f"{_pair(one)}, process {process} has {_pair(another)}"
                )


def _text(leaf: Any, path: str) -> str:
    """Describes an array."""
    dtype = getattr(leaf, "dtype", type(leaf).__name__)
    where = f" on {leaf.sharding}" if is_on_all(leaf, path) else ""
    return f"{dtype}{list(np.shape(leaf))}{where}"


def _pair(described: list[str] | None) -> str:
    return "no more" if described is None else ": ".join(described)


def gathered(values: Sequence[Any], reader: int | None = None) -> list[np.ndarray]:
    """Copies arrays to the host; all processes call it if one of them is shared.

    >>> gathered([jnp.ones(2), 2.0])
    [array([1., 1.], dtype=float32), array(2.)]

    Args:
      values: arrays, or numbers.
      reader: the process that reads them; `None` for all.

    Returns:
      The arrays; none on processes that do not read.
    """
    reads = reader in (None, jax.process_index())
    # All that processes do together comes first: what fails on one of them may then be
    # told to the others.
    spread = [is_on_all(x) and not x.is_fully_replicated for x in values]
    sent = [_whole(x) if parts else x for x, parts in zip(values, spread)]
    if not reads:
        return []
    return [np.asarray(x if parts else _copy(x)) for x, parts in zip(sent, spread)]


def _copy(value: Any) -> Any:
    """Returns a copy of an array that this process has.

    A copy, because a JAX array keeps what was read from it, so that a whole model would
    accumulate on the host.
    """
    if not isinstance(value, jax.Array):
        return np.array(value)
    whole = value.is_fully_addressable
    return jnp.copy(value if whole else value.addressable_data(0))


def _whole(value: jax.Array) -> Any:
    """Returns all of an array, of which other processes have parts, on this process."""
    if not isinstance(value.sharding, NamedSharding):
        return multihost_utils.process_allgather(value, tiled=True)
    whole = NamedSharding(value.sharding.mesh, PartitionSpec())
    return jax.device_put(value, whole).addressable_data(0)


def placed(array: np.ndarray, sharding: Any) -> jax.Array:
    """Returns a host array on the devices of a sharding.

    Of a sharding over several processes, each places its own part; all have the array.

    >>> device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> placed(np.float32([1, 2]), device)
    Array([1., 2.], dtype=float32)

    Args:
      array: the array.
      sharding: the sharding.
    """
    # Copies: a part that is a view would keep all of the array in memory. The dtype is
    # for processes without a part.
    return jax.make_array_from_callback(
        array.shape,
        sharding,
        lambda index: np.array(array[index]),
        dtype=array.dtype,
    )


def placed_as(value: Any, array: Any) -> Any:
    """Returns an array where a shared value is; unchanged if that is not shared.

    Args:
      value: the value.
      array: the array that takes its place, on the host or on this process's devices.
    """
    shared = is_shared(value) and not is_shared(array)
    return placed(np.asarray(array), value.sharding) if shared else array


def placed_beside(value: Any, array: Any) -> Any:
    """Returns an array on all devices of a shared value; see `placed_as`."""
    shared = is_shared(value) and not is_shared(array)
    if not shared or not isinstance(value.sharding, NamedSharding):
        return array
    whole = NamedSharding(value.sharding.mesh, PartitionSpec())
    return placed(np.asarray(array), whole)


def local_copy(tree: Any, reader: int) -> Any:
    """Returns a tree with its arrays on one process, on its default device.

    >>> local_copy({"bias": jnp.zeros(1)}, 0)
    {'bias': Array([0.], dtype=float32)}

    Args:
      tree: the tree; all processes call this if one of its arrays is shared.
      reader: the process that gets the arrays; others get `None` in their place.
    """
    shared = is_shared(tree)

    def one(leaf: Any) -> Any:
        with together(shared):
            found = gathered([leaf], reader)
            return jnp.asarray(found[0]) if found else None

    return jax.tree.map(one, tree)
