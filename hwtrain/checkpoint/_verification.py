"""Verifies a hardware-ready checkpoint beyond its hashes by recomputing it."""

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import _tensors as tensors
from hwtrain.checkpoint._crossbars import Crossbars
from hwtrain.checkpoint._earlier import as_drawn, nominal_scale
from hwtrain.checkpoint._entries import LayerEntry
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._reader import HardwareCheckpoint, load
from hwtrain.checkpoint._tiles import grid
from hwtrain.weights.mapping import MAPPING_SCALE

TOLERANCE = 1e-6
"""Largest error of a weight, relative to the largest weight of its tile or array."""


def verify(path: str | os.PathLike[str]) -> dict[str, Any]:
    r"""Reads a checkpoint, recomputes all of it, and certifies it.

    Checks every hash, compares the weights that each tile's conductances represent with
    the nominal ones, and the weights of every chip with a new draw from its seed or,
    for a measured chip, with its conductances.

    .. math:: \epsilon = \max |W' - W| / \max |W|

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from hwtrain.checkpoint import export
    >>> from hwtrain import Plan
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     params = {"norm": {"scale": jnp.ones(2)}}
    ...     verify(export(f"{folder}/model", params, Plan(())))["weights"]
    {}

    Args:
      path: the directory.

    Returns:
      The certificate, plain data for JSON: the `sha256` of the manifest and, for each
      analog weight, the error of its `conductances` (`None` without a converter) and of
      each of its `chips`.

    Raises:
      HardwareCheckpointError: (a `ValueError`) as for `load`, or if an error exceeds
        1e-6.
    """
    # Forged constants may overflow; the stored values then do not match.
    with np.errstate(over="ignore", invalid="ignore"):
        return _certificate(load(path))


def _certificate(checkpoint: HardwareCheckpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    params = paths.leaves(checkpoint.params)
    weights = {}
    for layer in manifest.layers:
        weight = layer.weight
        kernel = np.asarray(params[weight.path])
        bound = weight.stored_bound(params)
        crossbars = Crossbars(
            as_drawn(layer),
            kernel,
            nominal_scale(manifest.version, weight, params),
            None if bound is None else np.asarray(bound),
        )
        report: dict[str, Any] = {"conductances": None, "chips": {}}
        if weight.hardware.converter is not None:
            where = f"{checkpoint.directory / layer.file}, {weight.path}"
            report["conductances"] = _largest(
                f"{where}, conductances of ",
                _conductance_errors(checkpoint, weight, crossbars.written),
            )
            # A wrong mapping scale could still give the right weights.
            _largest(f"{where}, ", _tile_errors(checkpoint, layer, crossbars))
        for chip in manifest.chips:
            file = chip.files[weight.path]
            stored = tensors.read(checkpoint.directory, file, manifest.files[file])
            if chip.measured:
                prefix = f"{crossbars.weight.path}/"
                named = {prefix + name: array for name, array in stored.items()}
                chip_kernel, conductances = crossbars.measured(named)
            else:
                chip_kernel, conductances = crossbars.chip(chip.seed)
            redrawn = {"kernel": chip_kernel, **dict(conductances)}
            where = f"{checkpoint.directory / file}, {weight.path}, chip {chip.seed}, "
            errors = ((name, _error(stored[name], redrawn[name])) for name in redrawn)
            report["chips"][str(chip.seed)] = _largest(where, errors)
        weights[weight.path] = report
    return {
        "passed": True,
        "format": manifest.format,
        "version": manifest.version,
        "sha256": manifest.sha256,
        "tolerance": TOLERANCE,
        "weights": weights,
    }


def _conductance_errors(
    checkpoint: HardwareCheckpoint, weight: AnalogWeight, kernel: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Yields the name of each tile and its error, for each layer of the stack."""
    matrix = np.asarray(weight.to_matrix(jnp.asarray(kernel, jnp.float32)))
    tiles = checkpoint.conductances(weight.path)
    for place in grid(weight):
        expected = matrix[..., place.rows, place.columns]
        shape = (-1, *expected.shape[-2:])
        found = tiles[place.row][place.column].weights()
        for pair in zip(found.reshape(shape), expected.reshape(shape)):
            yield place.name, _error(*pair)


def _tile_errors(
    checkpoint: HardwareCheckpoint, layer: LayerEntry, crossbars: Crossbars
) -> Iterator[tuple[str, float]]:
    """Yields the name and the error of each tensor of each nominal tile."""
    entries = checkpoint.manifest.files[layer.file]
    stored = tensors.read(checkpoint.directory, layer.file, entries)
    for name, tile in crossbars.tiles():
        computed = {**tile.conductances, **tile.params}
        computed[MAPPING_SCALE.name] = tile.mapping_scale
        for quantity, array in computed.items():
            tensor = f"{name}/{quantity}"
            yield tensor, _error(stored[tensor], array)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    # In float64, so that unsigned states of devices do not wrap around.
    largest = np.abs(expected, dtype=np.float64).max(initial=0.0)
    difference = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
    if not difference:
        return 0.0
    error = float(difference / largest) if largest else math.inf
    # Infinity instead of NaN, which a maximum of several may ignore.
    return error if math.isfinite(error) else math.inf


def _largest(where: str, errors: Iterable[tuple[str, float]]) -> float:
    """Returns the largest of errors by name; raises if one is too large."""
    largest = 0.0
    for name, error in errors:
        if error > TOLERANCE:
            raise HardwareCheckpointError(
                f"{where}{name}: does not follow from the nominal weights. It is off "
                f"by {error:.3g} of the largest, where {TOLERANCE:g} is allowed. It "
                "was written by another program or rule; export the model again"
            )
        largest = max(largest, error)
    return largest
