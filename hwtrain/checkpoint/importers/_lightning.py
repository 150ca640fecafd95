"""Reads a `state_dict` of aihwkit-lightning."""

from pathlib import Path
from typing import Any

import numpy as np

from hwtrain._arrays.tiling import split_sizes
from hwtrain._errors import InputError
from hwtrain.checkpoint.importers._lightning_config import (
    learns_bound,
    levels_of,
    of_lightning,
)
from hwtrain.checkpoint.importers._modules import (
    Module,
    Tile,
    Trained,
    count_ranges,
    digital,
    floats,
    state_dict,
)
from hwtrain.checkpoint.importers._records import Data
from hwtrain.checkpoint.importers._torch_file import Record


def read_lightning(path: Path) -> Trained:
    """Returns the model of a `state_dict` of aihwkit-lightning.

    Args:
      path: a file of `torch.save(model.state_dict(), path)`.

    Raises:
      ValueError: if it is no such file, or has what changes results and hwtrain does
        not have.
    """
    state = state_dict(path)
    configs = {
        name: about["rpu_config"]
        for name, about in state.metadata.items()
        if isinstance(about, dict) and isinstance(about.get("rpu_config"), Record)
    }
    if not configs:
        raise InputError(
            f"{path}: expected a state_dict of aihwkit-lightning, with the rpu_config "
            "of its layers in its metadata, got none"
        )
    grouped: dict[str, Data] = {}
    for key, value in state.items():
        name, _, leaf = key.rpartition(".")
        grouped.setdefault(name, {})[leaf] = value
    lost: list[str] = []
    made = []
    for name, held in grouped.items():
        config = configs.get(name.partition(".")[0])
        weight = held.get("weight")
        analog = config is not None and weight is not None and weight.ndim >= 2
        ranges = "input_range" in held or not _ranged(config)
        if config is None or not analog or not ranges:
            made.append(digital(name, held))
            continue
        try:
            hardware, left = of_lightning(config)
        except ValueError as error:
            raise InputError(f"{path}: {name}: {error}") from error
        lost += [f"{name}: {text}" for text in left]
        made.append(_of_lightning(name, held, config, hardware, lost))
    return Trained(
        source=str(path),
        package="aihwkit-lightning",
        modules=tuple(made),
        lost=tuple(lost),
    )


def _ranged(config: Any) -> bool:
    """Whether an analog layer of a configuration stores input ranges."""
    if config is None:
        return False
    found = config.get("pre_post")
    found = found.get("input_range") if isinstance(found, Record) else None
    found = found.fields if isinstance(found, Record) else {}
    return bool(found.get("enable")) and not found.get("dynamic")


def _of_lightning(
    name: str, held: Data, config: Record, hardware: Data, lost: list[str]
) -> Module:
    weight = floats(held["weight"])
    shape = weight.shape
    matrix = weight.reshape(shape[0], -1)
    limit = hardware["mapping"]["max_input_size"]
    sizes = split_sizes(matrix.shape[1], None if limit == "none" else limit)
    bounds = held.get("learnable_weight_clip") if learns_bound(config) else None
    rounded = levels_of(config)
    if rounded:
        lost.append(
            f"{name}: the weights between the levels, to which lightning rounds them "
            "in every call; the parameters have the rounded ones"
        )
    tiles, start = [], 0
    for number, size in enumerate(sizes):
        part = matrix[:, start : start + size]
        bound = None if bounds is None else floats(bounds)[number].reshape(-1)
        if rounded:
            part = _rounded(part, *rounded, bound)
        ranges = held.get("input_range") if "input_range" in hardware else None
        tile = Tile(
            weight=part,
            input_range=None if ranges is None else float(floats(ranges)[number]),
            bound=bound,
        )
        tiles.append((tile,))
        start += size
    count_ranges(name, hardware, lost)
    bias = held.get("bias")
    arrays = {} if bias is None else {"bias": floats(bias)}
    return Module(
        name=name, arrays=arrays, tiles=tuple(tiles), hardware=hardware, shape=shape
    )


def _rounded(
    part: np.ndarray, steps: float, per_column: bool, bound: np.ndarray | None
) -> np.ndarray:
    """Returns weights `[out, in]` on the levels of lightning."""
    largest = abs(part).max(axis=1) if bound is None else bound
    if not per_column and bound is None:
        largest = np.full_like(largest, largest.max())
    step = np.maximum(2 * largest / steps, np.finfo(np.float32).tiny)[:, None]
    levels = np.clip(part / step, -steps / 2, steps / 2)
    return (np.round(levels) * step).astype(np.float32)
