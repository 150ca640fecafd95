"""Loads `conductances.csv` into an aihwkit model, with aihwkit's own `fusion_import`.

It needs only aihwkit and NumPy: `to_fusion_csv` copies this file beside the table.

    from load import load
    load(model, ".", {"fc1": "hidden", "fc2": "output"})

`fusion_import` compares the table's header with the model's. The header numbers all
modules, including activations, so it depends on the model. `load` writes `model.csv`
with the header of the model, and the rows in its order.
"""

import csv
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np


def load(model, folder=".", names=None, table=None):
    """Sets weights and biases of the analog layers of a model.

    Args:
      model: any `torch.nn.Module` whose analog layers have digital biases, and
        inference tiles of the sizes in the side car.
      folder: the folder of `conductances.csv` and `side_car.json`.
      names: the name in the side car of each analog layer of the model, by its name in
        `named_modules()`. By default the same names with dots for slashes.
      table: a table returned by the chip's composer, with the same columns. By default
        `conductances.csv`, the targets.

    Returns:
      The model, in eval mode.

    Raises:
      ValueError: if a layer or a tile does not fit; the model may be partly changed.

    Warns:
      UserWarning: naming the modules whose digital parameters or statistics the files
        do not hold, such as batch norms.
    """
    from aihwkit.nn.modules.base import (  # pyright: ignore[reportMissingImports]
        AnalogLayerBase,
    )
    from aihwkit.utils.export import (  # pyright: ignore[reportMissingImports]
        _fusion_get_csv_header,
        fusion_import,
    )
    from torch import tensor  # pyright: ignore[reportMissingImports]

    folder = Path(folder)
    side_car = json.loads((folder / "side_car.json").read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in side_car["layers"]}
    with open(table or folder / "conductances.csv", newline="") as file:
        _, _, _, _, _, row_names, *rows = csv.reader(file)
    rows = dict(zip(row_names, rows))
    left, params, ordered = set(entries), {}, {}
    with open(folder / "conductances.csv", newline="") as file:
        targets = dict(zip(row_names, list(csv.reader(file))[6:]))
    layers = [
        (layer, module)
        for layer, module in model.named_modules()
        if isinstance(module, AnalogLayerBase) and not module.IS_CONTAINER
    ]
    for layer, module in layers:
        name = layer.replace(".", "/") if names is None else names.get(layer)
        if name not in left:
            raise ValueError(f"no weights are left for {layer!r}; there are {left}")
        left.remove(name)
        entry = entries[name]
        weights = original_weights(entry, np.array(targets[name], np.float32))
        tiles = list(module.analog_tiles())
        sizes = [(tile.out_size, tile.in_size) for tile in tiles]
        wanted = [weight.shape for weight in weights]
        bias = entry.get("bias")
        has_bias = module.get_weights()[1] is not None
        if sizes != wanted or has_bias != (bias is not None):
            raise ValueError(
                f"{layer!r} should have tiles (out, in) of {wanted} and "
                f"{'no' if bias is None else 'a'} digital bias; it has {sizes}. Set "
                "max_input_size, max_output_size and digital_bias of its mapping"
            )
        for tile in tiles:
            tile.set_mapping_scales(tensor([1.0]))
        if bias is not None:
            module.set_weights(
                module.get_weights()[0], tensor(bias), apply_weight_scaling=False
            )
        # fusion_import takes a tile's signs and scales from its "original weights".
        params[layer] = [{"original_weights": tensor(weight)} for weight in weights]
        ordered[layer] = rows[name]
    if left:
        raise ValueError(f"the model has no layer for {', '.join(sorted(left))}")
    matched = folder / "model.csv"
    with open(matched, "w", newline="", encoding="utf-8") as file:
        file.write(_fusion_get_csv_header(model))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([list(ordered), *ordered.values()])
    # Only aihwkit's own containers have named_analog_layers().
    walked = SimpleNamespace(
        named_modules=model.named_modules,
        named_analog_layers=lambda: iter(layers),
        eval=model.eval,
    )
    fusion_import(str(matched), walked, params)
    if side_car["lost"]:
        warnings.warn(
            "not set, because they are not in the files: "
            f"{', '.join(side_car['lost'])}; set them from "
            "hwtrain.load(CHECKPOINT).variables",
            stacklevel=2,
        )
    return model


def original_weights(entry, conductances):
    """Returns the weights `[out, in]` of each tile, in units of the model.

    Args:
      entry: the layer's entry in the side car.
      conductances: the layer's row of the table, in µS.
    """
    found = []
    for tile in entry["tiles"]:
        shape = tile["height"], tile["width"]
        start = tile["offset"]
        g = conductances[start : start + shape[0] * shape[1]].reshape(shape)
        signs = [[{"-": -1, "0": 0, "+": 1}[c] for c in row] for row in tile["signs"]]
        scale = np.array(tile["scale"], np.float32)[:, None]
        found.append(np.array(signs, np.float32) * g * scale)
    return found
