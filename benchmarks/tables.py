"""Tables of the benchmarks, printed and kept as Markdown and JSON.

A file holds one run of each of its sections. Another run replaces the sections that it
measures, so each has its own date, machine and versions.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from interleaved import Timing

import hwtrain

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "ms": "median, ms",
    "fastest_ms": "fastest, ms",
    "ratio": "ratio",
    "memory": "memory",
    "million_per_s": "10⁶ / s",
    "chips_per_s": "chips / s",
}
"""Headings of columns; a column without one is named by its key."""
HIDDEN = ("case", "quartiles_ms", "value", "line")
"""Entries of a row that are in the JSON file alone."""

Row = dict[str, Any]
Tables = Mapping[str, list[Row]]


def row(name: str, timing: Timing, steps: int = 1) -> Row:
    """Returns the row of a variant of an interleaved run.

    Args:
      name: of the variant.
      timing: of the variant.
      steps: the steps that it ran at a time.
    """
    return {
        "case": name,
        "ms": 1e3 * timing.median / steps,
        "fastest_ms": 1e3 * timing.fastest / steps,
        "quartiles_ms": [1e3 * value / steps for value in timing.quartiles],
        "ratio": timing.ratio,
    }


def markdown(title: str, rows: list[Row]) -> str:
    """Returns a Markdown table with the columns of its first row."""
    columns = [name for name in rows[0] if name not in HIDDEN]
    lines = [
        f"### {title}",
        "",
        "| | " + " | ".join(COLUMNS.get(name, name) for name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for entry in rows:
        values = [_text(entry.get(name)) for name in columns]
        lines.append(f"| {entry['case']} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return np.format_float_positional(value, 3, fractional=False, trim="-")


def machine(packages: Iterable[str] = ()) -> dict[str, object]:
    """Returns the date, the kind of machine, and the versions.

    Args:
      packages: packages to name beside JAX, Flax and hwtrain, where installed.
    """
    versions = {}
    for name in ("jax", "flax", *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
        "hwtrain": hwtrain.__version__,
    }


def _processor() -> str:
    """Returns the kind of the processor, as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":")[1] for line in lines if line.startswith("model name"))
    return next(named, platform.machine()).strip()


def section(heading: str, tables: Tables, about: Mapping[str, object]) -> str:
    """Returns the Markdown of a section: its heading, its tables, and its machine."""
    text = [markdown(title, rows) for title, rows in tables.items()]
    machine = ", ".join(f"{name} {value}" for name, value in about.items())
    return "\n\n".join([f"## {heading}", *text, machine])


def keep(
    path: Path, name: str, heading: str, tables: Tables, about: Mapping[str, object]
) -> None:
    """Prints a section, and replaces it in the files `path.json` and `path.md`.

    Args:
      path: of the files, without suffix.
      name: of the section.
      heading: a sentence that says what was measured.
      tables: the rows of each table.
      about: the date, the kind of machine, and the versions; see `machine`.
    """
    print(section(heading, tables, about) + "\n", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    data, text = path.with_suffix(".json"), path.with_suffix(".md")
    sections = json.loads(data.read_text()) if data.exists() else {}
    sections[name] = {"heading": heading, "tables": tables, "about": about}
    data.write_text(json.dumps(sections, indent=2, ensure_ascii=False) + "\n")
    texts = [section(**value) for value in sections.values()]
    text.write_text("\n\n".join(texts) + "\n")
