"""The results of a run as a table, a JSON file and a plot."""

import dataclasses
import importlib.util
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._plan.tables import with_spread
from hwtrain.checkpoint._disk import RESUME
from hwtrain.evaluate._plots import new_figure, save, set_title

HARDWARE_AWARE = "hardware-aware"
WITH_MISMATCH = "with mismatch"
PLAIN = "plain"
_COLORS = {PLAIN: "#8a8a8a", HARDWARE_AWARE: "#1764ab", WITH_MISMATCH: "#1764ab"}
_OTHER = "#c2571a"
_MARKERS = {PLAIN: "s", HARDWARE_AWARE: "o", WITH_MISMATCH: "o"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnChips:
    """A metric of one model on one population of chips, for each training seed.

    >>> result = OnChips(metric="accuracy", unit="%", model="plain", mismatch_std=0.1,
    ...                  values=np.array([[90.0, 92.0], [94.0, 96.0]]))
    >>> print(f"{result.mean:.1f} ± {result.std:.2f}")
    93.0 ± 1.41

    Attributes:
      metric: name of the metric.
      unit: its unit; empty for none.
      model: name of the model.
      mismatch_std: standard deviation of the chips' mismatch, relative; `None` if the
        evaluation sets none.
      values: `[seeds, chips]`.
      mismatch: description of a mismatch without a standard deviation; empty if there
        is no such mismatch.
    """

    metric: str = "accuracy"
    unit: str = "%"
    model: str
    mismatch_std: float | None
    values: np.ndarray
    mismatch: str = ""

    @property
    def title(self) -> str:
        """The metric with its unit: `accuracy in %`."""
        return f"{self.metric} in {self.unit}" if self.unit else self.metric

    @property
    def mean(self) -> float:
        """Mean over chips and seeds."""
        return float(self.values.mean())

    @property
    def stds(self) -> np.ndarray:
        """Standard deviation over the chips of each seed, `[seeds]`."""
        if self.values.shape[1] < 2:
            return np.full(len(self.values), math.nan)
        # For equal chips, rounding of the mean would look like a spread.
        differ = np.ptp(self.values, axis=1) > 0
        return np.where(differ, self.values.std(axis=1, ddof=1), 0.0)

    @property
    def std(self) -> float:
        """Standard deviation over the chips of a seed, pooled over seeds."""
        return float(np.sqrt(np.square(self.stds).mean()))

    @property
    def std_over_seeds(self) -> float:
        """Standard deviation over seeds of the mean over chips."""
        if len(self.values) < 2:
            return math.nan
        return float(self.values.mean(axis=1).std(ddof=1))

    def rounded(self, number: float) -> float:
        """Returns a number as files hold it."""
        return round(float(number), 4) if self.unit == "%" else float(f"{number:.6g}")


def by_metric(results: Sequence[OnChips]) -> dict[str, list[OnChips]]:
    """Returns the results of each metric, in their order."""
    found: dict[str, list[OnChips]] = {}
    for result in results:
        found.setdefault(result.metric, []).append(result)
    return found


def headline(results: Sequence[OnChips], *, mode: str) -> str:
    """Returns the headline of the table and the plot.

    Args:
      results: for each mismatch and model.
      mode: the mode that the models ran in.
    """
    seeds, chips = results[0].values.shape
    title = results[0].title.replace("_", " ")
    return (
        f"{title[0].upper()}{title[1:]}, mean ± standard deviation over "
        f"{_count(chips, 'chip')}, {_count(seeds, 'training seed')} ({mode})"
    )


def table(results: Sequence[OnChips]) -> Table:
    """Returns a rich table with one row for each mismatch.

    Args:
      results: for each mismatch and model.
    """
    shown = Table(min_width=60)
    shown.add_column(_about_populations(results), justify="right")
    for name in _names(results):
        shown.add_column(name, justify="right")
    for level, row in _by_level(results).items():
        cells = [_cell(r) for n in _names(results) for r in row if r.model == n]
        shown.add_row(_population(row[0]) if level is None else f"{level:g}", *cells)
    return shown


def lines(results: Sequence[OnChips]) -> list[str]:
    """Returns the results in words, a line for each mismatch.

    >>> values = np.array([[90.0, 92.0, 94.0]])
    >>> lines([OnChips(model="plain", mismatch_std=0.1, values=values)])
    ['mismatch σ 0.1, 3 chips: plain 92.00 ± 2.00']

    Args:
      results: for each mismatch and model.
    """
    found = []
    for level, row in _by_level(results).items():
        chips, mismatch = _count(row[0].values.shape[1], "chip"), row[0].mismatch
        about = f"mismatch {mismatch}, " if mismatch else ""
        about = about if level is None else f"mismatch σ {level:g}, "
        said = ", ".join(f"{r.model} {' '.join(_cell(r).split())}" for r in row)
        found.append(f"{about}{chips}: {said}")
    return found


def as_data(results: Sequence[OnChips]) -> dict[str, Any]:
    """Returns the results as plain data: summaries, then values.

    Percentages are rounded to 1e-4, other numbers to six digits.
    """
    summaries, values = [], []
    for result in results:
        name = {"model": result.model, **conditions(result)}
        by_seed = result.values.mean(axis=1)
        summary = {
            "mean": result.rounded(result.mean),
            "std_over_chips": _known(result, result.std),
            "std_over_seeds": _known(result, result.std_over_seeds),
            "mean_of_each_seed": [result.rounded(value) for value in by_seed],
        }
        summaries.append(name | summary)
        rows = [[result.rounded(value) for value in row] for row in result.values]
        values.append(name | {"values": rows})
    return {"results": summaries, "values_by_seed_and_chip": values}


def from_data(data: Any, path: Path) -> list[OnChips]:
    """Returns the results of the main metric of a run.

    Args:
      data: what its `results.json` holds.
      path: that file, for the message.

    Raises:
      ValueError: if it is not such a file.
    """
    try:
        title, unit = str(data["metric"]), ""
        if " in " in title:
            title, _, unit = title.rpartition(" in ")
        return [
            OnChips(
                metric=title,
                unit=unit,
                model=one["model"],
                mismatch_std=one.get("mismatch_std"),
                values=np.asarray(one["values"], np.float64),
                mismatch=one.get("mismatch", "").removeprefix("none"),
            )
            for one in data["values_by_seed_and_chip"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: expected the results of a run, got something else ({error!r}); "
            "repeat its training with --resume, which writes the file anew"
        ) from error


def read_results(folder: Path) -> tuple[list[OnChips], dict[str, Any]]:
    """Returns the results of the main metric of a run, and all that the file holds.

    Args:
      folder: the run's folder.

    Raises:
      ValueError: if the run has no results yet.
    """
    path = folder / "results.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: expected the results of a run that has ended, got no such file; "
            "name another folder, or let the run go on: hwtrain train CONFIG --resume"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from None
    return from_data(data, path), data


def conditions(result: OnChips) -> dict[str, float | str]:
    """Returns what is known of the mismatch of the chips, by name."""
    if result.mismatch_std is not None:
        return {"mismatch_std": float(result.mismatch_std)}
    return {"mismatch": result.mismatch or "none"}


def require_matplotlib() -> None:
    """Raises a `ValueError` with the way out if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "the plot of the results needs matplotlib: pip install 'hwtrain[recipes]'"
        )


def plot(results: Sequence[OnChips], path: Path, *, title: str) -> None:
    """Plots a metric against mismatch, with a band of one standard deviation of chips.

    A single population is a bar for each model.

    Args:
      results: for each mismatch and model.
      path: the PNG or SVG file.
      title: the title.
    """
    figure = new_figure((6.4, 4.0))
    axes = figure.subplots()
    if len(_by_level(results)) == 1:
        _draw_bars(axes, results)
    else:
        _draw_lines(axes, results)
    axes.set_ylabel(results[0].title.replace("_", " "))
    set_title(figure, title)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, RESUME)


def _draw_bars(axes: Any, results: Sequence[OnChips]) -> None:
    """Draws one population as a bar for each model."""
    spread = [0.0 if math.isnan(r.std) else r.std for r in results]
    bars = axes.bar(
        [r.model for r in results],
        [r.mean for r in results],
        width=0.5,
        yerr=spread if any(spread) else None,
        capsize=4,
        color=[_COLORS.get(r.model, _OTHER) for r in results],
    )
    axes.bar_label(bars, [" ".join(_cell(r).split()) for r in results], padding=3)
    axes.margins(x=0.4)
    if results[0].unit == "%":
        axes.set_ylim(0, 100)
    axes.set_axisbelow(True)
    level, mismatch = results[0].mismatch_std, results[0].mismatch
    name = f"mismatch: {mismatch}" if mismatch else _population(results[0])
    name = name if level is None else f"mismatch σ {level:g}"
    axes.set_xlabel(textwrap.fill(name, 70))


def _draw_lines(axes: Any, results: Sequence[OnChips]) -> None:
    """Draws a metric over mismatch as a line and a band for each model."""
    most = 100.0 if results[0].unit == "%" else math.inf
    for name in _names(results):
        mine = [r for row in _by_level(results).values() for r in row]
        mine = [r for r in mine if r.model == name]
        levels = np.array([r.mismatch_std for r in mine])
        means = np.array([r.mean for r in mine])
        spread = np.nan_to_num(np.array([r.std for r in mine]))
        color, marker = _COLORS.get(name, _OTHER), _MARKERS.get(name, "^")
        axes.plot(levels, means, marker=marker, markersize=4, color=color, label=name)
        axes.fill_between(
            levels,
            means - spread,
            np.minimum(means + spread, most),
            color=color,
            alpha=0.18,
            linewidth=0,
        )
    axes.set_xlabel("standard deviation of the mismatch, relative")
    if math.isfinite(most):
        axes.set_ylim(top=most)
    axes.legend(frameon=False, loc="best")


def _by_level(results: Sequence[OnChips]) -> dict[float | None, list[OnChips]]:
    """Returns the results by the level of the mismatch, in its order."""
    levels = dict.fromkeys(result.mismatch_std for result in results)
    ordered = sorted(levels, key=lambda level: -1.0 if level is None else level)
    return {
        level: [result for result in results if result.mismatch_std == level]
        for level in ordered
    }


def _about_populations(results: Sequence[OnChips]) -> str:
    """Returns what distinguishes the populations: the heading of their column."""
    if any(result.mismatch_std is not None for result in results):
        return "mismatch σ"
    return "mismatch" if results[0].mismatch else "population"


def _population(result: OnChips) -> str:
    """Returns the name of a population whose mismatch has no level."""
    return result.mismatch or _count(result.values.shape[1], "chip")


def _known(result: OnChips, number: float) -> float | None:
    return None if math.isnan(number) else result.rounded(number)


def _cell(result: OnChips) -> str:
    form = ".2f" if result.unit == "%" else ".4g"
    width = "5" if result.unit == "%" else ""
    if not width and not math.isnan(result.std):
        return with_spread(result.mean, result.std)
    spread = "" if math.isnan(result.std) else f" ± {result.std:{width}{form}}"
    return f"{result.mean:{form}}{spread}"


def _names(results: Sequence[OnChips]) -> list[str]:
    return list(dict.fromkeys(result.model for result in results))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
