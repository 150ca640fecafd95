"""What checkpoints of earlier versions of the format mean by what they hold."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain.plan import AnalogWeight


def nominal_scale(
    version: str, weight: AnalogWeight, params: Mapping[str, Any]
) -> np.ndarray | None:
    """Returns the mapping scale that a checkpoint's tiles have, if it is not derived.

    Up to version 1.1, the column tiles of a row shared the scale of the largest weight
    of all of them. Since then each has its own.

    Args:
      version: the checkpoint's version.
      weight: the plan of the array.
      params: the leaves of the nominal parameters.

    Returns:
      `[*stack, row tiles, columns, column tiles or 1]`, or `None` where it is derived
      from the array as today.
    """
    stored = weight.stored_scale(params)
    if stored is not None:
        return np.asarray(stored)
    if version not in ("1.0", "1.1") or weight.tiles[1] == 1:
        return None
    kernel = jnp.asarray(params[weight.path], jnp.float32)
    scale = weight.derived_scale(weight.to_matrix(kernel))
    if scale is None or scale.shape[-1] != weight.tiles[1]:
        return None  # one, or one for each column
    return np.max(np.asarray(scale), axis=-1, keepdims=True)


def as_meant(content: Any) -> None:
    """Writes out, in place, what an earlier version meant by leaving it out.

    Until version 1.1, drift compensations read weights exactly.

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
