"""Parameter trees by path.

A path is the keys on the way to a leaf, joined by `/`, with indices as decimals. A
trailing `/value` is stripped: boxed Linen parameters and NNX states have one, and a
rule that expects `kernel` at the end would silently match nothing.

A key may contain a slash: Flax's WeightNorm stores `"dense/kernel/scale"` under one
name. As in a JSON Pointer (RFC 6901), a slash is written `~1` in a path, and `~` as
`~0`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hwtrain._errors import InputError

Tree = Any


def join(keys: Iterable[Any]) -> str:
    """Returns the path of keys, such as the names of modules.

    >>> join(["layers", 0, "dense/kernel/scale"])
    'layers/0/dense~1kernel~1scale'
    """
    return "/".join(str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def split(path: str) -> list[str]:
    """Returns the keys of a path, as strings.

    >>> split("layers/0/dense~1kernel~1scale")
    ['layers', '0', 'dense/kernel/scale']
    """
    names = path.split("/") if path else []
    return [name.replace("~1", "/").replace("~0", "~") for name in names]


def path_of(keys: tuple[Any, ...]) -> str:
    """Returns the path of a JAX key path.

    >>> import jax
    >>> tree = {"hidden": [{"kernel": 1.0}]}
    >>> [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
    ['hidden/0/kernel']
    """
    path = join(jax.tree_util.keystr((key,), simple=True) for key in keys)
    return path.removesuffix("/value")


def leaves(tree: Tree) -> dict[str, Any]:
    """Returns the leaves of a tree by path.

    >>> leaves({"hidden": {"kernel": 1.0}})
    {'hidden/kernel': 1.0}
    """
    return {path_of(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[tuple[str | int, ...], Any]) -> dict[Any, Any]:
    """Returns nested dicts of leaves by their keys.

    >>> unflatten({("params", "dense", "bias"): 0.0})
    {'params': {'dense': {'bias': 0.0}}}
    """
    tree: dict[Any, Any] = {}
    for keys, value in leaves.items():
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return tree


def map_leaves(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """Returns the tree with every leaf replaced by `function(path, leaf)`.

    >>> map_leaves(lambda path, leaf: path, {"hidden": {"kernel": 1.0}})
    {'hidden': {'kernel': 'hidden/kernel'}}
    """
    return jax.tree_util.tree_map_with_path(lambda k, v: function(path_of(k), v), tree)


def require_finite(tree: Tree) -> None:
    """Raises for an array that holds a NaN or an infinity.

    Traced values, and leaves that are not arrays of numbers, pass unchecked.

    >>> try:
    ...     require_finite({"hidden": {"bias": np.array([0.0, np.nan])}})
    ... except ValueError as error:
    ...     print(error)
    hidden/bias: 1 of 2 weights are NaN or infinite, as after a
    training that diverged; go on from an earlier checkpoint

    Raises:
      ValueError: naming the first such array.
    """
    counts = []
    for path, leaf in leaves(tree).items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            continue
        if isinstance(leaf, Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        counts.append((path, leaf.size, jnp.sum(~jnp.isfinite(leaf))))
    # After all sums, in which several processes may take part.
    for path, size, count in counts:
        if count := int(count):
            raise InputError(
                f"{path}: {count} of {size} weights are NaN or infinite, as after "
                "a training that diverged; go on from an earlier checkpoint"
            )


def drop(tree: Tree, keep: Callable[[str], bool], _path: str = "") -> Tree:
    """Returns a nested mapping without the entries that `keep` rejects.

    A mapping that becomes empty is dropped too.

    >>> drop({"a": {"kernel": 1, "probe": 2}}, lambda path: not path.endswith("probe"))
    {'a': {'kernel': 1}}

    Args:
      tree: nested mappings of one type, such as a dict or an `nnx.State`.
      keep: whether to keep an entry that is not a mapping, given its path.
    """
    kept = {}
    for name, entry in tree.items():
        path = f"{_path}/{join([name])}" if _path else join([name])
        if isinstance(entry, Mapping):
            inner = drop(entry, keep, path)
            if len(inner) or not len(entry):
                kept[name] = inner
        elif keep(path):
            kept[name] = entry
    return type(tree)(kept)


def insert(tree: Tree, entries: Mapping[str, Any]) -> Tree:
    """Returns a nested mapping with entries set at their paths.

    >>> insert({"layers": {0: {"kernel": 1}}}, {"layers/0/probe": 2})
    {'layers': {0: {'kernel': 1, 'probe': 2}}}

    Args:
      tree: nested mappings of one type, such as a dict or an `nnx.State`.
      entries: values by path. The enclosing mappings must exist.

    Raises:
      KeyError: if one of them does not exist.
    """
    here = {path: value for path, value in entries.items() if "/" not in path}
    below: dict[str, dict[str, Any]] = {}
    for path, value in entries.items():
        head, slash, rest = path.partition("/")
        if slash:
            below.setdefault(head, {})[rest] = value
    merged = dict(tree.items())
    names = {join([name]): name for name in merged}
    for head, inner in below.items():
        name = names[head]
        merged[name] = insert(merged[name], inner)
    for path, value in here.items():
        merged[names.get(path, *split(path))] = value
    return type(tree)(merged)
