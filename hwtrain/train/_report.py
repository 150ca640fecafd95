"""The results of a run as a table, a JSON file and a plot."""

import dataclasses
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hwtrain.checkpoint import _disk as disk
from hwtrain.evaluate._plots import set_title

HARDWARE_AWARE = "hardware-aware"
WITH_MISMATCH = "with mismatch"
PLAIN = "plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Accuracy of one model on one population of chips, for each training seed.

    >>> result = Accuracies(model="plain", mismatch_std=0.1,
    ...                     values=np.array([[90.0, 92.0], [94.0, 96.0]]))
    >>> print(f"{result.mean:.1f} ± {result.std:.2f}")
    93.0 ± 1.41

    Attributes:
      model: name of the model.
      mismatch_std: standard deviation of the chips' mismatch, relative.
      values: `[seeds, chips]` accuracy, in %.
    """

    model: str
    mismatch_std: float
    values: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over chips and seeds, in %."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Standard deviation over the chips of a seed, pooled over seeds, in %."""
        if self.values.shape[1] < 2:
            return math.nan
        return float(np.sqrt(self.values.var(axis=1, ddof=1).mean()))

    @property
    def std_over_seeds(self) -> float:
        """Standard deviation over seeds of the mean over chips, in %."""
        if len(self.values) < 2:
            return math.nan
        return float(self.values.mean(axis=1).std(ddof=1))


def headline(results: Sequence[Accuracies], *, mode: str) -> str:
    """Returns the headline of the table and the plot.

    Args:
      results: for each mismatch and model.
      mode: the mode that the models ran in.
    """
    seeds, chips = results[0].values.shape
    return (
        f"Accuracy in %, mean ± standard deviation over {_count(chips, 'chip')}, "
        f"{_count(seeds, 'training seed')} ({mode})"
    )


def table(results: Sequence[Accuracies]) -> Table:
    """Returns a rich table with one row for each mismatch.

    Args:
      results: for each mismatch and model.
    """
    shown = Table(min_width=60)
    shown.add_column("mismatch σ", justify="right")
    for name in _names(results):
        shown.add_column(name, justify="right")
    for level in sorted({result.mismatch_std for result in results}):
        row = [r for r in results if r.mismatch_std == level]
        cells = [_cell(r) for n in _names(results) for r in row if r.model == n]
        shown.add_row(f"{level:g}", *cells)
    return shown


def as_data(results: Sequence[Accuracies]) -> dict[str, Any]:
    """Returns the results as plain data, rounded to 1e-4 %: summaries, then values."""
    summaries, values = [], []
    for result in results:
        name = {"model": result.model, "mismatch_std": result.mismatch_std}
        by_seed = result.values.mean(axis=1)
        summary = {
            "mean": round(result.mean, 4),
            "std_over_chips": _rounded(result.std),
            "std_over_seeds": _rounded(result.std_over_seeds),
            "mean_of_each_seed": by_seed.round(4).tolist(),
        }
        summaries.append(name | summary)
        values.append(name | {"values": result.values.round(4).tolist()})
    return {"results": summaries, "values_by_seed_and_chip": values}


def require_matplotlib() -> None:
    """Raises a `ValueError` with the way out if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "the plot of the results needs matplotlib: pip install 'hwtrain[recipes]'"
        )


def plot(results: Sequence[Accuracies], path: Path, *, title: str) -> None:
    """Plots accuracy against mismatch, with a band of one standard deviation of chips.

    Args:
      results: for each mismatch and model.
      path: the PNG file.
      title: the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = {PLAIN: "#8a8a8a", HARDWARE_AWARE: "#1764ab", WITH_MISMATCH: "#1764ab"}
    markers = {PLAIN: "s", HARDWARE_AWARE: "o", WITH_MISMATCH: "o"}
    for name in _names(results):
        mine = sorted(
            (r for r in results if r.model == name), key=lambda r: r.mismatch_std
        )
        levels = np.array([r.mismatch_std for r in mine])
        means = np.array([r.mean for r in mine])
        spread = np.nan_to_num(np.array([r.std for r in mine]))
        color, marker = colors.get(name, "#c2571a"), markers.get(name, "^")
        axes.plot(levels, means, marker=marker, markersize=4, color=color, label=name)
        axes.fill_between(
            levels,
            means - spread,
            np.minimum(means + spread, 100),
            color=color,
            alpha=0.18,
            linewidth=0,
        )
    axes.set_xlabel("standard deviation of the mismatch, relative")
    axes.set_ylabel("accuracy in %")
    set_title(figure, title)
    axes.set_ylim(top=100)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    # Without a version in the file, equal results give equal bytes.
    with disk.complete(path, disk.RESUME) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def _rounded(number: float) -> float | None:
    return None if math.isnan(number) else round(number, 4)


def _cell(result: Accuracies) -> str:
    spread = "" if math.isnan(result.std) else f" ± {result.std:5.2f}"
    return f"{result.mean:.2f}{spread}"


def _names(results: Sequence[Accuracies]) -> list[str]:
    return list(dict.fromkeys(result.model for result in results))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
