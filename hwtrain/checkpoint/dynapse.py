"""A deployed DynapSE network as a directory: JSON and safetensors."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from hwtrain.checkpoint import destination, manifest, tensors
from hwtrain.checkpoint.description import Entry
from hwtrain.checkpoint.errors import HardwareCheckpointError
from hwtrain.checkpoint.manifest import Hash, TensorEntry
from hwtrain.dynapse.biases import BiasCode
from hwtrain.dynapse.connectivity import Limits
from hwtrain.dynapse.deployment import WEIGHTS, Deployment, Synapses
from hwtrain.dynapse.weight_codes import amounts
from hwtrain.version import __version__

FILE_NAME = "tensors.safetensors"
RULES = {
    "weights": "achieved = sign * sum over b of bit b of mask * Iw_b / iscale, Iw_b "
    "the achieved base currents of the neuron's core; mask 0: no synapse",
    "dendrites": "sign 1: excitatory (AMPA), -1: inhibitory (GABA)",
    "biases": "every neuron of a core has the core's biases; achieved: the current of "
    "(coarse, fine) in the table that the exporter was given",
    "chips": "currents of each neuron and weights of each synapse of a frozen chip, "
    "which no code can hold: what it really has is achieved * chip / wanted",
    "layers": "name and number of neurons, in the order of the neurons; the first is "
    "driven by the inputs, each of the others by the layer before",
}
_ARRAYS = {"wanted": "1", "mask": "bits", "sign": "1", "achieved": "1"}


class DynapseManifest(Entry):
    """What a deployed network says about itself."""

    format: Literal["hwtrain-dynapse"] = "hwtrain-dynapse"
    version: str = "1.0"
    hwtrain: str = __version__
    rules: dict[str, str] = RULES
    units: dict[str, str] = {"biases": "A", "iscale": "A", "chips": "SI: A, F, V"}
    iscale: float
    limits: Limits
    biases: dict[int, dict[str, BiasCode]]
    lost: dict[str, int]
    """Weights of each part that are not zero and got no synapse."""
    largest_error: dict[str, float]
    """Largest difference of achieved and wanted weights of each part."""
    chips: tuple[int, ...]
    layers: tuple[tuple[str, int], ...]
    tensors: dict[str, TensorEntry]
    sha256: Hash | None = None


def export_dynapse(path: str | os.PathLike[str], deployment: Deployment) -> Path:
    """Writes a deployed network, complete or not at all.

    `manifest.json` has the bias codes of each core, `tensors.safetensors` the masks,
    signs, wanted and achieved weights of the synapses, `[sources, neurons]`, the
    `cores` of the neurons, and `chips/<seed>/<name>`.

    >>> import tempfile
    >>> from hwtrain.dynapse.biases import computed_table
    >>> from hwtrain.dynapse.deployment import deploy
    >>> deployment = deploy([[0.5]], None, {"Itau_mem": 5e-12}, table=computed_table())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = load_dynapse(export_dynapse(f"{folder}/chip", deployment))
    >>> found.weights_in.achieved.round(2)
    array([[0.5]])

    Args:
      path: the directory to write; must not exist.
      deployment: what `hwtrain.dynapse.deployment.deploy` returned.

    Returns:
      `path`.

    Raises:
      HardwareCheckpointError: (a `ValueError`) if something lies at `path`, or it
        cannot be written. Nothing is left behind.
    """
    parts = {name: getattr(deployment, name) for name in WEIGHTS}
    with destination.new(path, folder=True) as partial:
        entries = tensors.write(partial / FILE_NAME, dict(_arrays(deployment)))
        content = DynapseManifest(
            iscale=deployment.iscale,
            limits=deployment.limits,
            biases={core: dict(codes) for core, codes in deployment.biases.items()},
            lost={name: part.lost for name, part in parts.items()},
            largest_error={
                name: float(np.abs(part.error).max(initial=0))
                for name, part in parts.items()
            },
            chips=tuple(sorted(deployment.chips)),
            layers=tuple(deployment.layers.items()),
            tensors=entries,
        )
        manifest.write(partial, content)
    return Path(path)


def load_dynapse(path: str | os.PathLike[str]) -> Deployment:
    """Reads a deployed network, compares every hash, and what the codes amount to.

    Args:
      path: the directory that `export_dynapse` wrote.

    Raises:
      HardwareCheckpointError: (a `ValueError`) if it is none, or damaged.
    """
    directory = Path(path)
    content = manifest.read(directory, DynapseManifest)
    arrays = tensors.read(directory, FILE_NAME, content.tensors)
    try:
        parts = {
            part: Synapses(**{name: arrays[f"{part}/{name}"] for name in _ARRAYS})
            for part in WEIGHTS
        }
        chips = {
            seed: {
                name.split("/")[2]: array
                for name, array in arrays.items()
                if name.startswith(f"chips/{seed}/")
            }
            for seed in content.chips
        }
        deployment = Deployment(
            cores=arrays["cores"],
            iscale=content.iscale,
            biases=content.biases,
            chips=chips,
            limits=content.limits,
            layers=dict(content.layers),
            **parts,
        )
        for part in parts.values():
            _check_codes(deployment, part)
    except (KeyError, IndexError, ValueError) as error:
        raise HardwareCheckpointError(
            f"{directory} does not hold what its manifest says: {error}. Export the "
            "network again"
        ) from error
    return deployment


def _arrays(deployment: Deployment) -> Iterator[tuple[str, tuple[np.ndarray, str]]]:
    yield "cores", (deployment.cores.astype(np.int32), "1")
    for part in WEIGHTS:
        synapses = dataclasses.asdict(getattr(deployment, part))
        for name, unit in _ARRAYS.items():
            yield f"{part}/{name}", (synapses[name], unit)
    for seed, currents in sorted(deployment.chips.items()):
        for name, current in currents.items():
            unit = "1" if name in WEIGHTS else "SI"
            yield f"chips/{seed}/{name}", (np.array(current), unit)


def _check_codes(deployment: Deployment, part: Synapses) -> None:
    """Raises unless masks, signs and base currents amount to the achieved weights."""
    for core, codes in deployment.biases.items():
        here = deployment.cores == core
        bases = np.array([codes[f"Iw_{b}"].achieved for b in range(4)])
        found = part.sign[:, here] * amounts(part.mask[:, here], bases)
        expected = part.achieved[:, here] * deployment.iscale
        if not np.allclose(found, expected, rtol=1e-9, atol=1e-6 * bases.min()):
            raise ValueError(f"the weights of core {core} are not those of its codes")
