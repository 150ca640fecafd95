"""A sweep: runs of one configuration with other values of its entries."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._plan.tables import fold_names, table_of, with_spread
from hwtrain.checkpoint._disk import complete
from hwtrain.evaluate import Population
from hwtrain.evaluate._study import condition_name, short_names
from hwtrain.evaluate._study_plot import plot_study
from hwtrain.train._folder import write_json
from hwtrain.train._report import HARDWARE_AWARE, OnChips, read_results
from hwtrain.train._toml import as_toml
from hwtrain.train._variants import Varied, combinations

SWEEP_FILE = "sweep.json"
LEVEL = "mismatch_std"
_COSTS = {
    "energy_nj_per_example": "nJ",
    "latency_us_per_example": "µs",
    "area_mm2": "mm²",
    "devices": "devices",
}
"""What a run may tell of its chip's cost, and the heading of its column."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      number: its number.
      values: values by key of the configuration.
      folder: the run's folder.
    """

    number: int
    values: Mapping[str, Any]
    folder: Path

    @property
    def overrides(self) -> list[str]:
        """The values as `read_config` takes them."""
        return [f"{key}={as_toml(value)}" for key, value in self.values.items()]

    @property
    def ended(self) -> bool:
        """Whether the run has written its results; the plot is the last file."""
        return (self.folder / "results.png").is_file()

    @property
    def title(self) -> str:
        """The run in words."""
        short = short_names(list(self.values))
        shown = [f"{short[k]} {condition_name(k, v)}" for k, v in self.values.items()]
        return f"run {self.number}: {', '.join(shown) or 'as configured'}"


def points_of(grid: Varied, out: Path) -> list[Point]:
    """Returns a point for each combination of values.

    Args:
      grid: values by key.
      out: the sweep's folder.
    """
    return [point(number, one, out) for number, one in enumerate(combinations(grid))]


def point(number: int, values: Mapping[str, Any], out: Path) -> Point:
    """Returns a point of a sweep.

    Args:
      number: its number.
      values: values by key.
      out: the sweep's folder.
    """
    return Point(number, values, out / "runs" / f"{number:04d}")


def open_sweep(out: Path, about: Mapping[str, Any], *, resume: bool) -> bool:
    """Checks that a sweep may write to a folder; changes nothing.

    Args:
      out: the folder.
      about: what the sweep is, as plain data.
      resume: continue the sweep in the folder.

    Returns:
      Whether the folder holds a sweep to continue.

    Raises:
      ValueError: if the folder holds anything else, a sweep that may not be touched, or
        another one than that to continue.
    """
    stored = out / SWEEP_FILE
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder, got a file; name one with --out")
    if not stored.is_file():
        if out.is_dir() and any(not f.name.startswith(".sweep") for f in out.iterdir()):
            raise InputError(
                f"{out}: expected the folder of a sweep or nothing, got something "
                f"without a {SWEEP_FILE}; name another folder with --out"
            )
        return False
    if not resume:
        raise InputError(
            f"{out}: there is already a sweep here; continue it with --resume, or "
            "write elsewhere with --out DIR"
        )
    try:
        before = json.loads(stored.read_text(encoding="utf-8"))
        before.items()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{stored}: expected what a sweep is, got {error}") from None
    now = json.loads(json.dumps(about))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise InputError(
                f"{out}: a sweep is continued as it was started, but {key} was "
                f"{json.dumps(before.get(key))}, is now {json.dumps(now.get(key))}; "
                "start another sweep with --out DIR"
            )
    return True


def start_sweep(out: Path, about: Mapping[str, Any]) -> None:
    """Creates the folder of a sweep.

    Args:
      out: the folder.
      about: what the sweep is, as plain data.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SWEEP_FILE, about)


@dataclasses.dataclass(frozen=True)
class Result:
    """What one run of a sweep found.

    Attributes:
      point: the run.
      results: the main metric of each model and mismatch; none if the run failed.
      better: which values of the metric are better.
      cost: cost of the chip by name, if the run tells it.
      failed: why the run failed, in one line; empty if it did not.
    """

    point: Point
    results: Sequence[OnChips] = ()
    better: str = "higher"
    cost: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failed: str = ""

    @property
    def model(self) -> str:
        """The model that runs are compared by: the hardware-aware, or the last one."""
        names = [result.model for result in self.results]
        return HARDWARE_AWARE if HARDWARE_AWARE in names else names[-1]

    @property
    def score(self) -> float:
        """Mean of the metric over chips, seeds and mismatches, to compare runs by."""
        mine = [result.mean for result in self.results if result.model == self.model]
        return float(np.mean(mine))


def read_result(one: Point, failed: str = "") -> Result:
    """Returns what a run has found.

    Args:
      one: the run.
      failed: why it failed; empty if it did not.

    Raises:
      ValueError: if its results cannot be read.
    """
    if failed:
        return Result(one, failed=failed)
    results, data = read_results(one.folder)
    known = data.get("cost", {}).items()
    cost = {k: x for k, x in known if k in _COSTS and x is not None}
    better = data.get("better", "higher")
    return Result(one, results=results, better=better, cost=cost)


def table(results: Sequence[Result], required: float | None = None) -> Table:
    """Returns a table with a row for each run and mismatch.

    Args:
      results: of the runs.
      required: adds the yield at this value of the metric; `None` for no yield.
    """
    rows = [row for result in results for row in _rows(result, results, required)]
    found = table_of(rows)
    fold_names(found, 1 + len(results[0].point.values))
    return found


def _rows(
    result: Result, results: Sequence[Result], required: float | None
) -> list[dict[str, str]]:
    keys = list(result.point.values)
    short = short_names(keys)
    first = {"run": str(result.point.number)}
    for key in keys:
        name = short[key].replace("_", " ")
        first[name] = condition_name(key, result.point.values[key])
    if result.failed:
        if _levels(results):
            first["mismatch"] = ""
        model = next((other.model for other in results if other.results), "result")
        return [first | {model: "failed"}]
    rows = []
    for level in dict.fromkeys(one.mismatch_std for one in result.results):
        row = dict(first)
        if _levels(results):
            row["mismatch"] = "" if level is None else f"{level:g}"
        for one in result.results:
            if one.mismatch_std != level:
                continue
            row[one.model] = with_spread(one.mean, one.std)
            if one.unit == "%":
                row[one.model] = f"{one.mean:.2f} ± {one.std:.2f}"
            if required is not None and one.model == result.model:
                share = _population(one).chip_yield(required, result.better)
                row[f"yield at {required:g}"] = f"{100 * share:.0f} %"
        for name, heading in _COSTS.items():
            if name in result.cost:
                row[heading] = f"{result.cost[name]:.4g}"
        rows.append(row)
    return rows


def _levels(results: Iterable[Result]) -> bool:
    """Whether runs have several mismatches."""
    return any(len({one.mismatch_std for one in r.results}) > 1 for r in results)


def _population(one: OnChips) -> Population:
    values = one.values.ravel()
    return Population(values=values, seeds=tuple(range(len(values))))


def write_results(
    out: Path, results: Sequence[Result], required: float | None = None
) -> list[Path]:
    """Writes the results of a sweep as CSV, JSON and a plot, and returns the files.

    Args:
      out: the sweep's folder.
      results: of the runs.
      required: the value of the metric that is just good enough; `None` for none.
    """
    rows = [row for result in results for row in _records(result, required)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with complete(out / "results.csv") as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
    write_json(out / "results.json", {"runs": rows})
    files = [out / "results.csv", out / "results.json"]
    good = [result for result in results if not result.failed]
    points = [
        (_conditions(result, one), _population(one))
        for result in good
        for one in result.results
    ]
    if len(points) > 1:
        main = good[0].results[0]
        runs = f"{len(good)} runs" if len(good) > 1 else "1 run"
        title = f"{main.title.replace('_', ' ')}, {runs} (chip_mode)"
        title = title[0].upper() + title[1:]
        files.append(out / "results.png")
        plot_study(points, files[-1], metric=main.title, title=title, required=required)
    return files


def _conditions(result: Result, one: OnChips) -> dict[str, Any]:
    found: dict[str, Any] = {**result.point.values, "model": one.model}
    if one.mismatch_std is not None:
        found[LEVEL] = one.mismatch_std
    return found


def _records(result: Result, required: float | None) -> list[dict[str, Any]]:
    """Returns the rows of one run for the files."""
    values = {
        key: value if isinstance(value, int | float | str) else as_toml(value)
        for key, value in result.point.values.items()
    }
    first = {"run": result.point.number, **values}
    if result.failed:
        return [{**first, "failed": result.failed}]
    rows = []
    for one in result.results:
        chips = _population(one)
        tail = 0.05 if result.better == "higher" else 0.95
        row = {
            **first,
            "model": one.model,
            LEVEL: "" if one.mismatch_std is None else one.mismatch_std,
            "metric": one.title,
            "mean": one.rounded(one.mean),
            "std_over_chips": _number(one, one.std),
            "std_over_seeds": _number(one, one.std_over_seeds),
            "worst_5_percent": one.rounded(chips.quantile(tail)),
        }
        if required is not None:
            row["yield"] = round(chips.chip_yield(required, result.better), 6)
        rows.append({**row, **result.cost})
    return rows


def _number(one: OnChips, number: float) -> float | str:
    return "" if np.isnan(number) else one.rounded(number)
