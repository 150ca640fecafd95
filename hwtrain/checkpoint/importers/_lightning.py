"""Reads a `state_dict` of aihwkit-lightning."""

from collections.abc import Mapping
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
    check_parts,
    count_ranges,
    digital,
    floats,
    state_dict,
)
from hwtrain.checkpoint.importers._records import Data
from hwtrain.checkpoint.importers._torch_file import Record

_PARTS = ("weight", "bias", "input_range", "learnable_weight_clip")
_NAMED = (
    "before you save, write state._metadata[name]['rpu_config'] = layer.rpu_config for "
    "each of model.named_modules() that has one"
)


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
    matrices = [name for name, held in grouped.items() if _has_matrix(held)]
    owners = {name: _owner(name, configs) for name in matrices}
    lost: list[str] = []
    made = []
    for owner in configs:
        names = [name for name in matrices if owners[name] == owner]
        if len(names) > 1:
            lost.append(
                f"{owner}: rpu_configs that differ: lightning keeps one, the last, for "
                f"all of {', '.join(names)}"
            )
    for name, held in grouped.items():
        owner = owners.get(name)
        config = None if owner is None else configs[owner]
        if config is None or (_ranged(config) and "input_range" not in held):
            made.append(digital(name, held))
            continue
        check_parts(f"{path}: {name}", held, _PARTS)
        try:
            hardware, left = of_lightning(config)
        except ValueError as error:
            raise InputError(f"{path}: {name}: {error}") from error
        others = [x for x, y in owners.items() if y == owner and x != name]
        certain = {"input_range", "learnable_weight_clip"} & held.keys()
        if others and not certain and _changes_outputs(config, hardware):
            raise InputError(
                f"{path}: {name}: the file has one rpu_config for all layers of "
                f"{owner}, and does not tell whether this one is analog or was "
                f"excluded; {_NAMED}"
            )
        lost += [f"{name}: {text}" for text in left]
        made.append(_of_lightning(name, held, config, hardware, lost))
    return Trained(
        source=str(path),
        package="aihwkit-lightning",
        modules=tuple(made),
        lost=tuple(lost),
    )


def _has_matrix(held: Data) -> bool:
    return "weight" in held and held["weight"].ndim >= 2


def _owner(name: str, configs: Mapping[str, Record]) -> str | None:
    """Returns the name whose configuration a layer has: its own, or its first part's.

    Lightning writes one for the first part of all names. Where a file has others inside
    of it, the layers that have none are digital.
    """
    first = name.partition(".")[0]
    inside = any(other.startswith(f"{first}.") for other in configs)
    owner = name if inside or name in configs else first
    return owner if owner in configs else None


def _changes_outputs(config: Record, hardware: Data) -> bool:
    """Whether an analog layer computes other outputs without noise than a digital."""
    bounded = hardware.get("forward", {}).keys() & {"inp_res", "out_bound"}
    return bool(bounded or "input_range" in hardware or levels_of(config))


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
