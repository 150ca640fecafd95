"""Finds models that compute the same on all chips."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._plan.hardware import Hardware
from hwtrain.train._task import Metric


def fingerprint(outputs: Any, batch: Any) -> jax.Array:
    """Returns a number for each example, which differs if its outputs do.

    Equal metrics do not show that chips are alike: an accuracy of few examples has few
    values, and two chips have the same one by chance.

    >>> batch = (jnp.zeros((2, 4)), jnp.zeros(2))
    >>> a, b = fingerprint(jnp.array([[1.0, 2.0], [2.0, 1.0]]), batch)
    >>> bool(a != b)
    True

    Args:
      outputs: a tree of arrays `[B, ...]`; arrays without this axis count for all.
      batch: a tree of arrays `[B, ...]`.
    """
    size = len(jax.tree.leaves(batch)[0])
    total = jnp.zeros(size, jnp.float32)
    for leaf in jax.tree.leaves(outputs):
        rows = size if jnp.shape(leaf)[:1] == (size,) else 1
        flat = jnp.reshape(jnp.real(leaf), (rows, -1)).astype(jnp.float32)
        total = total + (flat * jnp.cos(jnp.arange(flat.shape[1]))).sum(axis=1)
    return total


OUTPUTS = Metric("outputs of a chip", fingerprint, "lower")
"""Measured beside the metrics, none of which has such a name."""


def alike(values: Sequence[np.ndarray], hardware: Iterable[Hardware]) -> bool:
    """Whether a model computes the same on chips that differ, by its fingerprints.

    Args:
      values: `[chips]` for each training seed.
      hardware: all hardware of the model.
    """
    several = any(len(chips) > 1 and not np.ptp(chips) for chips in values)
    return several and any(
        x.frozen or x.freezes("chip") or x.reads("chip") for x in hardware
    )


def note(model: str) -> str:
    """Returns what to tell of a model that computes the same on all chips."""
    return (
        f"the outputs of the {model} model are exactly the same on every chip. An "
        "output below half a step of an ADC is 0 (out_bits, out_bound, "
        "weight_scaling_omega): hwtrain inspect RUN --active"
    )
