"""Reads the parameters of a network of Rockpool's DynapSim layers from JSON."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hwtrain._errors import InputError
from hwtrain.checkpoint.importers._records import together
from hwtrain.dynapse._layout import Layout, logarithms, quantity_names

_LOST = {"If_nmda": "has no effect in Rockpool"}
_OF_CELL = {"dt": "dt_s", "Iscale": "Iscale"}
"""Arguments of the cell or its layout, by their names in Rockpool."""

_NAMES = frozenset(quantity_names(reference=True))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network of Rockpool.

    Attributes:
      arrays: the parameters of `Dense` and `DynapSim` by path, with Rockpool's names of
        the layers.
      cells: for each DynapSim layer, the arguments of the cell that are no parameters.
      lost: what hwtrain does not have.
    """

    arrays: Mapping[str, np.ndarray]
    cells: Mapping[str, Mapping[str, Any]]
    lost: tuple[str, ...]


def read_rockpool(path: Path, layout: Layout | None = None) -> Network:
    r"""Returns the parameters of a network of DynapSim and LinearJax layers.

    .. math:: \theta = \ln(I / I_\text{nominal})

    for each current, capacitance and constant of a neuron.

    Args:
      path: a JSON file with the names of layers, and for each the arrays by name, from
        `parameters()` and `simulation_parameters()`; an array is a list, or a text that
        holds one, as `TorchModule.save` writes it.
      layout: the nominal quantities of the cells that get the parameters.

    Raises:
      ValueError: one line that names the file and the layer, if it holds other layers.
    """
    content = _content(path)
    arrays: dict[str, np.ndarray] = {}
    cells: dict[str, Mapping[str, Any]] = {}
    lost: list[str] = []
    sizes: dict[str, tuple[int, int]] = {}
    for name, given in _layers(content, path):
        where = f"{path}: {name or 'the network'}"
        held = {key: _array(value, f"{where}: {key}") for key, value in given.items()}
        held = {key: value for key, value in held.items() if value is not None}
        if "weight" in held and set(held) <= {"weight", "bias"}:
            found = _linear(held, where)
            inputs, outputs = found["kernel"].shape
            sizes[name] = (inputs, outputs)
        elif "Itau_mem" in held:
            found, cells[name] = _cell(held, layout or Layout(), where)
            sizes[name] = (cells[name]["features"],) * 2
            lost += [f"{name}: {x} {why}" for x, why in _LOST.items() if x in held]
        elif not held:
            continue
        else:
            raise InputError(
                f"{where}: expected the arrays of a DynapSim or of a LinearJax, got "
                f"{', '.join(held)}; other layers are not converted"
            )
        made = {f"params/{name}/{x}".replace("//", "/"): v for x, v in found.items()}
        if made.keys() & arrays.keys():
            raise InputError(
                f"{where}: expected one layer of this name, got several, as a slash in "
                "a name makes them; rename one"
            )
        arrays |= made
    _check_sizes(sizes, path)
    if not cells:
        raise InputError(f"{path}: expected layers of DynapSim neurons, got none")
    return Network(arrays=arrays, cells=cells, lost=together(lost))


def _content(path: Path) -> Any:
    """Returns what a JSON file holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON file: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice!r} twice; keep one")
    return found


def _layers(content: Any, path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected the layers of a network by name")
    if not any(isinstance(entry, dict) for entry in content.values()):
        return [("", content)]
    found = []
    for name, entry in content.items():
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {name}: expected the arrays of a layer by name")
        if any(isinstance(inner, dict) for inner in entry.values()):
            found += [(f"{name}/{x}", y) for x, y in _layers(entry, path)]
        else:
            found.append((name, entry))
    return found


def _array(value: Any, where: str) -> np.ndarray | None:
    """Returns an array of a list or of a text; `None` for functions, which are null."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        found = None if value is None else np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InputError(
            f"{where}: expected numbers, got {str(value)[:40]!r}"
        ) from None
    if found is not None and not np.isfinite(found).all():
        raise InputError(f"{where}: expected finite numbers, got NaN or infinity")
    return found


def _linear(held: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    shape = held["weight"].shape
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"{where}: weight: expected an array [inputs, outputs], got one of the "
            f"shape {shape}"
        )
    bias = held.get("bias")
    if bias is not None and bias.shape != shape[1:]:
        raise InputError(
            f"{where}: bias: expected {shape[1]} numbers, one for each output of its "
            f"weight, got an array of the shape {bias.shape}"
        )
    found = {name: _float32(array, f"{where}: {name}") for name, array in held.items()}
    return {"kernel" if name == "weight" else name: v for name, v in found.items()}


def _check_sizes(sizes: Mapping[str, tuple[int, int]], path: Path) -> None:
    """Raises if layers that Rockpool numbers one after the other do not fit."""
    numbered = {}
    for name in sizes:
        match = re.fullmatch(r"(.*/)?(\d+)(?:_[^/]*)?", name)
        if match:
            numbered[match[1], int(match[2])] = name
    for (owner, number), name in numbered.items():
        after = numbered.get((owner, number + 1))
        if after is not None and sizes[name][1] != sizes[after][0]:
            raise InputError(
                f"{path}: {after}: expected {sizes[name][1]} inputs, the outputs of "
                f"{name} before it, got {sizes[after][0]}"
            )


def _float32(array: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise InputError(
            f"{where}: expected numbers that float32 holds, got larger ones"
        )
    return found


def _cell(
    held: Mapping[str, np.ndarray], layout: Layout, where: str
) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    missing = sorted(_NAMES - held.keys())
    if missing:
        raise InputError(
            f"{where}: expected all quantities of a DynapSim, got none of "
            f"{', '.join(missing)}; save simulation_parameters() too"
        )
    known = {*_NAMES, *_OF_CELL, *_LOST, "w_rec"}
    unknown = sorted(held.keys() - known)
    if unknown:
        raise InputError(
            f"{where}: {', '.join(unknown)}: expected quantities of a DynapSim"
        )
    features = held["Itau_mem"].size
    if not features:
        raise InputError(
            f"{where}: Itau_mem: expected a number for each neuron, got none"
        )
    for name in sorted(_NAMES):
        if held[name].size not in (1, features):
            raise InputError(
                f"{where}: {name}: expected 1 number or {features}, as many as the "
                f"neurons of Itau_mem, got {held[name].size}"
            )
    quantities = {
        name: np.broadcast_to(held[name].reshape(-1), features) for name in _NAMES
    }
    try:
        with np.errstate(over="ignore"):
            logs = logarithms(quantities, layout)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    found = {
        name: _float32(np.asarray(value), f"{where}: {name.removeprefix('log_')}")
        for name, value in logs.items()
    }
    recurrent = "w_rec" in held and bool(held["w_rec"].any())
    if "w_rec" in held and held["w_rec"].shape != (features, features):
        raise InputError(
            f"{where}: w_rec: expected an array of the shape {(features, features)}, "
            f"[neurons, neurons], got one of {held['w_rec'].shape}"
        )
    if recurrent:
        found["w_rec"] = _float32(held["w_rec"], f"{where}: w_rec")
    about: dict[str, Any] = {"features": features, "recurrent": recurrent}
    for name, key in _OF_CELL.items():
        if name in held:
            about[key] = _positive(f"{where}: {name}", held[name])
    return found, about


def _positive(where: str, array: np.ndarray) -> float:
    """Returns the one number above 0 of an array, the shortest of its float32."""
    values = np.unique(_float32(array, where))
    if len(values) != 1 or values[0] <= 0:
        raise InputError(
            f"{where}: expected one number above 0, got {array.ravel()[:4].tolist()}"
        )
    return float(str(values[0]))
