"""Puts the values of a checkpoint onto the devices of a mesh."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from hwtrain._arrays import paths
from hwtrain._arrays.shared import placed
from hwtrain.checkpoint._entries import DTYPES, LeafEntry
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._manifest import Manifest
from hwtrain.checkpoint._of_nnx import collections_of
from hwtrain.checkpoint._variables import as_leaf


@dataclasses.dataclass(frozen=True)
class Placing:
    """Where the leaves of a checkpoint are put.

    Attributes:
      shardings: by collection and path; `None` for the default device.
    """

    shardings: Mapping[str, Sharding] | None = None

    def put(self, leaf: LeafEntry, array: np.ndarray) -> Any:
        """Returns the value of a leaf on its devices.

        Args:
          leaf: the leaf.
          array: what the checkpoint stores.
        """
        if self.shardings is None or not _is_placed(array.dtype):
            return as_leaf(array, leaf.key_impl)
        sharding = self.shardings[_name(leaf)]
        if leaf.key_impl is None:
            return placed(array, sharding)
        # Its data have an axis more than the key.
        if isinstance(sharding, NamedSharding):
            whole = NamedSharding(sharding.mesh, PartitionSpec())
            key = jax.random.wrap_key_data(placed(array, whole), impl=leaf.key_impl)
            return jax.device_put(key, sharding)
        return jax.random.wrap_key_data(placed(array, sharding), impl=leaf.key_impl)


def placing_of(sharding: Any, manifest: Manifest) -> Placing:
    """Returns where the leaves are put; see `load`.

    Raises:
      HardwareCheckpointError: if a leaf has no sharding, or one that cannot divide it,
        or there is one of another leaf, or an array of another shape.
    """
    if sharding is None:
        return Placing()
    leaves = [leaf for leaf in manifest.leaves if leaf.kind != "empty"]
    found = _of_leaves(sharding, leaves, manifest)
    for leaf in leaves:
        _check_divides(leaf, found[_name(leaf)])
    return Placing(found)


def spans_processes(sharding: Any) -> bool:
    """Returns whether all processes get a part of what is placed by `sharding`.

    Args:
      sharding: as for `load`.
    """
    if isinstance(sharding, Sharding):
        found = {device.process_index for device in sharding.device_set}
        return 1 < len(found) == jax.process_count()
    given = (getattr(leaf, "sharding", leaf) for leaf in jax.tree.leaves(sharding))
    return any(spans_processes(x) for x in given if isinstance(x, Sharding))


def _of_leaves(
    sharding: Any, leaves: Sequence[LeafEntry], manifest: Manifest
) -> dict[str, Sharding]:
    """Returns the sharding of each leaf by name."""
    if isinstance(sharding, Sharding):
        return {_name(leaf): sharding for leaf in leaves}
    given = _by_name(sharding)
    for weight in manifest.plan.weights:
        # The model derives this weight from the stored one, and has no leaf of it.
        stored = given.get(f"params/{weight.stored}")
        if weight.derived and stored is not None:
            given.setdefault(f"params/{weight.path}", stored)
    names = [_name(leaf) for leaf in leaves]
    _check_names(names, given)
    return {_name(x): _of(x, given[_name(x)]) for x in leaves}


def _is_placed(dtype: np.dtype) -> bool:
    """Whether JAX has the dtype; an array that it would narrow stays on the host."""
    return jax.dtypes.canonicalize_dtype(dtype) == dtype


def _shape(leaf: LeafEntry) -> tuple[int, ...]:
    """Returns the shape of a leaf; that of a key, not of its data."""
    shape = tuple(leaf.shape or ())
    return shape if leaf.key_impl is None else shape[:-1]


def _check_divides(leaf: LeafEntry, sharding: Sharding) -> None:
    """Raises for a sharding that has more axes than a leaf, or uneven parts of it."""
    if not _is_placed(DTYPES[leaf.dtype or ""]):
        return
    shape, named, why = _shape(leaf), isinstance(sharding, NamedSharding), ""
    axes = len(sharding.spec) if isinstance(sharding, NamedSharding) else 0
    if axes > len(shape):
        why = f"it is for {axes} axes or more"
    else:
        try:
            sharding.shard_shape(shape if named else tuple(leaf.shape or ()))
        except (IndexError, ValueError):
            why = "it does not divide the shape into equal parts"
    if why:
        raise HardwareCheckpointError(
            f"sharding= does not fit {_name(leaf)} of shape {shape}: {why}; got "
            f"{sharding}. Give a tree like checkpoint.variables with a sharding for "
            "each leaf, and NamedSharding(mesh, PartitionSpec()) for what is to be "
            "whole on each device"
        )


def _name(leaf: LeafEntry) -> str:
    return f"{paths.join(leaf.keys[:1])}/{leaf.path}"


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by collection and path."""
    if isinstance(tree, nnx.Module | nnx.State):
        tree = collections_of(tree)
    if not isinstance(tree, Mapping):
        raise HardwareCheckpointError(
            "sharding= takes one jax.sharding.Sharding, or a tree like the variables "
            "of shardings, or of arrays or shapes that have them; got a "
            f"{type(tree).__name__}"
        )
    if not isinstance(tree.get("params"), Mapping):
        tree = {"params": tree}
    return {
        f"{paths.join([collection])}/{path}": leaf
        for collection, leaves in tree.items()
        for path, leaf in paths.leaves(leaves).items()
    }


def _check_names(names: Iterable[str], given: Mapping[str, Any]) -> None:
    missing = [name for name in names if name not in given]
    foreign = sorted(given.keys() - {*names})
    if missing or foreign:
        what = [f"it has none for {name}" for name in missing[:3]]
        what += [f"the checkpoint has no {name}" for name in foreign[:3]]
        raise HardwareCheckpointError(
            f"sharding= is a tree of other variables: {'; '.join(what)}. Give a tree "
            "like checkpoint.variables, or one sharding for all leaves"
        )


def _of(leaf: LeafEntry, given: Any) -> Sharding:
    """Returns the sharding of a leaf, given itself or by an array or a shape."""
    if isinstance(given, Sharding):
        return given
    sharding = getattr(given, "sharding", None)
    if not isinstance(sharding, Sharding):
        raise HardwareCheckpointError(
            f"sharding= should say where {_name(leaf)} is put, by a "
            "jax.sharding.Sharding or an array or shape that has one; got a "
            f"{type(given).__name__}{' without' if sharding is None else ''}"
        )
    shape = _shape(leaf)
    if tuple(given.shape) != shape:
        raise HardwareCheckpointError(
            f"{_name(leaf)} has the shape {shape} in the checkpoint, but "
            f"{tuple(given.shape)} in the tree that sharding= was given"
        )
    return sharding
