"""A deployed DynapSE network as a directory of JSON and safetensors."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from hwtrain._errors import InputError
from hwtrain._version import __version__
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint import _manifest as manifest
from hwtrain.checkpoint import _tensors as tensors
from hwtrain.checkpoint._description import Entry
from hwtrain.checkpoint._entries import Hash, TensorEntry
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._files import check_listed, path_of
from hwtrain.dynapse._biases import BiasCode
from hwtrain.dynapse._connectivity import Limits, check_connectivity
from hwtrain.dynapse._deployment import WEIGHTS, Deployment, Synapses
from hwtrain.dynapse._weight_codes import BASES, amounts

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
_BASES = {f"Iw_{number}" for number in range(BASES)}
_ARRAYS = {"wanted": "1", "mask": "bits", "sign": "1", "achieved": "1"}

UNITS = {"biases": "A", "iscale": "A", "chips": "SI: A, F, V"}
_DTYPES = {"wanted": "float64", "mask": "uint8", "sign": "int8", "achieved": "float64"}

_LARGEST = 1.0
"""Upper bound of bias currents, in A; larger values have another unit."""

Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]


class DynapseManifest(Entry):
    """The manifest of a deployed network."""

    format: Literal["hwtrain-dynapse"] = "hwtrain-dynapse"
    version: str = "1.0"
    hwtrain: str
    rules: dict[str, str]
    units: dict[str, str]
    iscale: Annotated[float, Field(gt=0, lt=1)]
    limits: Limits
    biases: dict[Count, dict[str, BiasCode]]
    lost: dict[str, Count]
    """Number of nonzero weights without a synapse, for each matrix."""
    largest_error: dict[str, float]
    """Largest difference of achieved and wanted weights, for each matrix."""
    chips: tuple[Annotated[int, Field(ge=0)], ...]
    layers: tuple[tuple[Name, Count], ...]
    tensors: dict[str, TensorEntry]
    sha256: Hash | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, found, expected in (
            ("rules", self.rules, RULES),
            ("units", self.units, UNITS),
        ):
            for key in sorted(found.keys() ^ expected.keys()):
                raise InputError(f"{name}.{key[:80]}: is missing, or not allowed")
            for key, text in expected.items():
                if found[key] != text:
                    raise InputError(f"{name}.{key}: should be {text!r}")
        for core, codes in self.biases.items():
            first = next(iter(self.biases.values()))
            missing = sorted((first.keys() ^ codes.keys()) | (_BASES - codes.keys()))
            if missing:
                raise InputError(
                    f"biases.{core}: every core must have the same biases, including "
                    f"{missing[0]}"
                )
        self._check_table()
        for where, names in (
            ("chips", self.chips),
            ("layers", [name for name, _ in self.layers]),
        ):
            if len({*names}) != len(names):
                raise InputError(f"{where}: one occurs twice")
        if [*self.chips] != sorted(self.chips):
            raise InputError("chips: should be sorted")
        for name, found in (("lost", self.lost), ("largest_error", self.largest_error)):
            if found.keys() != {*WEIGHTS}:
                raise InputError(
                    f"{name}: should have the keys {' and '.join(WEIGHTS)}"
                )
        self._check_tensors()
        return self

    def _check_table(self) -> None:
        """Raises for impossible currents, or different currents of the same code."""
        table: dict[tuple[str, int, int], float] = {}
        for core, codes in self.biases.items():
            for name, code in codes.items():
                if max(code.wanted, code.achieved) >= _LARGEST:
                    raise InputError(
                        f"biases.{core}.{name}: a bias current must be below "
                        f"{_LARGEST} A, got wanted {code.wanted} and achieved "
                        f"{code.achieved}"
                    )
                at = ("Iw" if name in _BASES else name, code.coarse, code.fine)
                if table.setdefault(at, code.achieved) != code.achieved:
                    raise InputError(
                        f"biases.{core}.{name}: the code ({code.coarse}, {code.fine}) "
                        f"has {table[at]:g} A elsewhere, here achieved is "
                        f"{code.achieved:g} A"
                    )

    def _check_tensors(self) -> None:
        neurons = sum(size for _, size in self.layers)
        inputs = self.tensors.get("weights_in/wanted")
        sources = inputs.shape[0] if inputs is not None and inputs.shape else 0
        shapes: dict[str, tuple[int, ...]] = {
            "weights_in": (sources, neurons),
            "weights_rec": (neurons, neurons),
        }
        expected: dict[str, tuple[str, tuple[int, ...], str]] = {
            "cores": ("int32", (neurons,), "1")
        }
        for part, shape in shapes.items():
            for name, unit in _ARRAYS.items():
                expected[f"{part}/{name}"] = (_DTYPES[name], shape, unit)
        for name in self.tensors:
            folder, _, rest = name.partition("/")
            seed, _, quantity = rest.partition("/")
            known = folder == "chips" and seed in map(str, self.chips)
            if known and quantity and "/" not in quantity:
                shape = shapes.get(quantity, (neurons,))
                unit = "1" if quantity in WEIGHTS else "SI"
                expected[name] = ("float64", shape, unit)
        for name in sorted(expected.keys() ^ self.tensors.keys()):
            why = "missing" if name in expected else "not a tensor of a deployment"
            raise InputError(f"tensors.{name}: is {why}")
        for name, wanted in expected.items():
            entry = self.tensors[name]
            if (entry.dtype, entry.shape, entry.unit) != wanted:
                raise InputError(
                    f"tensors.{name}: dtype, shape and unit should be {wanted}, got "
                    f"{(entry.dtype, entry.shape, entry.unit)}"
                )


def export_dynapse(path: str | os.PathLike[str], deployment: Deployment) -> Path:
    """Writes a deployed network atomically.

    `manifest.json` holds the bias codes of each core. `tensors.safetensors` holds the
    masks, signs, wanted and achieved weights of the synapses, `[sources, neurons]`, the
    `cores` of the neurons, and `chips/<seed>/<name>`.

    >>> import tempfile
    >>> from hwtrain.dynapse._biases import computed_table
    >>> from hwtrain.dynapse._deployment import deploy
    >>> deployment = deploy([[0.5]], None, {"Itau_mem": 5e-12}, table=computed_table())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = load_dynapse(export_dynapse(f"{folder}/chip", deployment))
    >>> found.weights_in.achieved.round(2)
    array([[0.5]])

    Args:
      path: the directory to write; must not exist.
      deployment: from `hwtrain.dynapse._deployment.deploy`.

    Returns:
      `path`.

    Raises:
      HardwareCheckpointError: (a `ValueError`) if `path` exists or cannot be written.
        Nothing is left behind.
    """
    parts = {name: getattr(deployment, name) for name in WEIGHTS}
    with destination.new(path, folder=True) as partial:
        entries = tensors.write(partial / FILE_NAME, dict(_arrays(deployment)))
        content = _manifest(
            hwtrain=__version__,
            rules=RULES,
            units=UNITS,
            iscale=deployment.iscale,
            limits=deployment.limits,
            biases={core: dict(codes) for core, codes in deployment.biases.items()},
            lost={name: part.lost for name, part in parts.items()},
            largest_error={name: _largest_error(part) for name, part in parts.items()},
            chips=tuple(sorted(deployment.chips)),
            layers=tuple(deployment.layers.items()),
            tensors=entries,
        )
        manifest.write(partial, content)
    return Path(path)


def _manifest(**entries: Any) -> DynapseManifest:
    try:
        return DynapseManifest(**entries)
    except ValidationError as error:
        raise HardwareCheckpointError(
            f"the network cannot be written: {manifest.problems(error)}. Deploy it "
            "with the table of the chip, in A"
        ) from error


def load_dynapse(path: str | os.PathLike[str]) -> Deployment:
    """Reads a deployed network, and checks every hash and the values of all codes.

    Args:
      path: a directory that `export_dynapse` wrote.

    Raises:
      HardwareCheckpointError: (a `ValueError`) if it is not such a directory, or is
        damaged.
    """
    what = "load_dynapse takes the directory that export_dynapse wrote"
    directory = path_of(path, what)
    content = manifest.read(directory, DynapseManifest)
    check_listed(directory, {manifest.FILE_NAME, FILE_NAME})
    arrays = tensors.read(directory, FILE_NAME, content.tensors)
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
        **{
            part: Synapses(**{name: arrays[f"{part}/{name}"] for name in _ARRAYS})
            for part in WEIGHTS
        },
    )
    try:
        _check(deployment, content, arrays)
    except ValueError as error:
        raise HardwareCheckpointError(
            f"{directory / FILE_NAME} does not hold what its manifest says: {error}. "
            "Export the network again"
        ) from error
    return deployment


def _check(
    deployment: Deployment, content: DynapseManifest, arrays: Mapping[str, np.ndarray]
) -> None:
    """Raises unless the arrays are possible and match the manifest."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{name}: holds NaN or infinite numbers")
    if {*map(int, deployment.cores)} != {*deployment.biases}:
        raise InputError("cores: they do not match those of the biases")
    for name in WEIGHTS:
        part = getattr(deployment, name)
        if (part.mask >= 2**BASES).any():
            raise InputError(f"{name}/mask: a mask must fit into {BASES} bits")
        if not np.isin(part.sign, (-1, 0, 1)).all():
            raise InputError(f"{name}/sign: a sign must be -1, 0 or 1")
        if ((part.mask != 0) != (part.sign != 0)).any():
            raise InputError(
                f"{name}/sign: must be 0 where, and only where, there is no synapse"
            )
        _check_codes(deployment, name)
        for field, said, found in (
            ("lost", content.lost, part.lost),
            ("largest_error", content.largest_error, _largest_error(part)),
        ):
            if said[name] != found:
                raise InputError(
                    f"{field}.{name}: says {said[name]}, but it is {found}"
                )
    wanted = (deployment.weights_in.wanted, deployment.weights_rec.wanted)
    try:
        check_connectivity(*wanted, deployment.cores, deployment.limits)
    except ValueError as error:
        raise InputError(f"limits: {error}") from error


def _largest_error(part: Synapses) -> float:
    return float(np.abs(part.error).max(initial=0))


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


def _check_codes(deployment: Deployment, name: str) -> None:
    """Raises unless masks, signs and base currents give the achieved weights."""
    part = getattr(deployment, name)
    for core, codes in deployment.biases.items():
        here = deployment.cores == core
        bases = np.array([codes[f"Iw_{b}"].achieved for b in range(BASES)])
        found = part.sign[:, here] * amounts(part.mask[:, here], bases)
        expected = part.achieved[:, here] * deployment.iscale
        if not np.allclose(found, expected, rtol=1e-9, atol=1e-6 * bases.min()):
            raise InputError(
                f"{name}/achieved: the weights of core {core} are not those of its "
                "codes and iscale"
            )
