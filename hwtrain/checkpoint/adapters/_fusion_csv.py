"""Exports a checkpoint as the conductance table for the Fusion chip's composer."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint._description import Graph
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._reader import HardwareCheckpoint
from hwtrain.checkpoint.adapters import _fusion_loader as fusion_loader
from hwtrain.checkpoint.adapters._arrays import (
    Layer,
    as_json,
    digital_of,
    layers,
    outputs_of,
    plan_of,
    stack_index,
)
from hwtrain.devices import SinglePairConductanceConverter

G_MAX = (10.0, 40.0)
"""The range of `g_max` that the chip accepts as its full scale, in µS."""

TABLE, SIDE_CAR = "conductances.csv", "side_car.json"


def to_fusion_csv(
    checkpoint: HardwareCheckpoint, out: Path, *, chip: int | None = None
) -> None:
    r"""Writes `conductances.csv`, `side_car.json` and `load.py`.

    .. math:: |g| = |g^+ - g^-|, \qquad W = \mathrm{sign} \cdot |g| \cdot \text{scale}

    `conductances.csv` has five header rows (number, class, number of weights, height
    and width of each layer), a row of names, and for each layer one row of
    :math:`|g|` in µS: its tiles one after the other, each `[outputs, inputs]` row by
    row. `side_car.json` holds for each layer and tile the signs (`+`, `-`, `0`), the
    scales in units of the weight per µS, the input range and the bias, in `lost` the
    digital parameters and statistics of other modules, which it does not hold, and in
    `outputs` the modules whose results digital units store in few bits. Layers are in
    the order of the checkpoint's graph, and numbered like the modules of a sequential
    model of its nodes, including activations; without a graph, only layers are counted.
    `load.py` numbers them as in an aihwkit model, and calls `fusion_import`.

    Args:
      checkpoint: from `hwtrain.load`.
      out: the directory to write; must not exist.
      chip: only `None`: a real chip has its own mismatch, and a drawn one would be
        added to it.

    Raises:
      HardwareCheckpointError: if a chip is given, if a weight's devices are not one
        pair with `g_min=0` and a `g_max` from 10 to 40 µS, or if it cannot be written.

    References:
      `aihwkit.utils.export.fusion_export` and `fusion_import` (aihwkit 1.2.0).
    """
    if chip is not None:
        raise HardwareCheckpointError(
            f"chip={chip}: the table is for programming a real chip, which brings its "
            "own mismatch; a drawn one would be added to it. Leave the chip out"
        )
    for weight in checkpoint.plan.weights:
        _check(weight)
    with destination.new(out, folder=True) as partial:
        numbers = _numbers(checkpoint)
        found: dict[str, tuple[list[str], dict[str, Any]]] = {}
        for layer in layers(checkpoint):
            for index, name in stack_index(layer.weight):
                conductances, entry = _one_layer(layer, index)
                row = [f"{g:.9g}" for g in conductances]
                found[name] = row, {"name": name, **entry}
        with open(partial / TABLE, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerows(_header(checkpoint.plan.weights, numbers))
            table.writerows(found[name][0] for name in numbers)
        entries = [found[name][1] for name in numbers]
        side_car = {
            "format": "hwtrain-fusion-side-car",
            "units": {"conductance": "µS", "scale": "unit of the weight per µS"},
            "order": "row of the CSV: tiles in this order, each [height, width] of "
            "outputs and inputs, row by row; weight = sign * conductance * scale",
            "layers": entries,
            "lost": digital_of(checkpoint),
            "outputs": outputs_of(checkpoint),
        }
        (partial / SIDE_CAR).write_text(as_json(side_car), encoding="utf-8")
        shutil.copyfile(fusion_loader.__file__, partial / "load.py")


def _check(weight: AnalogWeight) -> None:
    converter = weight.hardware.converter
    pair = isinstance(converter, SinglePairConductanceConverter)
    low, high = G_MAX
    if pair and converter.g_min == 0 and low <= converter.g_max <= high:
        return
    came = "no converter"
    if converter is not None:
        came = f"{converter.type!r} from {converter.g_min:g} to {converter.g_max:g} µS"
    raise HardwareCheckpointError(
        f"{weight.path}: the Fusion chip holds a weight as one pair of devices, one of "
        f"them at 0 µS, with a full scale of {low:g} to {high:g} µS; the checkpoint "
        f"has {came}. Export the model with Hardware(converter="
        "SinglePairConductanceConverter(g_min=0.0, g_max=40.0))"
    )


def _numbers(checkpoint: HardwareCheckpoint) -> dict[str, int]:
    """Returns the number of each matrix's module by its name, in the model's order."""
    by_layer: dict[str, list[str]] = {}
    for weight in checkpoint.plan.weights:
        names = [name for _, name in stack_index(weight)]
        by_layer.setdefault(weight.layer_path, []).extend(names)
    graph = checkpoint.manifest.graph
    nodes = {} if graph is None else graph.nodes
    order = [] if graph is None else _in_order(graph)
    order = [node for node in order if nodes[node] not in _NO_MODULES]
    order += [layer for layer in by_layer if layer not in order]
    numbers, number = {}, 0
    for node in order:
        of_layer = nodes.get(node, "layer") == "layer"
        for name in by_layer.get(node, []) if of_layer else []:
            number += 1
            numbers[name] = number
        if not of_layer or node not in by_layer:
            number += 1
    return numbers


def _in_order(graph: Graph) -> list[str]:
    """Returns the nodes in topological order; a loop starts where it is reached."""
    waiting = list(dict.fromkeys(node for edge in graph.edges for node in edge))
    order: list[str] = []
    while waiting:
        ready = [
            node
            for node in waiting
            if not any(b == node and a in waiting for a, b in graph.edges)
        ]
        order.append((ready or waiting)[0])
        waiting.remove(order[-1])
    return order


_NO_MODULES = ("input", "output", "identity")


def _header(
    weights: tuple[AnalogWeight, ...], numbers: dict[str, int]
) -> Iterator[list[Any]]:
    """Yields the header's rows: one column for each layer."""
    columns = {}
    for weight in weights:
        height, width = sum(weight.column_sizes), sum(weight.row_sizes)
        for _, name in stack_index(weight):
            kind = _CLASSES.get(weight.kind, "AnalogLinear")
            columns[name] = (numbers[name], kind, height * width, height, width, name)
    yield from map(list, zip(*(columns[name] for name in numbers)))


_CLASSES = {"conv": "AnalogConv2d"}


def _one_layer(
    layer: Layer, index: tuple[int, ...]
) -> tuple[np.ndarray, dict[str, Any]]:
    conductances, tiles = [], []
    for place, tile in layer.crossbars:
        difference = (tile.g_pos - tile.g_neg)[index].T
        scale = (tile.mapping_scale / tile.scale_ratio)[index]
        signs = np.array(["-", "0", "+"])[np.sign(difference).astype(int) + 1]
        height, width = difference.shape
        entry = {
            "offset": sum(g.size for g in conductances),
            "height": height,
            "width": width,
            "first_input": place.rows.start,
            "first_output": place.columns.start,
            "scale": np.broadcast_to(scale, (1, height))[0],
            "signs": ["".join(row) for row in signs],
        }
        bound = layer.range_of(index, place)
        if bound is not None:
            entry["input_range"] = bound
        conductances.append(abs(difference).ravel())
        tiles.append(entry)
    entry = {"weight": plan_of(layer.weight), "index": list(index), "tiles": tiles}
    bias = layer.bias_of(index)
    if bias is not None:
        entry["bias"] = bias
    return np.concatenate(conductances), entry
