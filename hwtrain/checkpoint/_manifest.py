"""The manifest of a hardware-ready checkpoint."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ValidationError, model_validator

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._parts.fields import without_none
from hwtrain._parts.slot import unknown_parts, without_versions
from hwtrain._parts.wording import by_keys, show, worded
from hwtrain._plan.outputs import StoredOutput
from hwtrain._plan.plan import Digital, Plan
from hwtrain.checkpoint._description import Entry, Graph, Measurement
from hwtrain.checkpoint._earlier import UNNAMED, as_meant, escape_names
from hwtrain.checkpoint._entries import (
    ChipEntry,
    FileName,
    Hash,
    LayerEntry,
    LeafEntry,
    TensorEntry,
)
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._files import damaged, opened
from hwtrain.checkpoint._layout import check_layout
from hwtrain.checkpoint._named import check_others
from hwtrain.checkpoint._stored_outputs import check_outputs
from hwtrain.checkpoint._strict_json import difference, parse
from hwtrain.checkpoint._words import check_words

FORMAT = "hwtrain-checkpoint"
MAJOR, MINOR = 1, 3
FILE_NAME = "manifest.json"
LARGEST = 64 * 2**20
"""Largest size of a manifest in bytes; a larger one is refused before it is read."""

_EXPECTED = {
    **dict.fromkeys(("dataclass_type", "dict_type", "model_type"), "an object"),
    **dict.fromkeys(
        ("unexpected_keyword_argument", "extra_forbidden"), "no such entry"
    ),
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
}
"""What pydantic expected, in JSON's terms."""

Kind = TypeVar("Kind", bound=BaseModel)


class Manifest(Entry):
    """The contents of a hardware-ready checkpoint; see docs/checkpoint.md."""

    format: Literal["hwtrain-checkpoint"] = FORMAT
    version: str = f"{MAJOR}.{MINOR}"
    libraries: dict[str, str]
    units: dict[str, str]
    rules: dict[str, str]
    prefix: str
    layers: tuple[LayerEntry, ...]
    digital: tuple[Digital, ...]
    state: tuple[str, ...] = ()
    """The plan's `state`: further variables needed to evaluate the model."""
    others: tuple[str, ...] | None = None
    """The leaves that the plan does not name, if any; so every leaf is named."""
    outputs: tuple[StoredOutput, ...] | None = None
    """The modules whose results digital units store in few bits, if any; since 1.3."""
    leaves: tuple[LeafEntry, ...]
    chips: tuple[ChipEntry, ...]
    graph: Graph | None = None
    accuracy: tuple[Measurement, ...] = ()
    """Measurements of the model, if any."""
    files: dict[FileName, dict[str, TensorEntry]]
    sha256: Hash | None = None
    """Hash of the manifest without this entry; set on writing."""

    @property
    def plan(self) -> Plan:
        """The plan that was exported."""
        weights = tuple(layer.weight for layer in self.layers)
        outputs = self.outputs or ()
        return Plan(weights, self.digital, self.prefix, self.state, outputs)

    @model_validator(mode="after")
    def _check(self) -> Self:
        unnamed = self.version in UNNAMED
        if unnamed and self.state:
            raise InputError(f"state: a manifest of version {self.version} has none")
        if unnamed and self.others is not None:
            raise InputError(f"others: a manifest of version {self.version} has none")
        if self.outputs is not None and self.version in (*UNNAMED, "1.2"):
            raise InputError(f"outputs: a manifest of version {self.version} has none")
        check_words(self.units, self.rules, self.version)
        check_layout(self.plan, self.layers, self.leaves, self.chips, self.files)
        check_outputs(self.plan)
        if not unnamed:
            check_others(self.plan, self.leaves, self.others)
        self._check_graph()
        return self

    def _check_graph(self) -> None:
        layers = {paths.join(leaf.keys[1:-1]) for leaf in self.leaves}
        layers |= {layer.weight.layer_path for layer in self.layers}
        for name, what in (self.graph.nodes if self.graph else {}).items():
            if what == "layer" and name not in layers:
                raise InputError(
                    f"graph: the model has no layer {name!r}; it has "
                    f"{', '.join(sorted(layers))}"
                )


def write(directory: Path, manifest: BaseModel) -> None:
    """Writes the manifest with its own hash; it is on disk on return."""
    content = without_none(manifest.model_dump(mode="json"))
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
    """Waits until a file, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(directory: Path, kind: type[Kind] = Manifest) -> Kind:
    """Reads and checks the manifest of a checkpoint.

    Args:
      directory: the directory of the checkpoint.
      kind: the model of the manifest, which sets the required `format` and `version`.

    Raises:
      HardwareCheckpointError: if there is no manifest, or none that this version of
        hwtrain can trust.
    """
    path = directory / FILE_NAME
    if not os.path.lexists(path):
        raise HardwareCheckpointError(
            f"{directory} is not a hwtrain checkpoint: it has no {FILE_NAME}. Give the "
            "directory that hwtrain.export wrote"
        )
    with opened(directory, FILE_NAME) as (file, size):
        if size > LARGEST:
            raise HardwareCheckpointError(
                f"{path} has {size} bytes, more than the {LARGEST} of any manifest; it "
                "was not read. Export the model again, or get the file again from its "
                "source"
            )
        data = file.read(LARGEST)
    try:
        return _checked(path, data, kind)
    except (RecursionError, MemoryError) as error:
        raise damaged(
            path, f"it is too large or too deeply nested to read ({error})"
        ) from (error)


def _checked(path: Path, data: bytes, kind: type[Kind]) -> Kind:
    try:
        content = parse(data)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from error
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
        said = str(content.get("sha256"))[:80]
        raise damaged(path, f"its SHA-256 is {digest}, but it says {said}")
    escape_names(content)
    if content["version"] in UNNAMED:
        as_meant(content)
    missing = unknown_parts(content)
    if missing:
        raise HardwareCheckpointError(
            f"the hardware of {path} has parts that are not imported: "
            f"{', '.join(missing)[:600]}. Import what registers them first (on the "
            "command line: --parts FILE|MODULE)"
        )
    try:
        found = kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise _refused(path, problems(error, content)) from error
    if content["version"] == known:
        written = without_none(found.model_dump(mode="json"))
        # A part may come from another version of its package than the one installed.
        left_out = difference(*map(without_versions, (content, written)))
        if left_out is not None:
            raise _refused(path, left_out)
    return found


def problems(error: ValidationError, content: Any = None) -> str:
    """Returns the validation errors of entries in one line.

    Args:
      error: the errors.
      content: the JSON data that was validated, if it was that: without the members of
        unions, which pydantic adds to keys.
    """
    found = by_keys(error, content)
    if content is None:
        found = {x["loc"]: [x] for x in error.errors(include_url=False)}
    said = [
        ": ".join(
            [
                *[".".join(str(key)[:80] for key in keys)][: len(keys)],
                worded(details, _EXPECTED, show),
            ]
        )
        for keys, details in [*found.items()][:5]
    ]
    return "; ".join(said)


def _refused(path: Path, why: str) -> HardwareCheckpointError:
    return HardwareCheckpointError(
        f"{path} is not a valid manifest: {why}. Export the model again"
    )


def _check_version(path: Path, version: Any, known: str) -> None:
    numbers = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", str(version)[:80])
    if not isinstance(version, str) or numbers is None:
        said = repr(str(version)[:80])
        raise damaged(path, f"its version is {said}, not one such as '1.0'")
    major, minor = map(int, numbers.groups())
    # A newer minor version may hold an effect that this one would silently ignore.
    known_major, known_minor = (int(number) for number in known.split("."))
    if major != known_major or minor > known_minor:
        raise HardwareCheckpointError(
            f"{path} has format version {version}; this hwtrain reads {known_major}.0 "
            f"to {known}. Install the version of hwtrain that wrote it: "
            f"{path.name} names it under libraries"
        )


def _digest(content: dict[str, Any]) -> str:
    hashed = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(hashed, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # A manipulated file can contain half of a surrogate pair.
    return sha256(text.encode(errors="surrogatepass"))


def sha256(data: bytes | bytearray | memoryview) -> str:
    """Returns the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
