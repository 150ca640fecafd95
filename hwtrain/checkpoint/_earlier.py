"""Reads checkpoints of earlier versions of the format."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._entries import LayerEntry

UNNAMED = ("1.0", "1.1")
"""Versions of the format in which manifests did not name every leaf."""


def nominal_scale(
    version: str, weight: AnalogWeight, params: Mapping[str, Any]
) -> np.ndarray | None:
    """Returns the mapping scale of a checkpoint's tiles, unless it is derived as today.

    Up to version 1.1, the column tiles of a row shared the scale of the largest weight
    among them. In later versions each has its own.

    Args:
      version: the checkpoint's version.
      weight: the plan of the array.
      params: the leaves of the nominal parameters.

    Returns:
      `[*stack, row tiles, columns, column tiles or 1]`, or `None` if it is derived from
      the array as today.
    """
    stored = weight.stored_scale(params)
    if stored is not None:
        return np.asarray(stored)
    if version not in UNNAMED or weight.tiles[1] == 1:
        return None
    kernel = jnp.asarray(params[weight.path], jnp.float32)
    scale = weight.derived_scale(weight.to_matrix(kernel))
    if scale is None or scale.shape[-1] != weight.tiles[1]:
        return None  # a single scale, or one for each column
    return np.max(np.asarray(scale), axis=-1, keepdims=True)


def as_drawn(layer: LayerEntry) -> AnalogWeight:
    """Returns a weight's plan with the path that seeds the draws of its chips.

    That path contains names with slashes unescaped, as the tensor's name does.
    """
    path = layer.nominal.removeprefix("nominal/params/").removesuffix("/value")
    return dataclasses.replace(layer.weight, path=path)


def as_meant(content: Any) -> None:
    """Adds, in place, values that an earlier version implied by leaving them out.

    Up to version 1.1, drift compensations read weights exactly.

    Args:
      content: the content of a manifest, not yet checked.
    """
    layers = content.get("layers") if isinstance(content, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        found: Any = layer
        for name in ("weight", "hardware", "drift_compensation"):
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, dict):
            found.setdefault("readout", "exact")


def escape_names(content: Any) -> None:
    """Escapes slashes in the names within paths, in place, as the format does today.

    Earlier, also in format 1.2, such names were joined without escaping, so that a path
    did not show where a name ends. The keys of the leaves show it.

    Args:
      content: the content of a manifest, not yet checked.
    """
    names, today = {}, set()
    for found in _keys(content.get("leaves")):
        for first in (0, 1):  # with the collection and without
            for end in range(first + 1, len(found) + 1):
                path = paths.join(found[first:end])
                names["/".join(map(str, found[first:end]))] = path
                today.add(path)
    # A path that is valid today is not an old one: that would have named two leaves.
    names = {old: new for old, new in names.items() if old not in today}
    if names:
        _rename(content, names)


def _keys(leaves: Any) -> Iterator[list[str | int]]:
    """Yields the keys of all leaves that have keys."""
    for leaf in leaves if isinstance(leaves, list) else ():
        keys = leaf.get("keys") if isinstance(leaf, dict) else None
        if isinstance(keys, list):
            yield keys


def _rename(content: dict[str, Any], names: Mapping[str, str]) -> None:
    """Renames all paths in a manifest; unknown ones are left for the later check."""

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {names.get(path, path): entry for path, entry in value.items()}
        if isinstance(value, list):
            return [renamed(entry) for entry in value]
        return names.get(value, value) if isinstance(value, str) else value

    def rename(entries: Any, *keys: str) -> None:
        for entry in entries if isinstance(entries, list) else [entries]:
            for key in keys if isinstance(entry, dict) else ():
                if key in entry:
                    entry[key] = renamed(entry[key])

    rename(content, "prefix", "state")
    rename(content.get("digital"), "path")
    rename(content.get("chips"), "files")
    rename(content.get("graph"), "nodes", "edges")
    layers = content.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        rename(layer.get("weight") if isinstance(layer, dict) else None, "path")
