"""Reads conductances measured on a chip, from an NPZ or a CSV file."""

import csv
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._files import path_of
from hwtrain.checkpoint._tiles import Place, grid
from hwtrain.chips._conductances import converter_of
from hwtrain.weights.mapping import MAPPING_SCALE

COLUMNS = (
    "weight",
    "row_tile",
    "column_tile",
    "device",
    "stack",
    "row",
    "column",
    "conductance_uS",
)
"""The columns of a CSV file, in any order."""

_NUMBERS = ("row_tile", "column_tile", "stack", "row", "column")


# Mismatch and programming noise may exceed g_max; twice g_max suggests another unit.
_LARGEST = 2.0


# Conductances in siemens would be a million times smaller.
_SMALLEST = 1e-4

Conductances = Mapping[str, np.ndarray]
"""Conductances of one chip: arrays `[*stack, rows, columns]` of a tile's devices, in
µS, by name, such as `"hidden/kernel/tile/0/1/g_pos"`."""


def read_conductances(path: str | os.PathLike[str], plan: Plan) -> Conductances:
    r"""Reads and checks conductances measured on a chip.

    `export(..., measured={7: conductances})` stores them as chip 7 of a checkpoint.

    An `.npz` file holds an array `conductances/<weight>/tile/<i>/<j>/<device>` for each
    device of each tile, `[*stack, rows, columns]`, as the adapter `npz` writes it. A
    `.csv` file holds a line for each device: `weight`, `row_tile`, `column_tile`,
    `device` (such as g_pos), `stack` (the layer of a stack, row-major; 0 without one),
    `row` and `column` in the tile, all counted from zero, and `conductance_uS`.

    >>> import tempfile
    >>> from hwtrain import Hardware, SingleDeviceConductanceConverter
    >>> weight = AnalogWeight(
    ...     path="w", kind="raw", layer="", shape=(1, 2), rows=(0,), columns=(1,),
    ...     rule="", ranged=False,
    ...     hardware=Hardware(converter=SingleDeviceConductanceConverter()))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "chip.csv")
    ...     _ = path.write_text(",".join(COLUMNS)
    ...         + "\nw,0,0,g,0,0,0,3.5\nw,0,0,g,0,0,1,24.25")
    ...     print(read_conductances(path, Plan((weight,)))["w/tile/0/0/g"])
    [[ 3.5  24.25]]

    Args:
      path: the file, `.npz` or `.csv`.
      plan: the plan of the checkpoint that was programmed.

    Raises:
      HardwareCheckpointError: (a `ValueError`) if the file has another format, lacks a
        tile or a device, has unknown ones, or holds an impossible conductance. It names
        the array or the line.
    """
    path = path_of(path, "read_conductances takes a file of measurements")
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix not in readers:
        raise HardwareCheckpointError(
            f"{path}: expected measured conductances in a file .npz or .csv, got "
            f"{path.suffix or 'a name without either'}"
        )
    try:
        found = readers[path.suffix](path, plan)
    except OSError as error:
        raise HardwareCheckpointError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from error
    return check_conductances(str(path), found, plan)


def check_conductances(
    where: str, conductances: Conductances, plan: Plan
) -> Conductances:
    """Returns a chip's conductances as float32, after checking them against the plan.

    Args:
      where: their origin, for the message.
      conductances: arrays by name.
      plan: the plan.
    """
    expected = dict(_expected(plan))
    for name in sorted(expected.keys() - conductances.keys()):
        raise HardwareCheckpointError(
            f"{where}: {name} is missing; every device of every tile must be there"
        )
    for name in sorted(conductances.keys() - expected.keys()):
        raise HardwareCheckpointError(
            f"{where}: {name} is not a device of the plan, which has "
            f"{', '.join(sorted(expected))[:200]}"
        )
    for name, (shape, g_max) in expected.items():
        g = np.asarray(conductances[name])
        if g.shape != shape:
            raise HardwareCheckpointError(
                f"{where}: {name} should have the shape {shape}, got {g.shape}"
            )
        if g.dtype.kind not in "fiu":
            raise HardwareCheckpointError(
                f"{where}: {name} should hold numbers, got {g.dtype}"
            )
        wrong = ~((g >= 0) & (g <= _LARGEST * g_max))
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise HardwareCheckpointError(
                f"{where}: {name}: a measured conductance must be between 0 and "
                f"{_LARGEST * g_max:g} µS (twice g_max), the one at {place} is "
                f"{g[place]:g}. Are all in µS?"
            )
    _check_unit(where, conductances, expected)
    return {name: np.asarray(conductances[name], np.float32) for name in expected}


def _check_unit(where: str, conductances: Conductances, expected: Mapping) -> None:
    ratios = [
        np.max(conductances[name], initial=0.0) / g_max
        for name, (_, g_max) in expected.items()
    ]
    if ratios and max(ratios) < _SMALLEST:
        raise HardwareCheckpointError(
            f"{where}: the largest conductance is {max(ratios):.1e} of g_max; they "
            "look like siemens. Give them in µS"
        )


def _expected(plan: Plan) -> Iterator[tuple[str, tuple[tuple[int, ...], float]]]:
    """Yields the name of each device of each tile, with its shape and its g_max."""
    for weight in plan.weights:
        if weight.hardware.converter is None:
            continue
        converter = converter_of(weight)
        for place in grid(weight):
            for device in converter.devices:
                name = f"{weight.path}/{place.name}/{device}"
                yield name, (_shape(weight, place), converter.g_max)


def _shape(weight: AnalogWeight, place: Place) -> tuple[int, ...]:
    sides = (place.rows, place.columns)
    return (*weight.stack, *(side.stop - side.start for side in sides))


def _read_npz(path: Path, plan: Plan) -> dict[str, np.ndarray]:
    scales = {MAPPING_SCALE.name}
    for weight in plan.weights:
        if weight.hardware.converter is not None:
            scales |= set(converter_of(weight).scales)
    try:
        # Opened here, because NumPy leaves a file open that is not an archive.
        with (
            open(path, "rb") as opened,
            np.lib.npyio.NpzFile(opened, allow_pickle=False) as file,
        ):
            return {
                name.removeprefix("conductances/"): file[name]
                for name in file.files
                if name.startswith("conductances/")
                and name.rpartition("/")[2] not in scales
            }
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise HardwareCheckpointError(
            f"{path} is not a .npz file of plain arrays, or is damaged: {error}"
        ) from error


def _read_csv(path: Path, plan: Plan) -> dict[str, np.ndarray]:
    shapes = {name: shape for name, (shape, _) in _expected(plan)}
    found = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
    seen = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file, strict=True)
        try:
            if sorted(lines.fieldnames or ()) != sorted(COLUMNS):
                raise HardwareCheckpointError(
                    f"{path}, line 1: expected the columns {','.join(COLUMNS)}, got "
                    f"{','.join(map(str, lines.fieldnames or ())) or 'nothing'}"
                )
            for entry in lines:
                where = f"{path}, line {lines.line_num}"
                name, place, g = _entry(where, entry, shapes)
                if seen[name][place]:
                    raise HardwareCheckpointError(
                        f"{where}: {name} at {place} occurs twice, first in line "
                        f"{seen[name][place]}"
                    )
                found[name][place], seen[name][place] = g, lines.line_num
        except (csv.Error, UnicodeDecodeError) as error:
            raise HardwareCheckpointError(
                f"{path}, line {lines.line_num + 1}: not CSV: {error}"
            ) from error
    for name, lines_of in seen.items():
        if not lines_of.all():
            place = tuple(int(i) for i in np.argwhere(lines_of == 0)[0])
            raise HardwareCheckpointError(
                f"{path}: {(lines_of == 0).sum()} of {lines_of.size} devices of {name} "
                f"are missing, the first at {place}"
            )
    return found


def _entry(
    where: str, entry: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, tuple[int, ...], float]:
    """Returns the name, the index in its array and the conductance of a line."""
    try:
        tile_row, tile_column, stack, row, column = (int(entry[n]) for n in _NUMBERS)
        g = float(entry["conductance_uS"])
    except (TypeError, ValueError):
        raise HardwareCheckpointError(
            f"{where}: expected whole numbers in {', '.join(_NUMBERS)} and a number in "
            f"conductance_uS, got {dict(entry)}"
        ) from None
    tile = f"{entry['weight']}/tile/{tile_row}/{tile_column}/{entry['device']}"
    if tile not in shapes:
        raise HardwareCheckpointError(
            f"{where}: {tile} is not a device of the plan, which has "
            f"{', '.join(shapes)[:200]}"
        )
    shape = shapes[tile]
    layers = int(np.prod(shape[:-2]))
    if not (0 <= stack < layers and 0 <= row < shape[-2] and 0 <= column < shape[-1]):
        raise HardwareCheckpointError(
            f"{where}: stack {stack}, row {row}, column {column} lie outside of the "
            f"tile, which has {layers} x {shape[-2]} x {shape[-1]}"
        )
    place = (*(int(i) for i in np.unravel_index(stack, shape[:-2])), row, column)
    if not g >= 0:
        raise HardwareCheckpointError(
            f"{where}: a conductance in µS must be at least 0, got "
            f"{entry['conductance_uS']}"
        )
    return tile, place, g
