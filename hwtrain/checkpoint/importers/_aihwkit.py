"""Reads a `state_dict` of aihwkit."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwtrain._errors import InputError
from hwtrain.checkpoint.importers._aihwkit_config import of_aihwkit
from hwtrain.checkpoint.importers._modules import (
    Module,
    Tile,
    Trained,
    check_parts,
    count_ranges,
    digital,
    floats,
    state_dict,
)
from hwtrain.checkpoint.importers._records import Data
from hwtrain.checkpoint.importers._torch_file import Record

_ANALOG = re.compile(r"(?:(.*)\.)?analog_module\.(?:array\.(\d+)\.(\d+)\.)?(.+)")

_SIGNED = "inp_asymmetry out_asymmetry out_nonlinearity r_series v_offset_std".split()
"""What treats a positive input otherwise than a negative one."""


def read_aihwkit(path: Path) -> Trained:
    """Returns the model of a `state_dict` of aihwkit.

    Args:
      path: a file of `torch.save(model.state_dict(), path)`.

    Raises:
      ValueError: if it is no such file, or has what changes results and hwtrain does
        not have.
    """
    state = state_dict(path)
    tiles: dict[str, dict[tuple[int, int], Data]] = {}
    beside: dict[str, Data] = {}
    order: dict[str, None] = {}
    for key, value in state.items():
        match = _ANALOG.fullmatch(key)
        if match is None:
            name, _, leaf = key.rpartition(".")
            beside.setdefault(name, {})[leaf] = value
        else:
            name, row, column, leaf = match.groups()
            name = name or ""
            place = (int(row or 0), int(column or 0))
            held = tiles.setdefault(name, {})
            if leaf == "bias":
                beside.setdefault(name, {})["bias"] = value
            else:
                held.setdefault(place, {})[leaf] = value
        order[name] = None
    lost: list[str] = []
    made = []
    for name in order:
        if name in tiles:
            made.append(_of_tiles(name, tiles[name], beside.get(name, {}), lost, path))
        else:
            made.append(digital(name, beside[name]))
    if not tiles:
        raise InputError(
            f"{path}: expected tiles of aihwkit, got a state_dict without any; a plain "
            "model starts a run by init_from = file.py:function"
        )
    return Trained(
        source=str(path), package="aihwkit", modules=tuple(made), lost=tuple(lost)
    )


def _of_tiles(
    name: str,
    tiles: Mapping[tuple[int, int], Data],
    beside: Data,
    lost: list[str],
    path: Path,
) -> Module:
    rows, columns = (1 + max(place[axis] for place in tiles) for axis in (0, 1))
    if len(tiles) != rows * columns:
        raise InputError(f"{path}: {name} lacks some of its {rows} x {columns} tiles")
    states: list[Any] = [tile.get("analog_tile_state") for tile in tiles.values()]
    state = states[0] if all(isinstance(x, dict) for x in states) else {}
    config = state.get("rpu_config")
    if not isinstance(config, Record):
        raise InputError(
            f"{path}: {name} has no rpu_config beside its tiles; save the state_dict "
            "with load_rpu_config's default, of aihwkit 0.9 or newer"
        )
    try:
        check_parts(beside, ("bias",))
        kind = str(state.get("analog_tile_class"))
        hardware, left = of_aihwkit(config, kind, _most_rows(states))
    except ValueError as error:
        raise InputError(f"{path}: {name}: {error}") from error
    lost += [f"{name}: {text}" for text in left]
    scaled = hardware["mapping"]["weight_scaling_omega"] > 0
    if scaled and any(tile.get("mapping_scales") is None for tile in tiles.values()):
        raise InputError(
            f"{path}: {name}: expected mapping_scales beside each tile, as its "
            "mapping.weight_scaling_omega above 0 makes them, got none"
        )
    compensated = isinstance(config.get("drift_compensation"), Record)
    places = [[(row, column) for column in range(columns)] for row in range(rows)]
    try:
        found = [
            [_tile(tiles[place], hardware, compensated) for place in line]
            for line in places
        ]
    except ValueError as error:
        raise InputError(f"{path}: {name}: {error}") from error
    count_ranges(name, hardware, lost)
    alphas = [floats(tile.get("alpha", 1.0)) for tile in tiles.values()]
    if compensated and any((alpha != 1).any() for alpha in alphas):
        lost.append(
            f"{name}: nominal and programmed weights: the file holds the drifted ones "
            "alone, and alpha of the drift compensation, which is part of the mapping "
            "scales now"
        )
    size = (
        sum(tile.weight.shape[0] for tile in found[0]),
        sum(row[0].weight.shape[1] for row in found),
    )
    arrays = {x: floats(v) for x, v in beside.items() if x == "bias" and v is not None}
    return Module(
        name=name,
        arrays=arrays,
        tiles=tuple(map(tuple, found)),
        hardware=hardware,
        shape=size,
    )


def _most_rows(states: Sequence[Data]) -> int:
    return max(state["analog_tile_weights"].shape[1] for state in states)


def _tile(held: Data, hardware: Data, compensated: bool) -> Tile:
    state = held["analog_tile_state"]
    weight = floats(state["analog_tile_weights"])
    scale = held.get("mapping_scales")
    scale = np.ones(1, np.float32) if scale is None else floats(scale)
    if compensated and held.get("alpha") is not None:
        scale = scale * floats(held["alpha"]).reshape(-1)
    learned = held.get("out_scaling_alpha")
    bound = held.get("input_range") if "input_range" in hardware else None
    return Tile(
        weight=weight,
        scale=scale.reshape(-1),
        output_scale=None if learned is None else floats(learned).reshape(-1),
        input_range=None if bound is None else _range(bound, hardware),
    )


def _range(array: Any, hardware: Data) -> float:
    """Returns the range of a tile's inputs, of a negative one its size, as aihwkit."""
    value = float(np.ravel(floats(array))[0])
    forward = hardware.get("forward", {})
    signed = [name for name in _SIGNED if forward.get(name)]
    if forward.get("mv_type", "one_pass") != "one_pass":
        signed.append("mv_type")
    if value == 0:
        raise InputError(
            "input_range: expected a number other than 0, by which aihwkit divides; "
            "train or calibrate it there"
        )
    if value < 0 and signed:
        raise InputError(
            f"input_range: expected a number above 0 beside {', '.join(signed)} of "
            f"forward, got {value:g}, at which aihwkit reads negative inputs; call "
            "set_input_range with its size in aihwkit"
        )
    return abs(value)
