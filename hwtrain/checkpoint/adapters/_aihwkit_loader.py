"""Loads `tensors.npz` into an aihwkit model, with aihwkit's own setters.

It needs only aihwkit and NumPy: `to_aihwkit` copies this file beside the tensors.

    from load import load
    load(model, ".", {"fc1": "hidden", "fc2": "output"})

Everything that it sets is part of the model's `state_dict()`: save that with
`torch.save`, and `load_state_dict` of a model with the same layers and configurations
restores it.
"""

import json
import warnings
from pathlib import Path

import numpy as np


def load(model, folder=".", names=None):
    """Sets weights, scales, input ranges and biases of the analog layers of a model.

    Args:
      model: any `torch.nn.Module` with analog layers of inference tiles, whose
        `rpu_config` has the `mapping` and `forward` of `rpu_config.py`.
      folder: the folder of `tensors.npz` and `layers.json`.
      names: the name in the tensors of each analog layer of the model, by its name in
        `named_modules()`. By default the same names with dots for slashes.

    Raises:
      ValueError: if a layer or a tile does not fit; the model may be partly changed.

    Warns:
      UserWarning: naming the modules whose digital parameters or statistics the files
        do not hold, such as batch norms.
    """
    from aihwkit.nn.modules.base import (  # pyright: ignore[reportMissingImports]
        AnalogLayerBase,
    )
    from torch import from_numpy  # pyright: ignore[reportMissingImports]

    with np.load(Path(folder, "tensors.npz"), allow_pickle=False) as file:
        tensors = dict(file)
    left = {name.removesuffix("/weight") for name in tensors if name.endswith("weight")}
    # Not named_analog_layers(), which only aihwkit's own containers have.
    for layer, module in model.named_modules():
        if not isinstance(module, AnalogLayerBase) or module.IS_CONTAINER:
            continue
        name = layer.replace(".", "/") if names is None else names.get(layer)
        if name not in left:
            raise ValueError(f"no weights are left for {layer!r}; there are {left}")
        left.remove(name)

        def get(quantity, name=name):
            array = tensors.get(f"{name}/{quantity}")
            return None if array is None else from_numpy(array.copy())

        weight, bias = get("weight"), get("bias")
        tiles = list(module.analog_tiles())
        sizes = [(tile.out_size, tile.in_size) for tile in tiles]
        wanted = [tuple(size) for size in tensors[f"{name}/tile_sizes"]]
        has_bias = module.get_weights()[1] is not None
        if sizes != wanted or has_bias != (bias is not None):
            raise ValueError(
                f"{layer!r} should have tiles (out, in) of {wanted} and "
                f"{'no' if bias is None else 'a'} digital bias; it has {sizes}. Set "
                "max_input_size, max_output_size and digital_bias of its mapping"
            )
        module.set_weights(weight, bias, apply_weight_scaling=False)
        for number, tile in enumerate(tiles):
            tile.set_mapping_scales(get(f"tile/{number}/mapping_scale"))
            input_range = get(f"tile/{number}/input_range")
            if input_range is not None:
                tile.set_input_range(input_range)
            drift = [
                get(entry.removeprefix(f"{name}/"))
                for entry in tensors
                if entry.startswith(f"{name}/tile/{number}/nu/")
            ]
            if drift:
                # These are set here instead of drawn by program_weights().
                tile.programmed_weights = tile.tile.get_weights()
                tile.drift_noise_parameters = drift
                # The mapping scales hold the factor of the compensation at zero, so
                # that an exact reference, too, is that of the programmed weights.
                tile.reference_combined_weights = tile.programmed_weights.clone()
                if getattr(tile.rpu_config, "drift_compensation", None) is not None:
                    compensation = tile.rpu_config.drift_compensation
                    tile.drift_baseline = compensation.init_baseline(tile)
    if left:
        raise ValueError(f"the model has no layer for {', '.join(sorted(left))}")
    content = Path(folder, "layers.json").read_text(encoding="utf-8")
    lost = json.loads(content)["lost"]
    if lost:
        warnings.warn(
            f"not set, because they are not in the files: {', '.join(lost)}; set them "
            "from hwtrain.load(CHECKPOINT).variables",
            stacklevel=2,
        )
