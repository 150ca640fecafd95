"""Plots are readable: nothing is cut off, and no label is a formula."""

import numpy as np
import pytest

from hwtrain.evaluate import Population, Sensitivity
from hwtrain.evaluate import _plots as plots
from hwtrain.evaluate._histograms import Histogram
from hwtrain.train import _report as report

pytest.importorskip("matplotlib")

LONG = (
    "runs/vision_transformer_on_digits/export/seed_0, hardware-aware, training seed 0, "
    "step 400: accuracy in % on 16 chips (chip_mode)"
)
SHORT = "r1: accuracy"
DEEP = "encoder/layers_0/attention/query_projection/kernel"
SEEDS = tuple(range(4))
VALUES = np.linspace(80, 90, 12).reshape(4, 3)


def over_time(path, title):
    found = Population(values=VALUES, seeds=SEEDS, times_s=(0.0, 60.0, 86_400.0))
    plots.plot_over_time(found, path, metric="accuracy in %", title=title)


def by_layer(path, title):
    found = Sensitivity(
        layers=(DEEP, "b", "c"),
        nominal=VALUES[:, 0],
        whole=VALUES[:, 1],
        alone=VALUES.T,
        others=VALUES.T,
        seeds=SEEDS,
    )
    plots.plot_sensitivity(found, path, metric="accuracy in %", title=title)


def histogram(count):
    g = np.random.default_rng(0).random(count) * 80
    return Histogram.of([g], g_min=0.0, g_max=90.0)


def histograms(path, title, *, counts=(4, 60, 10**5)):
    found = {f"{DEEP}_{count}": histogram(count) for count in counts}
    plots.plot_histograms(found, path, title=title)


def of_a_training(path, title):
    results = [
        report.OnChips(model=model, mismatch_std=std, values=VALUES)
        for model in ("plain", "hardware-aware")
        for std in (0.0, 0.1)
    ]
    report.plot(results, path, title=title)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, drawn."""
    from matplotlib.figure import Figure

    figures, usual = [], Figure.savefig

    def savefig(figure, *args, **kwargs):
        usual(figure, *args, **kwargs)
        figure.canvas.draw()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def texts(figure):
    from matplotlib.text import Text

    found = figure.findobj(lambda item: isinstance(item, Text) and item.get_visible())
    return [text for text in found if text.get_text()]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("title", [SHORT, LONG])
@pytest.mark.parametrize("draw", [over_time, by_layer, histograms, of_a_training])
def test_no_text_is_cut_off(tmp_path, drawn, draw, title):
    draw(tmp_path / "a.png", title)
    (figure,) = drawn
    width, height = figure.canvas.get_width_height()
    boxes = {text.get_text(): text.get_window_extent() for text in texts(figure)}
    titles = [text for text in boxes if text.replace("\n", " ") == title]
    assert len(titles) == 1
    assert all(line[-1] in ",:)" for line in titles[0].split("\n")) or title == SHORT
    for text in (
        titles[0],
        *(text for text in boxes if DEEP in text.replace("\n", "")),
    ):
        box = boxes[text]
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
    if draw is histograms:
        names = [boxes[text] for text in boxes if DEEP in text.replace("\n", "")]
        assert len(names) == 3
        for left, right in zip(names, names[1:]):
            assert left.x1 < right.x0


def test_the_costliest_layers_are_on_top(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(plots, "MOST_LAYERS", 2)
    alone = np.array([[9.0, 7.0], [5.0, 4.0], [7.0, 8.0]])
    found = Sensitivity(
        layers=("a", "b", "c"),
        nominal=np.array([9.0, 9.0]),
        whole=np.array([2.0, 2.0]),
        alone=alone,
        others=alone - 1,
        seeds=(0, 1),
    )
    path = tmp_path / "a.png"
    plots.plot_sensitivity(found, path, metric="accuracy", title=SHORT)
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c"]
    assert axes.get_ylim() == (1.5, -0.5)
    points = [box.lines[0].get_xdata() for box in axes.containers]
    np.testing.assert_allclose(points, [[4.5, 7.5], [3.5, 6.5]])
    ends = [
        [x for x, _ in line] for line in axes.containers[0].lines[2][0].get_segments()
    ]
    np.testing.assert_allclose(ends[0], 4.5 + np.sqrt(0.5) * np.array([-1, 1]))
    assert "the costliest 2 of 3 layers" in " ".join(
        t.get_text() for t in texts(drawn[0])
    )


@pytest.mark.parametrize("count", [1, 2, 4, 40, 300, 10**5])
def test_counts_are_whole_numbers(tmp_path, drawn, count):
    histograms(tmp_path / "a.png", SHORT, counts=(count,))
    (figure,) = drawn
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels(which="both")]
    shown = [label for label in labels if label]
    assert "1" in shown and len(shown) >= 2
    for label in shown:
        assert str(f"{int(label.replace(',', '')):,}") == label


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("one line", 20, "one line"),
        ("a, b: c (d)", 4, "a,\nb: c\n(d)"),
        ("a, b: c (d)", 6, "a, b:\nc (d)"),
        ("no phrase that is short enough", 12, "no phrase\nthat is\nshort enough"),
    ],
)
def test_lines_end_with_phrases(text, width, expected):
    assert plots.in_lines(text, width) == expected


@pytest.mark.parametrize("chips", [1, 3, 19, 20, 200])
def test_the_band_says_which_chips_it_holds(tmp_path, drawn, chips):
    values = np.random.default_rng(0).normal(90, 1, (chips, 2))
    found = Population(values=values, seeds=tuple(range(chips)), times_s=(1.0, 60.0))
    plots.plot_over_time(found, tmp_path / "a.png", metric="accuracy", title=SHORT)
    (axes,) = drawn[0].axes
    _, labels = axes.get_legend_handles_labels()
    few = {1: [], 3: ["lowest to highest of 3 chips"], 19: None}.get(
        chips, ["90 % of the chips"]
    )
    few = ["lowest to highest of 19 chips"] if few is None else few
    assert sorted(labels) == sorted([*few, "mean"])
    if chips > 1:
        (band,) = axes.collections
        y = np.concatenate([path.vertices[:, 1] for path in band.get_paths()])
        share = [0, 100] if chips < 20 else [5, 95]
        ends = np.percentile(values, share, axis=0)
        np.testing.assert_allclose([y.min(), y.max()], [ends.min(), ends.max()])
