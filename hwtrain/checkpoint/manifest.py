"""The manifest: what a hardware-ready checkpoint says about itself."""

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from hwtrain.checkpoint.description import Entry, Graph, Measurement
from hwtrain.checkpoint.errors import HardwareCheckpointError
from hwtrain.checkpoint.rules import RULES, UNITS
from hwtrain.conductances import converter_of
from hwtrain.plan import AnalogWeight, Digital, Plan
from hwtrain.programming import programmed_fields

FORMAT = "hwtrain-checkpoint"
MAJOR, MINOR = 1, 1
FILE_NAME = "manifest.json"
LARGEST = 64 * 2**20
"""Bytes that a manifest may have; a larger one is refused before it is read."""

LARGEST_SEED = 2**32 - 1
"""The largest chip seed. JAX would take a larger one modulo 2^32."""

FileName = Annotated[
    str, Field(pattern=r"^(tensors|chips/[0-9]{4,10})/[0-9]{4,9}\.safetensors$")
]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Sizes = tuple[Annotated[int, Field(ge=0)], ...]
Kind = TypeVar("Kind", bound=BaseModel)
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TensorEntry(Entry):
    """One tensor of a file."""

    dtype: str
    shape: Sizes
    unit: str
    sha256: Hash


class LeafEntry(Entry):
    """One leaf of the variables: the keys that lead to it, and where its value lies."""

    keys: Annotated[tuple[str | int, ...], Field(min_length=1)]
    kind: Literal["tensor", "zeros", "empty"]
    """`"zeros"`: a probe, which carries nothing. `"empty"`: an empty mapping."""
    dtype: str | None = None
    shape: Sizes | None = None
    key_impl: str | None = None
    """The implementation of a PRNG key, whose key data the tensor holds."""
    file: FileName | None = None
    tensor: str | None = None


class LayerEntry(Entry):
    """One analog weight: its geometry, its chip type and where it lies."""

    weight: AnalogWeight
    stack: Sizes
    row_sizes: Sizes
    column_sizes: Sizes
    dtype: str
    file: FileName
    nominal: str
    """The tensor with the nominal weights, as the model stores them."""
    beside: dict[str, str]
    """The other tensors of the layer by name: bias, input_range, mapping_scale."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        weight = self.weight
        grid = (weight.stack, weight.row_sizes, weight.column_sizes)
        if grid != (self.stack, self.row_sizes, self.column_sizes):
            raise ValueError(
                f"{weight.path}: stack, row_sizes and column_sizes are "
                f"{(self.stack, self.row_sizes, self.column_sizes)}, but its shape and "
                f"mapping give {grid}"
            )
        return self


class ChipEntry(Entry):
    """One frozen chip: its seed, and the file of each analog weight by path."""

    seed: Seed
    """Of a measured chip, its number."""
    measured: bool = False
    """Whether its conductances were read back from a chip, instead of drawn."""
    files: dict[str, FileName]


class Manifest(Entry):
    """What a hardware-ready checkpoint holds. docs/checkpoint.md explains it."""

    format: Literal["hwtrain-checkpoint"] = FORMAT
    version: str = f"{MAJOR}.{MINOR}"
    libraries: dict[str, str]
    units: dict[str, str] = UNITS
    rules: dict[str, str] = RULES
    prefix: str
    layers: tuple[LayerEntry, ...]
    digital: tuple[Digital, ...]
    leaves: tuple[LeafEntry, ...]
    chips: tuple[ChipEntry, ...]
    graph: Graph | None = None
    accuracy: tuple[Measurement, ...] = ()
    """What was measured of the model, if anything."""
    files: dict[FileName, dict[str, TensorEntry]]
    sha256: Hash | None = None
    """Of the manifest itself, without this entry; set when it is written."""

    @property
    def plan(self) -> Plan:
        """The plan that was exported."""
        weights = tuple(layer.weight for layer in self.layers)
        return Plan(weights, self.digital, self.prefix)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for leaf in self.leaves:
            if leaf.kind == "tensor":
                self._expect(leaf.file or "", leaf.tensor or "", leaf.shape)
            elif leaf.kind == "zeros" and (leaf.dtype, leaf.shape) == (None, None):
                raise ValueError(f"{leaf.keys}: zeros have a dtype and a shape")
        paths = {layer.weight.path for layer in self.layers}
        self._check_graph()
        for chip in self.chips:
            if chip.files.keys() != paths:
                raise ValueError(f"chip {chip.seed}: not every analog weight is there")
        for layer in self.layers:
            self._expect(layer.file, layer.nominal, layer.weight.shape)
            for name in layer.beside.values():
                self._expect(layer.file, name)
            chip_files = [chip.files[layer.weight.path] for chip in self.chips]
            for file in chip_files:
                self._expect(file, "kernel", layer.weight.shape)
            for tile, shape in _tile_shapes(layer).items():
                converter = converter_of(layer.weight)
                for name in (*converter.scales, "mapping_scale"):
                    self._expect(layer.file, f"{tile}/{name}")
                draws = programmed_fields(layer.weight.hardware)
                drawn = [
                    chip.files[layer.weight.path]
                    for chip in self.chips
                    if not chip.measured
                ]
                for device in converter.devices:
                    for file in [layer.file, *chip_files]:
                        self._expect(file, f"{tile}/{device}", shape)
                    for file, draw in itertools.product(drawn, draws):
                        self._expect(file, f"{tile}/{device}/{draw}", shape)
        return self

    def _check_graph(self) -> None:
        layers = {"/".join(map(str, leaf.keys[1:-1])) for leaf in self.leaves}
        layers |= {layer.weight.layer_path for layer in self.layers}
        for name, what in (self.graph.nodes if self.graph else {}).items():
            if what == "layer" and name not in layers:
                raise ValueError(
                    f"graph: the model has no layer {name!r}; it has "
                    f"{', '.join(sorted(layers))}"
                )

    def _expect(self, file: str, tensor: str, shape: Sizes | None = None) -> None:
        """Raises where an entry points at a tensor that no file lists."""
        entry = self.files.get(file, {}).get(tensor)
        if entry is None:
            raise ValueError(f"{file}: the tensor {tensor!r} is not listed")
        if shape is not None and entry.shape != shape:
            raise ValueError(
                f"{file}: the tensor {tensor!r} should have shape {shape}, it is "
                f"listed with {entry.shape}"
            )


def _tile_shapes(layer: LayerEntry) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tile, such as `tile/0/1`."""
    if layer.weight.hardware.converter is None:
        return {}
    return {
        f"tile/{row}/{column}": (*layer.stack, rows, columns)
        for row, rows in enumerate(layer.row_sizes)
        for column, columns in enumerate(layer.column_sizes)
    }


def write(directory: Path, manifest: BaseModel) -> None:
    """Writes the manifest with its own hash in it, on disk when it returns."""
    content = manifest.model_dump(mode="json", exclude_none=True)
    content["sha256"] = _digest(content)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    data = text.encode() + b"\n"
    if len(data) > LARGEST:
        raise HardwareCheckpointError(
            f"the manifest would have {len(data)} bytes, more than {LARGEST}; use "
            "larger tiles (max_input_size, max_output_size), or export fewer chips at "
            "a time"
        )
    (directory / FILE_NAME).write_bytes(data)
    sync(directory / FILE_NAME)
    sync(directory)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(directory: Path, kind: type[Kind] = Manifest) -> Kind:
    """Reads and checks the manifest of a checkpoint.

    Args:
      directory: where it lies.
      kind: the model of the manifest, whose `format` and `version` it must have.

    Raises:
      HardwareCheckpointError: if there is none, or it is not one that this version of
        hwtrain can trust.
    """
    path = directory / FILE_NAME
    try:
        size = path.stat().st_size
    except OSError as error:
        raise HardwareCheckpointError(
            f"{directory} is not a hwtrain checkpoint: it has no {FILE_NAME}. Give the "
            "directory that hwtrain.export wrote"
        ) from error
    if size > LARGEST:
        raise HardwareCheckpointError(
            f"{path} has {size} bytes, more than the {LARGEST} of any manifest; it was "
            "not read. Export the model again, or get the file again from its source"
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    expected = kind.model_fields["format"].default
    if not isinstance(content, dict) or content.get("format") != expected:
        raise HardwareCheckpointError(
            f'{path} is not the manifest of a hwtrain checkpoint: "format" is not '
            f'"{expected}"'
        )
    known = kind.model_fields["version"].default
    _check_version(path, content.get("version"), known)
    digest = _digest(content)
    if digest != content.get("sha256"):
        said = content.get("sha256")
        raise _damaged(path, f"its SHA-256 is {digest}, it says {said}")
    try:
        return kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(key) for key in detail['loc'])}: {detail['msg']}"
            for detail in error.errors()[:5]
        )
        raise HardwareCheckpointError(
            f"{path} does not say what a manifest must: {problems}. Export the model "
            "again"
        ) from error


def _check_version(path: Path, version: Any, known: str) -> None:
    numbers = str(version).split(".")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise _damaged(path, f"its version is {version!r}, not such as '1.0'")
    major, minor = (int(number) for number in numbers)
    # A newer minor version may hold an effect that this one would leave out silently.
    known_major, known_minor = (int(number) for number in known.split("."))
    if major != known_major or minor > known_minor:
        raise HardwareCheckpointError(
            f"{path} has format version {version}; this hwtrain reads {known_major}.0 "
            f"to {known}. Install the version of hwtrain that wrote it: "
            f"{path.name} names it under libraries"
        )


def _damaged(path: Path, why: str) -> HardwareCheckpointError:
    return HardwareCheckpointError(
        f"{path} is damaged or was edited: {why}. Get the file again from its source, "
        "or export the model again"
    )


def _digest(content: dict[str, Any]) -> str:
    hashed = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(hashed, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # A file made to do so can hold half of a surrogate pair.
    return sha256(text.encode(errors="surrogatepass"))


def sha256(data: bytes | bytearray | memoryview) -> str:
    """Returns the hash of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
