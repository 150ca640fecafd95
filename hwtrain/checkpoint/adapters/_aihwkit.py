"""Exports a checkpoint to aihwkit: tensors, configuration, and a loader."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint._reader import HardwareCheckpoint
from hwtrain.checkpoint._tiles import grid
from hwtrain.checkpoint.adapters import _aihwkit_loader as aihwkit_loader
from hwtrain.checkpoint.adapters._aihwkit_config import rpu_config
from hwtrain.checkpoint.adapters._arrays import (
    Layer,
    as_json,
    digital_of,
    layers,
    outputs_of,
    plan_of,
    save_npz,
    stack_index,
)


def to_aihwkit(
    checkpoint: HardwareCheckpoint, out: Path, *, chip: int | None = None
) -> None:
    """Writes `tensors.npz`, `layers.json`, `rpu_config.py` and `load.py`.

    Nothing is pickled. With aihwkit's own setters, `load.py` sets for each layer: the
    `weight` in units of the crossbar `[out, in]`, the digital `bias`, and for each tile
    `mapping_scale` and `input_range`. For a chip with drift, `nu` of each device
    becomes the tile's drift parameters, and the weights are those after programming.
    The target conductances in µS (`tile/<n>/g/<device>`, `[out, in]`) are only for the
    record: aihwkit derives its own from the weights. `rpu_config.py` makes the
    `InferenceRPUConfig` of each layer. `layers.json` holds the plan of each layer, and
    the properties of its hardware that aihwkit cannot express (`lost`); beside the
    layers, `lost` names the digital parameters and statistics of other modules, and
    `outputs` the modules whose results digital units store in few bits.

    Args:
      checkpoint: from `hwtrain.load`.
      out: the directory to write; must not exist.
      chip: the seed of a frozen chip; `None` for the nominal model.

    Raises:
      HardwareCheckpointError: if the chip is not in the checkpoint, or it cannot be
        written.

    References:
      `aihwkit.simulator.tiles.periphery.TileWithPeriphery` (aihwkit 1.2.0).
    """
    with destination.new(out, folder=True) as partial:
        save_npz(partial / "tensors.npz", _arrays(checkpoint, chip))
        named = {
            name: (index, weight)
            for weight in checkpoint.plan.weights
            for index, name in stack_index(weight)
        }
        hardwares = {name: weight.hardware for name, (_, weight) in named.items()}
        digital = digital_of(checkpoint)
        text, lost = rpu_config(hardwares, digital)
        plans = {
            name: {"index": list(index), "weight": plan_of(weight), "lost": lost[name]}
            for name, (index, weight) in named.items()
        }
        content = {"format": "hwtrain-aihwkit", "chip": chip, "layers": plans}
        content["lost"] = digital
        content["outputs"] = outputs_of(checkpoint)
        (partial / "layers.json").write_text(as_json(content), encoding="utf-8")
        (partial / "rpu_config.py").write_text(text, encoding="utf-8")
        shutil.copyfile(aihwkit_loader.__file__, partial / "load.py")


def _arrays(
    checkpoint: HardwareCheckpoint, chip: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    for layer in layers(checkpoint, chip):
        for index, name in stack_index(layer.weight):
            for quantity, array in _one_layer(layer, index):
                yield f"{name}/{quantity}", array


def _one_layer(
    layer: Layer, index: tuple[int, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    weight = layer.matrix[index].copy()
    scales = layer.mapping_scale[index]
    crossbars = {place.name: tile for place, tile in layer.crossbars}
    sizes = []
    for number, place in enumerate(grid(layer.weight)):
        scale = scales[place.row]
        scale = scale if scale.size == 1 else scale[place.columns]
        mapping = layer.weight.hardware.mapping
        columnwise = mapping is not None and mapping.weight_scaling_columnwise
        if not columnwise and (scale == scale[0]).all():
            # One number, as in aihwkit's tile, whose state is loaded by shape.
            scale = scale[:1]
        weight[place.rows, place.columns] /= scale
        yield f"tile/{number}/mapping_scale", scale
        bound = layer.range_of(index, place)
        if bound is not None:
            yield f"tile/{number}/input_range", np.array([bound], np.float32)
        if place.name in crossbars:
            tile = crossbars[place.name]
            for device, g in tile.conductances.items():
                yield f"tile/{number}/g/{device}", g[index].T
            for device, programmed in tile.programmed.items():
                if programmed.nu is not None:
                    yield (
                        f"tile/{number}/nu/{device}",
                        np.asarray(programmed.nu)[index].T,
                    )
        height = place.columns.stop - place.columns.start
        sizes.append((height, place.rows.stop - place.rows.start))
    yield "tile_sizes", np.array(sizes, np.int32)
    yield "weight", weight.T
    bias = layer.bias_of(index)
    if bias is not None:
        yield "bias", bias
