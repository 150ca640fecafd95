"""Reads a chip of a checkpoint at a time after programming."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._entries import ChipEntry
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._manifest import Manifest
from hwtrain.checkpoint._tiles import Tile, join, on_cpu
from hwtrain.chips import chip_key
from hwtrain.chips._crossbar import on_crossbar, written
from hwtrain.chips._programming import (
    ProgrammedWeight,
    keys_of_chip,
    keys_of_read,
    weight_at,
)
from hwtrain.devices._programmed import Programmed, check_time

Tiles = tuple[tuple[Tile, ...], ...]


def check_read(
    manifest: Manifest, chip: ChipEntry, t_s: ArrayLike | None, key: jax.Array | None
) -> None:
    """Raises if a time or a key would have no effect, or the time is impossible."""
    models = [layer.weight.hardware.noise_model for layer in manifest.layers]
    asked = t_s is not None or key is not None
    if asked and chip.measured:
        raise HardwareCheckpointError(
            f"chip {chip.seed} was measured, at one time; how its devices drift and "
            "what another read would give is not known. Leave t_s and the key out"
        )
    if asked and all(model is None for model in models):
        raise HardwareCheckpointError(
            f"t_s={t_s} and the key of a read would change nothing: no weight of this "
            "checkpoint has a noise model. Leave them out, or export the model with a "
            "Hardware that has a noise_model"
        )
    if t_s is not None:
        try:
            check_time(t_s)
        except ValueError as error:
            raise HardwareCheckpointError(str(error)) from None


def kernel_at(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: np.ndarray | None,
    tiles: Tiles,
    t_s: ArrayLike,
    key: jax.Array | None,
    seed: int,
    bound: jax.Array | None = None,
    leaves: Mapping[str, Any] = {},  # noqa: B006 it is only read
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns a weight on a chip at a time; see `weight_at` of `chips`.

    Args:
      weight: the plan of the array.
      kernel: the stored nominal array, the reference of an exact drift compensation.
      scale: its stored mapping scale, if it has one.
      tiles: its crossbars on the chip.
      t_s: time since programming, in seconds.
      key: key of the read noise; `None` for none.
      seed: the chip's seed.
      bound: its learned clip bound, if it has one.
      leaves: the leaves of users' parts beside it, by name.
    """
    with on_cpu():
        devices = tuple(
            _joined(weight, tiles, name) for name in tiles[0][0].converter.devices
        )
        params = {name: _stacked(tiles, name) for name in tiles[0][0].params}
        return jax.tree.map(
            np.asarray,
            _kernel_at(
                weight.nameless,  # weights of one shape share a compilation
                np.asarray(kernel),
                scale,
                bound,
                devices,
                params,
                t_s,
                keys_of_chip(weight, chip_key(np.uint32(seed))),
                None if key is None else keys_of_read(weight, key),
                dict(leaves),
            ),
        )


@functools.partial(jax.jit, static_argnums=0)
def _kernel_at(
    weight, kernel, scale, bound, devices, params, t_s, frozen, read, leaves
):
    kernel = jnp.asarray(kernel, jnp.float32)
    _, s = on_crossbar(weight, kernel, scale)
    target = weight.to_matrix(written(weight, kernel, scale, bound) / s)
    programmed = ProgrammedWeight(
        devices=devices,
        params=params,
        scale=s,
        target=target,
        keys=frozen,
    )
    return weight_at(weight, programmed, t_s, read, leaves)


def _joined(weight: AnalogWeight, tiles: Tiles, name: str) -> Programmed:
    """Returns a device of all tiles, joined to the stored shape."""
    first = vars(tiles[0][0].programmed[name])
    arrays: dict[str, Any] = {
        field: join(
            weight,
            tuple(
                tuple(getattr(tile.programmed[name], field) for tile in row)
                for row in tiles
            ),
        )
        for field, array in first.items()
        if array is not None
    }
    return Programmed(**arrays)


def _stacked(tiles: Tiles, name: str) -> np.ndarray:
    """Returns a parameter of all tiles, `[*stack, row tiles, column tiles, 1, ...]`."""
    widest = max(tile.params[name].shape[-1] for row in tiles for tile in row)

    def padded(array: np.ndarray) -> np.ndarray:
        missing = widest - array.shape[-1]
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)], mode="edge")

    rows = [np.stack([padded(t.params[name]) for t in row], -3) for row in tiles]
    return np.stack(rows, -4)
