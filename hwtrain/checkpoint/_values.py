"""Checks the numbers in the leaves of a checkpoint."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._errors import HardwareCheckpointError


def check_numbers(where: str, array: np.ndarray) -> None:
    """Raises if an array of numbers contains NaN.

    Args:
      where: the leaf, for the message.
      array: its value.
    """
    if jnp.issubdtype(array.dtype, jnp.inexact):
        _check_all(where, ~np.isnan(array), "NaN")


def check_parameter(where: str, keys: Sequence[str | int], array: np.ndarray) -> None:
    """Raises if a leaf is a parameter that is not finite.

    Other leaves may be infinite, such as a running maximum before the first value.

    Args:
      where: the leaf, for the message.
      keys: its keys in the variables.
      array: its value.
    """
    if tuple(keys[:1]) == ("params",) and jnp.issubdtype(array.dtype, jnp.inexact):
        _check_all(where, np.isfinite(array), "NaN or infinite")


def _check_all(where: str, right: np.ndarray, what: str) -> None:
    if not right.all():
        raise HardwareCheckpointError(
            f"{where}: {int((~right).sum())} of {right.size} numbers are {what}; "
            "export an earlier checkpoint"
        )


def check_values(
    where: str, weight: AnalogWeight, leaves: Mapping[str, object]
) -> None:
    """Raises if leaves beside a weight have values that are impossible in hardware.

    Args:
      where: prefix of a leaf's path in the message.
      weight: the plan of the weight.
      leaves: the values of leaves by path.
    """
    for spec in weight.leaves():
        path = weight.leaf(spec)
        if spec.exported != "tensor" or path not in leaves:
            continue
        array = np.asarray(leaves[path], np.float32)
        right = np.isfinite(array)
        if spec.positive:
            right &= array > 0
        if not right.all():
            first = tuple(int(i) for i in np.argwhere(~right)[0])
            kind = "positive and finite" if spec.positive else "finite"
            raise HardwareCheckpointError(
                f"{where}{path}: every number must be {kind}, the one at {first} is "
                f"{array[first]:g}. Train or calibrate on, and export the model again"
            )
