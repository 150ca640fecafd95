"""Plots of a training's log."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwtrain.evaluate._plots import BLUE, GREY, new_figure, save, set_title

Rows = Sequence[Mapping[str, float]]

RANGE, CLIPPED = "/input_range", "/clipped_share"
_MOST = 8
"""Most layers drawn; of more, evenly spaced ones are."""

_LAYERS = "viridis"  # ordered by lightness, so that it can be read in grey too


def plot_losses(logs: Mapping[str, Rows], path: Path) -> None:
    """Plots the loss of each model over the updates.

    Args:
      logs: the rows of each model's log.
      path: the PNG or SVG file.
    """
    figure = new_figure((6.4, 3.4))
    axes = figure.subplots()
    for (name, rows), color, style in zip(logs.items(), (GREY, BLUE), ("--", "-")):
        steps = [row["step"] for row in rows]
        losses = [row["loss"] for row in rows]
        axes.plot(steps, losses, style, color=color, label=name)
    losses = [row["loss"] for rows in logs.values() for row in rows]
    if min(losses) > 0 and max(losses) > 10 * min(losses):
        axes.set_yscale("log")
    _finish(figure, axes, "loss of one batch", "Loss")
    save(figure, path)


def plot_layers(rows: Rows, ending: str, path: Path, *, name: str, title: str) -> None:
    """Plots one number of each layer over the updates.

    Args:
      rows: the rows of a log.
      ending: what the names of the number end with: `RANGE` or `CLIPPED`.
      path: the PNG or SVG file.
      name: the number in words, with its unit.
      title: the title.
    """
    from matplotlib import colormaps

    layers = [key for key in rows[-1] if key.endswith(ending)]
    if len(layers) > _MOST:
        title = f"{title} ({_MOST} of {len(layers)} layers)"
        layers = [layers[n * (len(layers) - 1) // (_MOST - 1)] for n in range(_MOST)]
    figure = new_figure((6.4, 3.4))
    axes = figure.subplots()
    for number, layer in enumerate(layers):
        color = colormaps[_LAYERS](0.85 * number / max(len(layers) - 1, 1))
        values = [row[layer] for row in rows]
        steps = [row["step"] for row in rows]
        axes.plot(steps, values, color=color, label=layer.removesuffix(ending))
    if ending == CLIPPED:
        axes.set_ylim(bottom=0)
    _finish(figure, axes, name, title)
    save(figure, path)


def _finish(figure: Any, axes: Any, name: str, title: str) -> None:
    axes.set_xlabel("update")
    axes.set_ylabel(name)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    set_title(figure, title)
