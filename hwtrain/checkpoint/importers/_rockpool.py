"""Reads the parameters of a network of Rockpool's DynapSim layers from JSON."""

import dataclasses
import json
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON file: {error}") from error
    arrays: dict[str, np.ndarray] = {}
    cells: dict[str, Mapping[str, Any]] = {}
    lost: list[str] = []
    for name, given in _layers(content, path):
        where = f"{path}: {name or 'the network'}"
        held = {key: _array(value, f"{where}: {key}") for key, value in given.items()}
        held = {key: value for key, value in held.items() if value is not None}
        if "weight" in held and set(held) <= {"weight", "bias"}:
            found = {"kernel" if x == "weight" else x: v for x, v in held.items()}
            found = {x: v.astype(np.float32) for x, v in found.items()}
        elif "Itau_mem" in held:
            found, cells[name] = _cell(held, layout or Layout(), where)
            lost += [f"{name}: {x} {why}" for x, why in _LOST.items() if x in held]
        elif not held:
            continue
        else:
            raise InputError(
                f"{where}: expected the arrays of a DynapSim or of a LinearJax, got "
                f"{', '.join(held)}; other layers are not converted"
            )
        arrays |= {f"params/{name}/{x}".replace("//", "/"): v for x, v in found.items()}
    if not cells:
        raise InputError(f"{path}: expected layers of DynapSim neurons, got none")
    return Network(arrays=arrays, cells=cells, lost=together(lost))


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
    except (ValueError, TypeError):
        raise InputError(
            f"{where}: expected numbers, got {str(value)[:40]!r}"
        ) from None
    if found is not None and not np.isfinite(found).all():
        raise InputError(f"{where}: expected finite numbers, got NaN or infinity")
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
    quantities = {
        name: np.broadcast_to(held[name].reshape(-1), features) for name in _NAMES
    }
    try:
        logs = logarithms(quantities, layout)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    found = {name: np.asarray(value) for name, value in logs.items()}
    recurrent = "w_rec" in held and bool(held["w_rec"].any())
    if recurrent:
        found["w_rec"] = held["w_rec"].astype(np.float32)
    about: dict[str, Any] = {"features": features, "recurrent": recurrent}
    for name, key in _OF_CELL.items():
        if name in held:
            # Saved as float32, of which this is the shortest number.
            about[key] = float(str(np.float32(held[name].reshape(-1)[0])))
    return found, about
