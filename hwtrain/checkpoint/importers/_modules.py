"""The modules of a `state_dict`: analog layers with their tiles, and digital ones."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hwtrain._errors import InputError
from hwtrain.checkpoint.importers._records import Data
from hwtrain.checkpoint.importers._torch_file import StateDict, read_torch

_INSIDE = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint of a training may hold the `state_dict`."""
_COUNTS = ("input_range_update_idx", "analog_ctx", "x_min", "x_max", "fold_indices")
"""Buffers of analog layers without which a model computes the same."""
_STATISTICS = {"running_mean": "mean", "running_var": "var"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """One tile of a layer.

    Attributes:
      weight: `[out, in]`, as the crossbar holds it.
      scale: the factor on its result, `[out or 1]`: mapping scale, times that of the
        drift compensation; `None` for logical weights, whose scale follows from them.
      output_scale: the learned factor on its result, `[out or 1]`; `None` for none.
      input_range: the range of its inputs; `None` for none.
      bound: the learned bound of the weights, `[out]`; `None` for none.
    """

    weight: np.ndarray
    scale: np.ndarray | None = None
    output_scale: np.ndarray | None = None
    input_range: float | None = None
    bound: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Module:
    """A module of a file.

    Attributes:
      name: its name there, with dots.
      arrays: its digital arrays: `weight`, `bias`, `scale`, `mean`, `var`.
      tiles: of an analog layer, the tiles by row and column; empty for digital ones.
      hardware: of an analog layer, its hardware as plain data.
      shape: the shape of its weight `[out, in, ...]`.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    tiles: tuple[tuple[Tile, ...], ...] = ()
    hardware: Data | None = None
    shape: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A trained model of a file.

    Attributes:
      source: the file.
      package: what wrote it.
      modules: its modules, in the order of the file.
      lost: what of it hwtrain does not have.
    """

    source: str
    package: str
    modules: tuple[Module, ...]
    lost: tuple[str, ...] = ()


def state_dict(path: Path) -> StateDict:
    """Returns the `state_dict` of a file, or that in a checkpoint of a training.

    Raises:
      ValueError: if the file holds something else.
    """
    found = read_torch(path)
    for name in _INSIDE:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{path}: expected a state_dict, got {type(found).__name__}; write "
            "torch.save(model.state_dict(), path)"
        )
    kept = StateDict()
    kept.metadata = getattr(found, "metadata", {})
    for key, value in found.items():
        last = str(key).rpartition(".")[2]
        if value is None or last == "_extra_state":
            continue
        if not isinstance(value, np.ndarray) and last != "analog_tile_state":
            raise InputError(
                f"{path}: expected a state_dict of tensors, got {key}, which is "
                f"{type(value).__name__}; write torch.save(model.state_dict(), path)"
            )
        kept[str(key)] = value
    return kept


def digital(name: str, held: Data) -> Module:
    """Returns a module without tiles.

    Args:
      name: its name.
      held: its arrays by PyTorch's names.
    """
    counted = {"running_mean", "running_var"} & held.keys()
    left = "num_batches_tracked" if counted else None
    arrays = {x: floats(v) for x, v in held.items() if x != left}
    arrays = {_STATISTICS.get(x, x): v for x, v in arrays.items()}
    weight = arrays.get("weight")
    if weight is not None and weight.ndim == 1:
        arrays["scale"] = arrays.pop("weight")
    return Module(
        name=name, arrays=arrays, shape=() if weight is None else weight.shape
    )


def check_parts(held: Data, known: Iterable[str]) -> None:
    """Raises if an analog layer has arrays of its own, as those of a subclass do.

    Args:
      held: its arrays by name.
      known: those that are read.
    """
    own = [x for x in held if x not in {*known, *_COUNTS}]
    if own:
        raise InputError(
            f"{', '.join(own)}: expected the arrays of an analog layer alone; "
            "what a subclass computes with its own is not converted: move them into a "
            "module of their own"
        )


def count_ranges(name: str, hardware: Data, lost: list[str]) -> None:
    """Lists that training sets ranges from data again."""
    ranges = hardware.get("input_range", {"dynamic": True})
    updates = ranges.get("init_from_data", 100)
    if not ranges.get("dynamic") and updates:
        lost.append(
            f"{name}: the count of updates of its input ranges: training sets them "
            f"from data in its first {updates} updates; init_from_data = 0 keeps them"
        )


def floats(array: Any) -> np.ndarray:
    """Returns an array of any dtype as float32."""
    return np.asarray(array, np.float32)
