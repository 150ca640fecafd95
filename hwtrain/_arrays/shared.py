"""Arrays that are spread over several processes.

A tree is shared if one of its arrays has parts that only other processes can read. All
processes then call a function on it together; on other arrays, each for itself.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec


def is_shared(tree: Any) -> bool:
    """Returns whether a tree has an array with parts that other processes hold.

    >>> is_shared({"kernel": jnp.ones(3)})
    False
    """
    return any(
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, Tracer)
        and not leaf.is_fully_addressable
        for leaf in jax.tree.leaves(tree)
    )


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
    found = [_readable(value) for value in values if reads or is_shared(value)]
    return [np.asarray(value) for value in found] if reads else []


def _readable(value: Any) -> Any:
    """Returns a copy on this process's devices of all of an array.

    A copy, because a JAX array keeps what was read from it, so that a whole model would
    accumulate on the host.
    """
    if not isinstance(value, jax.Array):
        return np.array(value)
    if value.is_fully_addressable:
        return jnp.copy(value)
    if value.is_fully_replicated:
        return jnp.copy(value.addressable_data(0))
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
    # Copies: a part that is a view would keep all of the array in memory.
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.array(array[index])
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

    def one(leaf: Any) -> Any:
        found = gathered([leaf], reader)
        return jnp.asarray(found[0]) if found else None

    return jax.tree.map(one, tree)
