"""The plot of a study: a line over times or numbers, or bars."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwtrain._plan.tables import time_name
from hwtrain.evaluate._plots import (
    FEW,
    new_figure,
    path_in_lines,
    save,
    set_title,
    times_axis,
)
from hwtrain.evaluate._population import Population
from hwtrain.evaluate._study import short_names, value_name

Points = Sequence[tuple[Mapping[str, Any], Population]]

# The palette of Okabe and Ito, which the colour-blind tell apart, without its yellow,
# in the order in which neighbours differ in lightness too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = "osD^vPX"
_MOST_BARS = 60
_MOST_BANDS = 3
"""Most lines whose bands can still be told apart where they overlap."""


def plot_study(
    points: Points,
    path: Path,
    *,
    metric: str,
    title: str,
    required: float | None = None,
) -> None:
    """Plots a metric for each point of a study, with the spread of its chips.

    The horizontal axis is the time, or else the first condition that is a number and
    varies. There is a line for each value of the other conditions; where there are more
    than seven of them, or nothing is a number, there is a bar for each point.

    Args:
      points: pairs of conditions by name, and a population of values `[chips]`.
      path: the PNG file.
      metric: name and unit of the metric.
      title: the title.
      required: draws a line at this value; `None` for none.
    """
    over = axis_of([conditions for conditions, _ in points])
    lines = _lines(points, over) if over is not None else {}
    if over is None or len(lines) > len(_COLORS):
        shown = list(points)[:_MOST_BARS]
        if len(shown) < len(points):
            title = f"{title} (the first {len(shown)} of {len(points)})"
        figure = new_figure((6.4, 1.4 + 0.3 * len(shown)))
        _draw_bars(figure.subplots(), shown, metric, required)
    else:
        figure = new_figure((6.4, 3.9 + 0.2 * len(lines)))
        _draw_lines(figure.subplots(), lines, over, metric, required)
    set_title(figure, title)
    save(figure, path)


def axis_of(conditions: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns the condition for the horizontal axis; `None` if none is a number.

    >>> axis_of([{"type": "a", "bits": 4}, {"type": "a", "bits": 8}])
    'bits'

    Args:
      conditions: of each point.
    """
    names = list(dict.fromkeys(itertools.chain.from_iterable(conditions)))
    for name in sorted(names, key=lambda name: name != "t_s"):
        values = [point.get(name) for point in conditions]
        numbers = [
            value
            for value in values
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if len(numbers) == len(values) and len(set(numbers)) > 1:
            return name
    return None


def _lines(points: Points, over: str) -> dict[str, list[tuple[float, Population]]]:
    """Returns the points of each line, by what is constant along it."""
    varied = _varied([conditions for conditions, _ in points])
    lines: dict[str, list[tuple[float, Population]]] = {}
    for conditions, population in points:
        name = _name({k: conditions.get(k) for k in varied if k != over})
        lines.setdefault(name, []).append((conditions[over], population))
    return {name: sorted(line, key=lambda one: one[0]) for name, line in lines.items()}


def _varied(conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of conditions that have several values."""
    names = dict.fromkeys(itertools.chain.from_iterable(conditions))
    shown = {n: {value_name(point.get(n)) for point in conditions} for n in names}
    return [name for name in names if len(shown[name]) > 1]


def _name(conditions: Mapping[str, Any]) -> str:
    short = short_names(list(conditions))
    return ", ".join(
        time_name(x) if name == "t_s" else f"{short[name]} {value_name(x)}"
        for name, x in conditions.items()
        if x is not None
    )


def _draw_lines(
    axes: Any,
    lines: dict[str, list[tuple[float, Population]]],
    over: str,
    metric: str,
    required: float | None,
) -> None:
    chips = min(len(p.seeds) for line in lines.values() for _, p in line)
    tails = (0.0, 1.0) if chips < FEW else (0.05, 0.95)
    numbers = sorted({float(x) for line in lines.values() for x, _ in line})
    where = {x: x for x in numbers}
    if over == "t_s":
        where = times_axis(axes, numbers)
    else:
        axes.set_xlabel(over)
        _scale(axes, numbers)
    bands = len(lines) <= _MOST_BANDS
    styles = zip(lines.items(), _COLORS, _MARKERS)
    for number, ((name, line), color, marker) in enumerate(styles):
        shown = [where[float(x)] for x, _ in line]
        low, high = (np.array([p.quantile(tail) for _, p in line]) for tail in tails)
        means = np.array([p.mean for _, p in line])
        style = {"marker": marker, "ms": 4, "color": color, "label": name or "mean"}
        if chips == 1 or bands:
            axes.plot(shown, means, **style)
        if chips > 1 and bands:
            axes.fill_between(shown, low, high, color=color, alpha=0.15, lw=0)
        elif chips > 1:
            # A mean may lie outside of 90 % of the chips.
            ends = np.maximum([means - low, high - means], 0)
            beside = _beside(axes, shown, 0.01 * (number - (len(lines) - 1) / 2))
            axes.errorbar(beside, means, ends, elinewidth=1, **style)
    if required is not None:
        axes.axhline(required, ls=":", lw=1, color="black", label="required")
    axes.set_ylabel(metric)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    what = f"lowest to highest of {chips}" if chips < FEW else "90 % of the"
    axes.legend(
        frameon=False,
        fontsize=8,
        title=f"{'band' if bands else 'bars'}: {what} chips" if chips > 1 else None,
        title_fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=1 if max(map(len, lines)) > 40 else 2,
    )


def _beside(axes: Any, numbers: list[float], share: float) -> np.ndarray:
    """Returns numbers, moved by a share of the width that they take on their axis."""
    scale = axes.xaxis.get_transform()
    places = scale.transform(np.asarray(numbers, float))
    return scale.inverted().transform(places + share * np.ptp(places))


def _scale(axes: Any, numbers: list[float]) -> None:
    """Makes the axis logarithmic where numbers span more than a factor of 20."""
    if min(numbers) > 0 and max(numbers) > 20 * min(numbers):
        axes.set_xscale("log")
    if all(number == round(number) for number in numbers) and len(numbers) < 12:
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.minorticks_off()


def _draw_bars(axes: Any, points: Points, metric: str, required: float | None) -> None:
    varied = _varied([conditions for conditions, _ in points])
    names = [_name({k: conditions.get(k) for k in varied}) for conditions, _ in points]
    rows = np.arange(len(points))
    means = np.array([population.mean for _, population in points])
    spread = np.array([population.std for _, population in points])
    axes.errorbar(
        means, rows, xerr=spread, fmt="o", ms=4, lw=1, capsize=2, color=_COLORS[0]
    )
    axes.set_yticks(rows, [path_in_lines(name, 48) for name in names], fontsize=8)
    axes.set_ylim(len(points) - 0.5, -0.5)
    if required is not None:
        axes.axvline(required, ls=":", lw=1, color="black", label="required")
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(f"{metric}, mean ± standard deviation over chips")
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
