"""The files and tensors that a checkpoint must hold, given plan, leaves and chips.

A reader derives this layout and accepts no other: a manifest with swapped, missing or
repeated tensors does not match its own plan.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._entries import ChipEntry, LayerEntry, LeafEntry, TensorEntry
from hwtrain.checkpoint._named import check_leaves, check_names
from hwtrain.checkpoint._words import UNITS
from hwtrain.chips._conductances import converter_of
from hwtrain.chips._programming import programmed_fields
from hwtrain.weights.mapping import MAPPING_SCALE

_FEW = 1000
"""Number of missing tensors up to which each one is looked for."""

Files = Mapping[str, Mapping[str, TensorEntry]]


class Tensor(NamedTuple):
    """The required unit and dtype of a tensor, and its possible shapes."""

    unit: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]


def file_name(folder: str, number: int) -> str:
    """Returns the name of a file in a folder of a checkpoint."""
    return f"{folder}/{number:04d}.safetensors"


def chip_folder(seed: int) -> str:
    """Returns the folder of a chip."""
    return f"chips/{seed:04d}"


def order(keys: Sequence[str | int]) -> tuple[str, ...]:
    """Returns the sort key of a leaf."""
    return tuple(map(str, keys))


def own_units(plan: Plan) -> dict[str, str]:
    """Returns the units of the leaves of users' parts by path."""
    return {w.leaf(x): x.unit for w in plan.weights for x in w.own_leaves}


def nominal_unit(path: str, own: Mapping[str, str]) -> str:
    """Returns the unit of a leaf.

    Args:
      path: its path.
      own: from `own_units`.
    """
    return own.get(path) or UNITS.get(path.rpartition("/")[2], UNITS["nominal"])


def scale_unit(converter: Any, name: str) -> str:
    """Returns the unit of a conversion's parameter; users' converters state theirs."""
    return UNITS.get(name) or converter.units.get(name, "as the converter says")


def chip_unit(tensor: str) -> str:
    """Returns the unit of a tensor of a chip."""
    if tensor == "kernel":
        return UNITS["nominal"]
    name = tensor.rpartition("/")[2]
    return UNITS.get(name, UNITS["conductance"])


def check_layout(
    plan: Plan,
    layers: Sequence[LayerEntry],
    leaves: Sequence[LeafEntry],
    chips: Sequence[ChipEntry],
    files: Files,
) -> None:
    """Raises unless the entries of a manifest are those that plan and leaves require.

    Raises:
      ValueError: naming the entry.
    """
    check_names(plan, leaves, chips)
    check_leaves(plan, leaves)
    stored = _files_of_leaves(layers, leaves)
    for index, leaf in enumerate(leaves):
        if leaf.kind == "tensor":
            _same(f"leaves.{index}.file", leaf.file, stored[leaf.name])
            _same(f"leaves.{index}.tensor", leaf.tensor, leaf.name)
    by_path = {leaf.path: leaf for leaf in leaves if leaf.keys[0] == "params"}
    for number, layer in enumerate(layers):
        where, path = f"layers.{number}", layer.weight.path
        kernel = by_path[path]
        beside = {
            leaf.path.rpartition("/")[2]: leaf.name
            for leaf in leaves
            if stored.get(leaf.name) == file_name("tensors", number)
            and leaf is not kernel
        }
        _same(f"{where}.file", layer.file, file_name("tensors", number))
        _same(f"{where}.nominal", layer.nominal, kernel.name)
        _same(f"{where}.dtype", layer.dtype, kernel.dtype)
        _same(f"{where}.beside", layer.beside, beside)
        _same(f"{where}: shape of {path}", kernel.shape, layer.weight.shape)
    for index, chip in enumerate(chips):
        expected = {
            layer.weight.path: file_name(chip_folder(chip.seed), number)
            for number, layer in enumerate(layers)
        }
        _same(f"chips.{index}.files", chip.files, expected)
    _check_files(layers, leaves, chips, stored, files, own_units(plan))


def _files_of_leaves(
    layers: Sequence[LayerEntry], leaves: Sequence[LeafEntry]
) -> dict[str, str]:
    """Returns the file of each leaf, by the name of its tensor."""
    tensors = sorted(
        (leaf for leaf in leaves if leaf.kind == "tensor"),
        key=lambda leaf: order(leaf.keys),
    )
    analog = {layer.weight.path for layer in layers}
    stored: dict[str, str] = {}
    inside: dict[str, list[LeafEntry]] = {}
    for leaf in tensors:
        if leaf.keys[0] == "params":
            inside.setdefault(leaf.path.rpartition("/")[0], []).append(leaf)
    for number, layer in enumerate(layers):
        # A layer may hold two analog weights; its other leaves go to the first one.
        for leaf in inside.get(layer.weight.layer_path, ()):
            if leaf.path == layer.weight.path or leaf.path not in analog:
                stored.setdefault(leaf.name, file_name("tensors", number))
    modules: dict[tuple[str | int, ...], str] = {}
    for leaf in tensors:
        if leaf.name not in stored:
            file = file_name("tensors", len(layers) + len(modules))
            stored[leaf.name] = modules.setdefault(leaf.keys[:-1], file)
    return stored


def _check_files(
    layers: Sequence[LayerEntry],
    leaves: Sequence[LeafEntry],
    chips: Sequence[ChipEntry],
    stored: Mapping[str, str],
    files: Files,
    units: Mapping[str, str],
) -> None:
    """Raises unless the files list exactly the tensors that they must hold."""
    nominal: dict[str, dict[str, Tensor]] = {
        file_name("tensors", number): {} for number, _ in enumerate(layers)
    }
    for leaf in leaves:
        if leaf.name in stored:
            nominal.setdefault(stored[leaf.name], {})[leaf.name] = Tensor(
                nominal_unit(leaf.path, units), leaf.dtype or "", (leaf.shape or (),)
            )
    names = {*nominal, *(name for chip in chips for name in chip.files.values())}
    for name in sorted(names ^ files.keys()):
        raise InputError(
            f"files: {name} "
            f"{'is missing' if name in names else 'is not a file of this checkpoint'}"
        )
    for layer in layers:
        content = nominal[layer.file]
        _check_count(layer.file, layer, 1, len(content), files)
        content.update(_tiles(layer))
    for name, content in nominal.items():
        _check_file(name, content, files)
    for chip in chips:
        for layer in layers:
            name = chip.files[layer.weight.path]
            fields = programmed_fields(layer.weight.hardware)
            fields = () if chip.measured else fields
            _check_count(name, layer, 1 + len(fields), 1, files)
            _check_file(name, dict(_chip(layer, fields)), files)


def _check_count(
    name: str, layer: LayerEntry, each: int, beside: int, files: Files
) -> None:
    """Raises if a file lists far fewer tensors than its tiles need.

    Checked before their names are made, because the manifest may claim any number.

    Args:
      name: the file.
      layer: its layer.
      each: number of tensors for each device of each tile.
      beside: number of tensors that belong to no tile.
      files: the files.
    """
    tiles = len(layer.row_sizes) * len(layer.column_sizes)
    converter = layer.weight.hardware.converter
    devices = 0 if converter is None else len(converter.devices)
    if len(files[name]) + _FEW < tiles * devices * each + beside:
        raise InputError(
            f"files.{name}: {tiles} tiles with {devices} devices each need more than "
            f"the {len(files[name])} tensors that are listed"
        )


def _tiles(layer: LayerEntry) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of the nominal tiles of a layer."""
    weight = layer.weight
    if weight.hardware.converter is None:
        return
    converter = converter_of(weight)
    conductance = UNITS["conductance"]
    for tile, rows, columns in _grid(layer):
        shape = (*layer.stack, rows, columns)
        for device in converter.devices:
            yield f"{tile}/{device}", Tensor(conductance, "float32", (shape,))
        width = columns if converter.per_column else 1
        for scale in converter.scales:
            shapes = ((*layer.stack, 1, width),)
            unit = scale_unit(converter, scale)
            yield f"{tile}/{scale}", Tensor(unit, "float32", shapes)
        shapes = ((*layer.stack, 1, 1), (*layer.stack, 1, columns))
        unit = MAPPING_SCALE.unit
        yield f"{tile}/{MAPPING_SCALE.name}", Tensor(unit, "float32", shapes)


def _chip(layer: LayerEntry, fields: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a layer on a chip."""
    weight = layer.weight
    yield "kernel", Tensor(chip_unit("kernel"), "float32", (weight.shape,))
    if weight.hardware.converter is None:
        return
    for tile, rows, columns in _grid(layer):
        shape = (*layer.stack, rows, columns)
        for device in converter_of(weight).devices:
            for field in ("", *fields):
                name = f"{tile}/{device}/{field}".rstrip("/")
                dtype = "uint8" if field == "stuck" else "float32"
                yield name, Tensor(chip_unit(name), dtype, (shape,))


def _grid(layer: LayerEntry) -> Iterator[tuple[str, int, int]]:
    for row, rows in enumerate(layer.row_sizes):
        for column, columns in enumerate(layer.column_sizes):
            yield f"tile/{row}/{column}", rows, columns


def _check_file(name: str, expected: Mapping[str, Tensor], files: Files) -> None:
    listed = files[name]
    for tensor in sorted(expected.keys() ^ listed.keys()):
        foreign = "does not belong to its layer or module"
        why = "is not listed" if tensor in expected else foreign
        raise InputError(f"files.{name}: the tensor {tensor!r} {why}")
    for tensor, wanted in expected.items():
        where, entry = f"files.{name}.{tensor}", listed[tensor]
        _same(f"{where}: unit", entry.unit, wanted.unit)
        _same(f"{where}: dtype", entry.dtype, wanted.dtype)
        _one_of(f"{where}: shape", entry.shape, wanted.shapes)


def _same(where: str, found: object, expected: object) -> None:
    if found != expected:
        raise InputError(f"{where} should be {expected!r}, got {found!r}")


def _one_of(
    where: str,
    found: tuple[int, ...] | None,
    expected: tuple[tuple[int, ...], ...],
) -> None:
    if found not in expected:
        shapes = " or ".join(map(str, expected))
        raise InputError(f"{where} should have shape {shapes}, got {found}")
