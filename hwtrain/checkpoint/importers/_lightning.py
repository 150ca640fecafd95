"""Reads a `state_dict` of aihwkit-lightning."""

from collections.abc import Mapping
from pathlib import Path

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
from hwtrain.checkpoint.importers._records import Data, part_of
from hwtrain.checkpoint.importers._torch_file import Record, StateDict

_PARTS = ("weight", "bias", "input_range", "learnable_weight_clip")
_CERTAIN = ("input_range", "learnable_weight_clip")
"""What analog layers have alone."""
_NAMED = (
    "before you save, write state._metadata[name]['rpu_config'] = getattr(layer, "
    "'rpu_config', None) for each of model.named_modules()"
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
    given = _configs(state)
    configs = {name: config for name, config in given.items() if config}
    # By the documentation's lines, so that a layer without a configuration is digital.
    told = any("." in name or config is None for name, config in given.items())
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
    owners = {name: _owner(name, given) for name in matrices}
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
        try:
            owner = owners.get(name)
            if owner is None:
                _check_digital(held, told)
                made.append(digital(name, held))
                continue
            lacking = [x for x in _stored(configs[owner]) if x not in held]
            if lacking and owner == name:
                raise InputError(
                    f"expected {' and '.join(lacking)} beside its weight, as its "
                    "rpu_config makes them, got none"
                )
            if lacking:
                # Another layer of the block has the configuration.
                made.append(digital(name, held))
                continue
            hardware, left = of_lightning(configs[owner])
            others = [x for x, y in owners.items() if y == owner and x != name]
            certain = any(x in held for x in _CERTAIN)
            if others and not certain and _changes_outputs(configs[owner], hardware):
                raise InputError(
                    f"the file has one rpu_config for all layers of {owner}, and does "
                    "not tell whether this one is analog or was excluded; "
                    f"{_NAMED}"
                )
            check_parts(held, _PARTS)
            lost += [f"{name}: {text}" for text in left]
            made.append(_of_lightning(name, held, configs[owner], hardware, lost))
        except ValueError as error:
            raise InputError(f"{path}: {name}: {error}") from error
    return Trained(
        source=str(path),
        package="aihwkit-lightning",
        modules=tuple(made),
        lost=tuple(lost),
    )


def _has_matrix(held: Data) -> bool:
    return "weight" in held and held["weight"].ndim >= 2


def _configs(state: StateDict) -> dict[str, Record | None]:
    """Returns the configurations of a file, `None` for a module that is digital.

    Lightning writes one for the first part of all names, and none for `AnalogConv1d`;
    the documentation says how to write that of each module.
    """
    found = {}
    for name, about in state.metadata.items():
        config = about.get("rpu_config", 0) if isinstance(about, dict) else 0
        if config is None or isinstance(config, Record):
            found[name] = config
    return found


def _owner(name: str, configs: Mapping[str, Record | None]) -> str | None:
    """Returns the name whose configuration a layer has: its own, or its first part's.

    Where a file has others inside of the first part, each analog layer has its own.
    """
    first = name.partition(".")[0]
    inside = any(other.startswith(f"{first}.") for other in configs)
    owner = name if inside or name in configs else first
    return owner if configs.get(owner) else None


def _check_digital(held: Data, told: bool) -> None:
    """Raises if a layer without a configuration may be analog."""
    certain = [x for x in _CERTAIN if x in held]
    one_axis = _has_matrix(held) and held["weight"].ndim == 3
    if certain or (one_axis and not told):
        raise InputError(
            "the file has no rpu_config for it, "
            + (
                f"although it has {' and '.join(certain)}"
                if certain
                else "and does not tell whether it is analog: lightning writes none "
                "for AnalogConv1d"
            )
            + f"; {_NAMED}"
        )


def _changes_outputs(config: Record, hardware: Data) -> bool:
    """Whether an analog layer computes other outputs without noise than a digital."""
    bounded = hardware.get("forward", {}).keys() & {"inp_res", "out_bound"}
    return bool(bounded or "input_range" in hardware or levels_of(config))


def _stored(config: Record) -> list[str]:
    """Returns the arrays that an analog layer of a configuration has."""
    ranges = part_of(part_of(config, "pre_post"), "input_range")
    ranged = ranges.get("enable") and not ranges.get("dynamic")
    held = (ranged, learns_bound(config))
    return [name for name, stored in zip(_CERTAIN, held) if stored]


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
        if bound is not None:
            _check_bound(bound, part, rounds=rounded is not None)
        if rounded:
            part = _rounded(part, *rounded, bound)
        ranges = held.get("input_range") if "input_range" in hardware else None
        tile = Tile(
            weight=part,
            input_range=None if ranges is None else _range(floats(ranges)[number]),
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


def _range(value: np.ndarray) -> float:
    if value <= 0:
        raise InputError(
            f"input_range: expected a number above 0, got {value:g}, at which outputs "
            "of lightning do not depend on the inputs; train or calibrate it there"
        )
    return float(value)


def _check_bound(bound: np.ndarray, part: np.ndarray, *, rounds: bool) -> None:
    """Raises for learned bounds `[out]` that do not bound their weights `[out, in]`."""
    if (bound < 0).any() or ((bound == 0) & part.any(axis=1)).any():
        raise InputError(
            "learnable_weight_clip: expected bounds above 0, as lightning does, got "
            f"{bound.min():g}"
        )
    if not rounds:
        _check_step(bound, "learnable_weight_clip")


def _check_step(steps: np.ndarray, name: str) -> None:
    """Raises for sizes of steps that lightning takes for their number."""
    if (steps > 1).all():
        raise InputError(
            f"{name}: the steps of a tile are all above 1, from {steps.min():g}, and "
            "lightning reads them as numbers of steps then, which changes its outputs; "
            "train there with smaller weights"
        )


def _rounded(
    part: np.ndarray, steps: float, per_column: bool, bound: np.ndarray | None
) -> np.ndarray:
    """Returns weights `[out, in]` on the levels of lightning."""
    largest = abs(part).max(axis=1) if bound is None else bound
    if not per_column and bound is None:
        largest = np.full_like(largest, largest.max())
    _check_step(largest / steps, "weight")
    step = np.maximum(2 * largest / steps, np.finfo(np.float32).tiny)[:, None]
    levels = np.clip(part / step, -steps / 2, steps / 2)
    return (np.round(levels) * step).astype(np.float32)
