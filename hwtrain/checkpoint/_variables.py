"""Converts variables to a flat list of leaves."""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.tree_util import DictKey, GetAttrKey

from hwtrain._arrays import paths
from hwtrain._arrays.shared import gathered, is_on_all, is_shared
from hwtrain.checkpoint._entries import DTYPES, tensor_name
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._layout import order
from hwtrain.checkpoint._of_nnx import collections_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Leaf:
    """A leaf of the variables, not yet copied from its device.

    Attributes:
      keys: its keys, starting with the collection.
      path: its path within the collection.
      value: the array, or an empty mapping; for a PRNG key, its key data.
      key_impl: the implementation of a PRNG key; `None` for numbers.
      probe: whether it is the probe of an analog layer, which carries no information.
    """

    keys: tuple[str | int, ...]
    path: str
    value: Any
    key_impl: str | None = None
    probe: bool = False

    @property
    def tensor(self) -> str:
        """The name of its tensor."""
        return tensor_name(self.keys)

    @property
    def kind(self) -> str:
        """How the manifest stores it."""
        if isinstance(self.value, Mapping):
            return "empty"
        return "zeros" if self.probe else "tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its array; empty for an empty mapping."""
        return () if self.kind == "empty" else np.shape(self.value)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of its array."""
        return _dtype(self.value)

    def array(self) -> np.ndarray:
        """Copies the leaf from its device.

        Raises:
          HardwareCheckpointError: if it is only a shape, from a model that is checked
            before it has values.
        """
        self.require_value()
        (array,) = gathered([self.value])
        return array

    def require_value(self) -> None:
        """Raises if it is only a shape; see `array`."""
        if isinstance(self.value, jax.ShapeDtypeStruct):
            raise HardwareCheckpointError(
                f"{paths.join(self.keys)} is a shape without values, as of "
                "jax.eval_shape; give the arrays"
            )


def flatten(variables: Any, probes: Set[str] = frozenset()) -> list[Leaf]:
    """Returns the leaves of variables, sorted, with the collection before each path.

    Args:
      variables: Linen collections (a mapping with `"params"`), an NNX model or its
        `nnx.State`, or only a tree of parameters, which becomes the collection
        `params`.
      probes: the paths of the parameters that are probes.
    """
    if isinstance(variables, nnx.Module) or _has_types(variables):
        variables = collections_of(variables)
    if not isinstance(variables, Mapping):
        raise HardwareCheckpointError(
            "variables must be a nested mapping, such as {'params': ...}, or an NNX "
            f"model; got a {type(variables).__name__}"
        )
    if not isinstance(variables.get("params"), Mapping):
        variables = {"params": variables}
    leaves = []
    for collection, tree in variables.items():
        found = jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda node: isinstance(node, Mapping) and not len(node)
        )
        for key_path, value in found:
            path = paths.path_of(key_path)
            keys = (collection, *_plain(key_path, f"{collection}/{path}"))
            probe = collection == "params" and path in probes
            leaf = Leaf(keys=keys, path=path, value=value, probe=probe)
            if _is_key(value):
                leaf = dataclasses.replace(
                    leaf,
                    value=jax.random.key_data(value),
                    key_impl=str(jax.random.key_impl(value)),
                )
            if leaf.kind != "empty":
                _check_values(leaf)
                _check_dtype(leaf)
            leaves.append(leaf)
    return sorted(leaves, key=lambda leaf: order(leaf.keys))


def all_share(tree: Any) -> bool:
    """Returns whether all processes write a tree together; see `is_shared`.

    Raises:
      HardwareCheckpointError: if its arrays are on devices of some processes only.
    """
    try:
        return is_shared(tree)
    except ValueError as error:
        raise HardwareCheckpointError(str(error)) from error


def _has_types(variables: Any) -> bool:
    """Whether a tree is the state of an NNX model with typed leaves."""
    if not isinstance(variables, nnx.State):
        return False
    leaves = nnx.to_flat_state(variables)
    return any(isinstance(leaf, nnx.Variable) for _, leaf in leaves)


def as_leaf(array: np.ndarray, key_impl: str | None = None) -> Any:
    """Returns a stored array as a JAX array of the same dtype.

    A 64-bit array stays in NumPy if JAX would narrow it to 32 bits.
    """
    if key_impl is not None:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=key_impl)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array
    return jnp.asarray(array)


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    )


def _check_values(leaf: Leaf) -> None:
    """Raises for an array without values."""
    value, why = leaf.value, ""
    if isinstance(value, Tracer):
        why = "traced, as inside of jax.jit; export outside of it"
    elif isinstance(value, jax.Array) and value.is_deleted():
        why = "deleted, as what a step takes with donate_argnums; give what it returned"
    if why:
        raise HardwareCheckpointError(f"{paths.join(leaf.keys)} is {why}")
    try:
        is_on_all(value, paths.join(leaf.keys))
    except ValueError as error:
        raise HardwareCheckpointError(str(error)) from error


def _dtype(value: Any) -> np.dtype:
    return np.dtype(value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype)


def _check_dtype(leaf: Leaf) -> None:
    value, dtype = leaf.value, leaf.dtype
    if dtype.name not in DTYPES:
        raise HardwareCheckpointError(
            f"{paths.join(leaf.keys)}: a {type(value).__name__} of dtype "
            f"{dtype} cannot be stored; convert it to one of "
            f"{', '.join(sorted(DTYPES))}"
        )


def _plain(key_path: tuple[Any, ...], name: str) -> tuple[str | int, ...]:
    """Returns the keys of nested mappings, without those of boxes around leaves."""
    if key_path and key_path[-1] == GetAttrKey("value"):
        key_path = key_path[:-1]
    keys = []
    for entry in key_path:
        key = entry.key if isinstance(entry, DictKey) else None
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise HardwareCheckpointError(
                f"{name}: a checkpoint holds nested mappings whose keys are strings or "
                f"integers, not {entry!r}; turn lists and tuples into dicts"
            )
        keys.append(key)
    return tuple(keys)
