"""Tests of hwtrain.train._report and progress."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from hwtrain.train import _progress
from hwtrain.train import _report as report
from hwtrain.train._progress import show_progress
from hwtrain.train._report import OnChips

RESULTS = [
    OnChips(model=model, mismatch_std=level, values=np.array(values))
    for model, level, values in (
        ("plain", 0.0, [[90.0, 90.0], [80.0, 80.0]]),
        ("hardware-aware", 0.0, [[99.0, 99.0], [97.0, 97.0]]),
        ("plain", 0.3, [[50.0, 60.0], [70.0, 72.0]]),
        ("hardware-aware", 0.3, [[95.0, 97.0], [96.0, 96.0]]),
    )
]


def shown(renderable):
    console = Console(file=io.StringIO(), width=80)
    console.print(renderable)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_table_has_a_row_for_each_mismatch():
    lines = shown(report.table(RESULTS)).splitlines()
    row = next(line for line in lines if " 0.3 " in line)
    # Pooled over seeds: sqrt((50 + 2) / 2) and sqrt((2 + 0) / 2).
    assert "63.00 ±  5.10" in row
    assert "96.00 ±  1.00" in row
    assert max(map(len, lines)) <= 80


def test_the_headline_says_over_what_and_in_which_mode():
    assert report.headline(RESULTS, mode="chip_mode") == (
        "Accuracy in %, mean ± standard deviation over 2 chips, 2 training seeds "
        "(chip_mode)"
    )


def test_one_chip_has_no_standard_deviation():
    result = OnChips(model="plain", mismatch_std=0.0, values=np.array([[90.0]]))
    assert "±" not in shown(report.table([result]))
    summary = report.as_data([result])["results"][0]
    assert summary["std_over_chips"] is None and summary["std_over_seeds"] is None


def test_equal_chips_have_a_standard_deviation_of_zero():
    values = np.full((2, 64), 0.1) + 0.3  # their mean is rounded to another number
    assert values.std(axis=1, ddof=1).any()
    result = OnChips(
        metric="error", unit="", model="plain", mismatch_std=0, values=values
    )
    assert result.std == 0.0 and result.stds.tolist() == [0.0, 0.0]
    assert "0.4 ± 0 " in shown(report.table([result]))


def test_the_data_are_json_with_every_value():
    data = json.loads(json.dumps(report.as_data(RESULTS)))
    assert data["results"][2] == {
        "model": "plain",
        "mismatch_std": 0.3,
        "mean": 63.0,
        "std_over_chips": 5.099,
        # Of the means 55 and 71.
        "std_over_seeds": 11.3137,
        "mean_of_each_seed": [55.0, 71.0],
    }
    assert data["values_by_seed_and_chip"][2]["values"] == [[50.0, 60.0], [70.0, 72.0]]


@pytest.mark.parametrize(
    ("level", "mismatch", "heading", "row", "data"),
    [
        (None, "", "population", "2 chips", {"mismatch": "none"}),
        (
            None,
            "gains of 0.2",
            "mismatch",
            "gains of 0.2",
            {"mismatch": "gains of 0.2"},
        ),
        (0.3, "", "mismatch σ", "0.3", {"mismatch_std": 0.3}),
    ],
)
def test_one_population_is_named_and_drawn_with_its_spread(
    tmp_path, monkeypatch, level, mismatch, heading, row, data
):
    figure = pytest.importorskip("matplotlib.figure")
    results = [
        OnChips(model=m, mismatch_std=level, values=np.array(v), mismatch=mismatch)
        for m, v in (("plain", [[50.0, 60.0]]), ("hardware-aware", [[96.0, 98.0]]))
    ]
    lines = shown(report.table(results)).splitlines()
    assert f" {heading} " in lines[1]
    (found,) = (line for line in lines if f" {row} " in line)
    assert "55.00 ±  7.07" in found and "97.00 ±  1.41" in found
    for entries in report.as_data(results).values():
        for entry in entries:
            kept = {k: v for k, v in entry.items() if k.startswith("mismatch")}
            assert kept == data
    saved = []
    usual = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure,
        "savefig",
        lambda f, *a, **k: (saved.append(f), usual(f, *a, **k)),
    )
    report.plot(results, tmp_path / "a.png", title="title")
    axes = saved[0].axes[0]
    assert [bar.get_height() for bar in axes.patches] == [55.0, 97.0]
    (bars,) = [c for c in axes.containers if hasattr(c, "has_yerr")]
    ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    expected = [[55 - 50**0.5, 55 + 50**0.5], [97 - 2**0.5, 97 + 2**0.5]]
    np.testing.assert_allclose(ends, expected)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["55.00 ± 7.07", "97.00 ± 1.41"]
    assert row in axes.get_xlabel()


def test_the_plot_is_a_function_of_the_results(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.png", "b.png"):
        report.plot(RESULTS, tmp_path / name, title="title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_progress_is_a_bar_in_a_terminal():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with show_progress(console, "plain, seed 0", start=0, steps=8) as tell:
        for step in range(1, 9):
            tell.report(step, jnp.float32(0.25))
    last = file.getvalue().rstrip().split("\n")[-2]
    assert "plain, seed 0" in last
    assert "loss 0.2500" in last
    assert "steps/s" in last


def test_progress_is_a_few_lines_elsewhere():
    file = io.StringIO()
    with show_progress(Console(file=file), "plain", start=3, steps=8) as tell:
        for step in range(4, 9):
            tell.report(step, jnp.float32(0.25))
    lines = file.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"plain: step {step}/8" for step in (4, 6, 8)
    ]
    assert all("loss 0.2500" in line and "steps/s" in line for line in lines)


class Clock:
    """A clock that goes on only by what is done."""

    now = 0.0

    def monotonic(self):
        return self.now


class Loss:
    """A loss that a device has computed only after some time, as it computes them all
    one after the other."""

    def __init__(self, clock, ready):
        self.clock, self.ready = clock, ready

    def block_until_ready(self):
        self.clock.now = max(self.clock.now, self.ready)
        return self

    def is_ready(self):
        return self.clock.now >= self.ready

    def __float__(self):
        self.block_until_ready()
        return 0.25


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize(
    ("step_s", "rate"), [(0.01, "100"), (0.4, "2.5"), (4.0, "0.25")]
)
def test_the_rate_is_that_of_the_steps_alone(
    monkeypatch, terminal, start, step_s, rate
):
    clock, file = Clock(), io.StringIO()
    monkeypatch.setattr(_progress, "time", clock)
    console = Console(file=file, force_terminal=terminal, width=120)
    rates, steps, ready = [], 400, 0.0
    with show_progress(console, "plain", start=start, steps=steps) as told:
        original = type(told).rate
        monkeypatch.setattr(
            type(told), "rate", lambda *a: rates.append(original(*a)) or rates[-1]
        )
        for step in range(start + 1, steps + 1):
            clock.now += 1e-4
            if step == start + 1:
                clock.now += 60.0  # compiles
            ready = max(ready, clock.now) + step_s
            told.report(step, Loss(clock, ready))
            if step in (1, 100, 250):
                with told.aside(Loss(clock, ready)):
                    clock.now += 30.0  # writes a log, whose program is compiled
    assert {*rates} <= {"-", rate} and rates[-1] == rate
    assert f"{rate} steps/s" in file.getvalue()
