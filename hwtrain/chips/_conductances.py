"""Converts an analog weight to conductances, tile by tile, and back.

Every tile of every layer of a stack is a crossbar with its own scale. The tiles are a
batched axis of the conversion; its results have the matrix's shape again.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import tiling
from hwtrain._errors import InputError
from hwtrain._plan.weight import AnalogWeight
from hwtrain.devices._conversion import Params


def converter_of(weight: AnalogWeight) -> Any:
    """Returns the converter of a weight's hardware.

    Raises:
      ValueError: if it has none.
    """
    converter = weight.hardware.converter
    if converter is None:
        raise InputError(
            f"{weight.path} has no conductances: its hardware has no converter. Write "
            "Hardware(converter=SinglePairConductanceConverter(...))"
        )
    return converter


def targets(weight: AnalogWeight, w: jax.Array) -> tuple[list[jax.Array], Params]:
    """Returns the target conductances of nominal weights.

    Args:
      weight: the plan of the array.
      w: `[*stack, rows, columns]`, in units of the crossbar.

    Returns:
      The conductances of each of the converter's `devices`, `[*stack, rows, columns]`
      in µS; and the parameters of the conversion, one for each of the converter's
      `scales`, `[*stack, row tiles, column tiles, 1, columns of a tile or 1]`.
    """
    converter = converter_of(weight)
    tiles = cut(weight, w)
    *grid, rows, columns = tiles.shape
    convert = jax.vmap(converter.convert_to_conductances)
    conductances, params = convert(tiles.reshape(-1, rows, columns))
    if set(params) != set(converter.scales) or len(conductances) != len(
        converter.devices
    ):
        at = f"{weight.path}: " if weight.path else ""
        raise InputError(
            f"{at}{type(converter).__name__} declares devices = "
            f"{converter.devices} and scales = {converter.scales}, but converts to "
            f"{len(conductances)} conductances and the scales {tuple(params)}. Name "
            "them all in its class"
        )
    # Rounding may put the largest weight one ulp above g_max.
    conductances = [
        join(weight, jnp.clip(g, converter.g_min, converter.g_max).reshape(tiles.shape))
        for g in conductances
    ]
    return conductances, {k: v.reshape(*grid, 1, -1) for k, v in params.items()}


def by_scale(weight: AnalogWeight, w: jax.Array, params: Params) -> list[jax.Array]:
    """Converts a chip's weights by the scales of the nominal ones.

    They are not clipped: a device with mismatch may exceed g_max.

    Args:
      weight: the plan of the array.
      w: `[*stack, rows, columns]`, in units of the crossbar.
      params: the parameters that `targets` returned for the nominal weights.
    """
    found = converter_of(weight).convert_by_scale(cut(weight, w), params)
    return [join(weight, g) for g in found]


def back_to_weights(
    weight: AnalogWeight, conductances: Sequence[jax.Array], params: Params
) -> jax.Array:
    """Converts conductances back to weights, in units of the crossbar.

    Args:
      weight: the plan of the array.
      conductances: `[*stack, rows, columns]` for each device, in µS.
      params: the parameters that `targets` returned for the nominal weights.
    """
    tiles = [cut(weight, g) for g in conductances]
    w = converter_of(weight).convert_back_to_weights(tiles, params)
    return join(weight, w)


def cut(weight: AnalogWeight, matrix: jax.Array) -> jax.Array:
    """Cuts a matrix into tiles: `[*stack, row tiles, column tiles, rows, columns]`.

    A tile smaller than the largest one repeats its last row and column, which changes
    neither its largest nor its smallest weight.

    Args:
      weight: the plan of the array.
      matrix: `[*stack, rows, columns]`.
    """
    if weight.tiles == (1, 1):
        return matrix[..., None, None, :, :]
    matrix = tiling.gathered(tiling.gathered(matrix, -1), -2)
    rows, columns = map(_indices, (weight.row_sizes, weight.column_sizes))
    return matrix[..., rows[:, None, :, None], columns[None, :, None, :]]


def join(weight: AnalogWeight, tiles: jax.Array) -> jax.Array:
    """Inverse of `cut`."""
    if weight.tiles == (1, 1):
        return tiles[..., 0, 0, :, :]
    whole_rows = tiling.join(jnp.swapaxes(tiles, -3, -2), weight.column_sizes, -1)
    return tiling.join(whole_rows, weight.row_sizes, -2)


def _indices(sizes: tuple[int, ...]) -> np.ndarray:
    """Returns `[tiles, largest]`, the indices of each tile's elements on an axis."""
    ends = np.cumsum(sizes)[:, None]
    starts = ends - np.asarray(sizes)[:, None]
    return np.minimum(starts + np.arange(sizes[0]), ends - 1)
