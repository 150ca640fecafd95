"""Plots of chips: conductances, accuracy over time, sensitivity of layers."""

import importlib.util
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwtrain._errors import InputError
from hwtrain._plan.tables import time_name
from hwtrain.checkpoint._disk import AGAIN, complete
from hwtrain.evaluate._histograms import Histogram
from hwtrain.evaluate._population import Population
from hwtrain.evaluate._sensitivity import Sensitivity

BLUE = "#1764ab"
GREY = "#8a8a8a"
ORANGE = "#c2571a"
MOST_PANELS = 30
"""Most weights shown in a plot of histograms; further ones are left out."""

MOST_LAYERS = 60
"""Most layers shown in a plot of sensitivities; further ones are left out."""

FEW = 20
"""Number of chips below which a plot shows all of them instead of 90 %."""


def require_matplotlib() -> None:
    """Raises a `ValueError` with the way out if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a plot needs matplotlib: pip install 'hwtrain[recipes]'")


def plot_histograms(
    histograms: Mapping[str, Histogram], path: Path, *, title: str
) -> None:
    """Plots a histogram of conductances in a panel for each weight.

    Args:
      histograms: by the weights' paths.
      path: the PNG file.
      title: the title.
    """
    shown = list(histograms.items())[:MOST_PANELS]
    if len(shown) < len(histograms):
        title = f"{title} (the first {len(shown)} of {len(histograms)} weights)"
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure((3.2 * max(columns, 2), 0.7 + 2.1 * rows))
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, (name, histogram) in zip(panels, shown):
        axes.stairs(histogram.counts, histogram.edges, fill=True, color=BLUE)
        _count_axis(axes, int(histogram.counts.max()))
        axes.set_title(path_in_lines(name, 34), fontsize=9, loc="left")
        axes.set_xlabel("conductance in µS", fontsize=8)
        axes.set_ylabel("devices", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    set_title(figure, title)
    save(figure, path)


def plot_over_time(found: Population, path: Path, *, metric: str, title: str) -> None:
    """Plots a metric over the time since programming, with a band over chips.

    Args:
      found: from `population` with `times_s`.
      path: the PNG file.
      metric: name and unit of the metric.
      title: the title.
    """
    if found.times_s is None:
        raise InputError("a plot over time needs a population with times_s; got none")
    figure = new_figure((6.4, 4.0))
    axes = figure.subplots()
    places = times_axis(axes, found.times_s)
    shown = [places[t_s] for t_s in found.times_s]
    chips = len(found.seeds)
    # Of fewer chips, no share of 5 % can be told.
    few = chips < FEW
    low, high = np.percentile(found.values, [0, 100] if few else [5, 95], axis=0)
    said = f"lowest to highest of {chips} chips" if few else "90 % of the chips"
    if chips > 1:
        axes.fill_between(shown, low, high, color=BLUE, alpha=0.18, lw=0, label=said)
    axes.plot(shown, found.mean, "o-", color=BLUE, ms=4, label="mean")
    axes.set_ylabel(metric)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    set_title(figure, title)
    save(figure, path)


def times_axis(axes: Any, times_s: Sequence[float]) -> dict[float, float]:
    """Makes the horizontal axis one of times, and returns the place of each time.

    Args:
      axes: the axes of a plot.
      times_s: the times, in seconds.
    """
    times = np.array(times_s)
    positive = times[times > 0]
    # Zero seconds has no place on a logarithmic axis.
    start = positive.min() / 10 if len(positive) else 1.0
    shown = np.where(times > 0, times, start)
    axes.set_xscale("log")
    axes.set_xticks(shown, [time_name(t_s) for t_s in times], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("time since programming")
    return dict(zip(map(float, times), map(float, shown)))


def plot_sensitivity(
    found: Sensitivity, path: Path, *, metric: str, title: str
) -> None:
    """Plots a metric with each layer alone, or all but it, a chip's; costliest first.

    Args:
      found: from `sensitivity`.
      path: the PNG file.
      metric: name and unit of the metric.
      title: the title.
    """
    shown = found.order[:MOST_LAYERS]
    count = len(shown)
    if count < len(found.layers):
        title = f"{title} (the costliest {count} of {len(found.layers)} layers)"
    figure = new_figure((6.4, 1.6 + 0.34 * count))
    axes = figure.subplots()
    rows = np.arange(count)
    for values, shift, color, marker, name in (
        (found.alone, -0.12, BLUE, "o", "this layer alone is a chip's"),
        (found.others, 0.12, ORANGE, "s", "all layers but this one are"),
    ):
        few = values.shape[1] < 2
        spread = np.zeros(count) if few else values[shown].std(axis=1, ddof=1)
        axes.errorbar(
            values[shown].mean(axis=1),
            rows + shift,
            xerr=spread,
            fmt=marker,
            ms=4,
            lw=1,
            capsize=2,
            color=color,
            label=name,
        )
    for values, style, name in (
        (found.nominal, "--", "none is"),
        (found.whole, ":", "all are"),
    ):
        axes.axvline(values.mean(), ls=style, lw=1, color=GREY, label=name)
    axes.set_yticks(rows, [found.layers[n] for n in shown], fontsize=8)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlabel(f"{metric}, mean ± standard deviation over chips")
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    set_title(figure, title)
    save(figure, path)


def in_lines(text: str, width: int) -> str:
    """Returns a text in lines, broken between its phrases where these fit.

    >>> print(in_lines("accuracy in %, mean over 16 chips, 2 training seeds", 40))
    accuracy in %, mean over 16 chips,
    2 training seeds
    """
    return _broken(re.split(r"(?<=[,:;] )|(?<= )(?=\()", text), width)


def path_in_lines(path: str, width: int) -> str:
    """Returns a path in lines, broken after its slashes where these fit.

    >>> print(path_in_lines("encoder/layers_0/attention/query/kernel", 20))
    encoder/layers_0/
    attention/query/
    kernel
    """
    return _broken(re.split("(?<=/)", path), width)


def _broken(phrases: Iterable[str], width: int) -> str:
    lines = [""]
    for phrase in phrases:
        if lines[-1] and len((lines[-1] + phrase).rstrip()) > width:
            lines.append("")
        lines[-1] += phrase
    return "\n".join(textwrap.fill(line.rstrip(), width) for line in lines)


def set_title(figure: Any, title: str) -> None:
    """Writes a title above a figure, in as many lines as its width needs."""
    # In this font, an inch holds 13 characters of typical text.
    width = int(12 * figure.get_figwidth())
    figure.suptitle(in_lines(title, width), fontsize=10, x=0.02, ha="left")


def _count_axis(axes: Any, most: int) -> None:
    """Makes the vertical axis logarithmic with whole numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(0.7, 1.3 * max(most, 2))
    subs = (1, 2, 5) if most < 100 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def new_figure(size: tuple[float, float]) -> Any:
    """Returns an empty figure of a width and a height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path, hint: str = AGAIN) -> None:
    """Writes a figure as a PNG or SVG file, or none at all.

    Args:
      figure: the figure.
      path: the file; its suffix says which.
      hint: the way out if it cannot be written.
    """
    import matplotlib as mpl

    kind = "svg" if path.suffix == ".svg" else "png"
    # Without a version and a date in the file, equal results give equal bytes.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with complete(path, hint) as partial, mpl.rc_context({"svg.hashsalt": "hwtrain"}):
        figure.savefig(partial, format=kind, metadata=metadata)
