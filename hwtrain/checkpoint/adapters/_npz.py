"""Exports a checkpoint as one NumPy file."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hwtrain._arrays import paths
from hwtrain._parts.fields import without_none
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint._reader import HardwareCheckpoint
from hwtrain.checkpoint._tiles import grid
from hwtrain.checkpoint.adapters._arrays import (
    devices,
    in_numpy,
    of_columns,
    save_npz,
    scaled_tile,
)
from hwtrain.chips._programming import compensated
from hwtrain.weights.mapping import MAPPING_SCALE


def to_npz(
    checkpoint: HardwareCheckpoint, out: Path, *, chip: int | None = None
) -> None:
    """Writes a checkpoint as one `.npz` file, which NumPy alone can read.

    It holds `variables/<collection>/<path>` for every variable (with `params` of the
    chip just after programming); for each analog weight and tile
    `conductances/<path>/tile/<i>/<j>/<device>` in µS `[*stack, rows, columns]`, with
    `scale_ratio`, `mapping_scale` (and `min`) beside them; and `manifest`, the
    checkpoint's manifest as JSON text. A weight is
    `(g_pos - g_neg) / scale_ratio * mapping_scale`, where the scales of a chip include
    the factors of its drift compensation; for other converters, see `rules`
    in the manifest.

    Args:
      checkpoint: from `hwtrain.load`.
      out: the file to write; must not exist.
      chip: the seed of a frozen chip; `None` for the nominal model.

    Raises:
      HardwareCheckpointError: if the chip is not in the checkpoint, or the file cannot
        be written.
    """
    with destination.new(out) as partial:
        save_npz(partial, _arrays(checkpoint, chip))


def _arrays(
    checkpoint: HardwareCheckpoint, chip: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    manifest = without_none(checkpoint.manifest.model_dump(mode="json"))
    yield "manifest", np.array(json.dumps(manifest, sort_keys=True))
    yield "chip", np.array("nominal" if chip is None else str(chip))
    params, factors = checkpoint.params, {}
    if chip is not None:
        params, factors = checkpoint.chip_and_factors(chip)
        params = compensated(params, checkpoint.plan, factors)
    probes = checkpoint.plan.zeros
    for collection, tree in {**checkpoint.variables, "params": params}.items():
        for path, value in paths.leaves(tree).items():
            if collection != "params" or path not in probes:
                yield f"variables/{collection}/{path}", in_numpy(value)
    for weight in checkpoint.plan.weights:
        if weight.hardware.converter is None:
            continue
        tiles = checkpoint.conductances(weight.path, chip)
        for place in grid(weight):
            tile = tiles[place.row][place.column]
            if factors.get(weight.path) is not None:
                factor = of_columns(weight, factors[weight.path])
                tile = scaled_tile(place, tile, factor)
            name = f"conductances/{weight.path}/{place.name}"
            for device, g in devices(tile).items():
                yield f"{name}/{device}", g
            for scale, array in tile.params.items():
                yield f"{name}/{scale}", array
            yield f"{name}/{MAPPING_SCALE.name}", tile.mapping_scale
