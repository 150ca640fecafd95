"""Measurements of devices, and their file format."""

import csv
import dataclasses
import math
import os

import numpy as np

from hwtrain._errors import InputError

COLUMNS = ("g_target_us", "t_s", "g_us", "repeat")
"""The header of a file of measurements."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurements:
    """Reads of programmed devices, one element for each read.

    Attributes:
      g_target_us: target conductance of the device, in µS.
      t_s: time since programming, in seconds.
      g_us: measured conductance, in µS.
      repeat: number of the device among those with this target.

    Raises:
      ValueError: naming the element, for lengths that differ, a number that is not
        finite, and a target or a time below zero.
    """

    g_target_us: np.ndarray
    t_s: np.ndarray
    g_us: np.ndarray
    repeat: np.ndarray

    def __post_init__(self):
        sizes = {name: np.shape(getattr(self, name)) for name in COLUMNS}
        if len(set(sizes.values())) > 1 or len(sizes["t_s"]) != 1:
            shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise InputError(f"expected a number for each read, got arrays of {shown}")
        for name in COLUMNS:
            values = np.asarray(getattr(self, name), np.float64)
            least = 0.0 if name in ("g_target_us", "t_s") else -np.inf
            wrong = ~np.isfinite(values) | (values < least)
            if wrong.any():
                place = int(np.argmax(wrong))
                words = "" if least else " of at least 0"
                raise InputError(
                    f"{name}[{place}]: expected a finite number{words}, got "
                    f"{values[place]:g}"
                )


def read_measurements(path: str | os.PathLike[str]) -> Measurements:
    """Reads a CSV file of measurements.

    Its first line is `g_target_us,t_s,g_us,repeat`; each other line is one read of a
    device, identified by its target and repeat.

    Args:
      path: the file.

    Raises:
      ValueError: naming the file and the line, for a wrong header, a wrong number of
        columns, a value that is not a number or not possible, and a read given twice.
    """
    rows, seen = [], {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(name.strip() for name in next(reader, []))
        if header != COLUMNS:
            raise InputError(
                f"{path}, line 1: the header must be {','.join(COLUMNS)}; got "
                f"{','.join(header)!r}"
            )
        for line in reader:
            if not line:
                continue
            place = f"{path}, line {reader.line_num}"
            row = _parse(line, place)
            name = (row[0], row[1], row[3])
            if name in seen:
                raise InputError(
                    f"{place}: repeat {row[3]} of target {row[0]:g} µS was already "
                    f"read at {row[1]:g} s, on line {seen[name]}; number the devices "
                    "with repeat"
                )
            seen[name] = reader.line_num
            rows.append(row)
    if not rows:
        raise InputError(f"{path}, line 2: expected measurements, but the file ends")
    target, t_s, g, repeat = zip(*rows)
    return Measurements(
        g_target_us=np.asarray(target),
        t_s=np.asarray(t_s),
        g_us=np.asarray(g),
        repeat=np.asarray(repeat, np.int64),
    )


def _parse(line: list[str], place: str) -> tuple[float, float, float, int]:
    if len(line) != len(COLUMNS):
        raise InputError(
            f"{place}: expected {len(COLUMNS)} columns ({', '.join(COLUMNS)}), got "
            f"{len(line)}"
        )
    values = []
    for name, text in zip(COLUMNS, line):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{place}: {name} must be a finite number, got {text!r}")
        if name in ("g_target_us", "t_s") and value < 0:
            raise InputError(f"{place}: {name} must not be negative, got {text}")
        values.append(value)
    target, t_s, g, repeat = values
    if repeat != int(repeat):
        raise InputError(f"{place}: repeat must be a whole number, got {line[3]!r}")
    return target, t_s, g, int(repeat)
