"""Draws the picture of docs/life_cycle.md: `python docs/life_cycle_plot.py`."""

import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

COLUMNS = {
    "step": ("#dbeafe", "every training step", "key: the stream mismatch"),
    "chip": ("#dcfce7", "once for a chip", "key: chip_key(seed)"),
    "time": ("#fef3c7", "a function of t", "no key, nothing is drawn"),
    "read": ("#fee2e2", "every read", "key: that of the read"),
}
ACTS = {
    "step": ("weight noise", "noise of DAC, tile, ADC", "then clip, remap, ranges"),
    "chip": ("mismatch", "programming noise", "drift exponents", "stuck devices"),
    "time": ("drift", "relaxation", "failures, disturb"),
    "read": ("read noise", "noise of DAC, tile, ADC", "drift compensation"),
}
STATES = ("weights W", "trained W", "conductances\nof a chip", "g(t)", "output y")
WIDTH, GAP = 2.5, 1.5


def life_cycle():
    """Draws the four kinds of draws between the states of a weight."""
    figure = Figure(figsize=(12, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-1.45, 4 * (WIDTH + GAP) - 0.1), ylim=(-0.6, 3.5))
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "mutation_scale": 14, "color": "0.3"}
    for number, (name, acts) in enumerate(ACTS.items()):
        left = number * (WIDTH + GAP)
        color, when, key = COLUMNS[name]
        box = (left, 0.5), WIDTH, 2.4
        style = "round,pad=0.05"
        axes.add_patch(FancyBboxPatch(*box, boxstyle=style, fc=color, ec="0.4"))
        middle = left + WIDTH / 2
        axes.text(middle, 3.2, when, ha="center", fontsize=11, weight="bold")
        axes.text(middle, 0.1, key, ha="center", fontsize=9, color="0.3")
        text = "\n".join(acts)
        axes.text(middle, 1.7, text, ha="center", va="center", linespacing=1.6)
    for number, state in enumerate(STATES):
        right = number * (WIDTH + GAP) - 0.1
        left = right - GAP + 0.2
        axes.text((left + right) / 2, 1.95, state, ha="center", va="bottom")
        axes.add_patch(FancyArrowPatch((left, 1.7), (right, 1.7), **arrow))
    trained = (
        "optimiser: W + update, from the gradient of the loss at the noisy weights"
    )
    axes.text(-1.1, -0.45, trained, fontsize=9, color="0.3")
    axes.add_patch(FancyArrowPatch((-1.2, -0.4), (-1.2, 1.65), **arrow))
    return figure


FIGURES = (life_cycle,)


def main(folder):
    """Writes the picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        figure().savefig(folder / f"{figure.__name__}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images")
