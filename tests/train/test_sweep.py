"""Sweeps without their processes: points, folders, tables and files."""

import csv
import json
import tomllib

import numpy as np
import pytest

from hwtrain.train import _report as report
from hwtrain.train._report import OnChips
from hwtrain.train._sweep import (
    Result,
    open_sweep,
    point,
    points_of,
    read_result,
    start_sweep,
    table,
    write_results,
)
from hwtrain.train._toml import as_toml

GRID = {"training.learning_rate": (0.1, 0.2), "hardware.clip": ({"type": "a"}, "none")}
RANDOM = np.random.default_rng(0)
PLAIN, AWARE = RANDOM.normal(80, 2, (2, 20)), RANDOM.normal(90, 2, (2, 20))


def results(level=None, shift=0.0, metric="accuracy", unit="%"):
    return [
        OnChips(
            model=model,
            mismatch_std=level,
            values=np.round(values + shift, 4),
            metric=metric,
            unit=unit,
        )
        for model, values in (("plain", PLAIN), ("hardware-aware", AWARE))
    ]


@pytest.mark.parametrize(
    "value",
    [1, 0.1, 1e-30, True, 'a"b\\c ü\n', [1, [2.5, "x"]], {"a": {"b": [True]}, "c": 1}],
)
def test_toml_reads_values_back(value):
    assert tomllib.loads(f"x = {as_toml(value)}")["x"] == value


def test_points_are_all_combinations_in_folders_of_their_own(tmp_path):
    points = points_of(GRID, tmp_path)
    assert [one.folder.name for one in points] == ["0000", "0001", "0002", "0003"]
    assert points[2].overrides == [
        "training.learning_rate=0.2",
        'hardware.clip={type = "a"}',
    ]
    assert points[1].title == "run 1: learning_rate 0.1, clip none"
    assert not points[0].ended
    points[0].folder.mkdir(parents=True)
    (points[0].folder / "results.png").touch()
    assert points[0].ended


def test_a_sweep_is_continued_as_it_was_started(tmp_path):
    out, about = tmp_path / "sweep", {"grid": {"a": (1, 2)}, "trials": None}
    assert not open_sweep(out, about, resume=False)
    start_sweep(out, about)
    assert open_sweep(out, about, resume=True)
    with pytest.raises(ValueError, match="continue it with --resume"):
        open_sweep(out, about, resume=False)
    with pytest.raises(ValueError, match=r'grid was \{"a": \[1, 2\]\}, is now'):
        open_sweep(out, {**about, "grid": {"a": (1, 3)}}, resume=True)


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="without a sweep.json"):
        open_sweep(tmp_path, {}, resume=True)
    with pytest.raises(ValueError, match="got a file"):
        open_sweep(tmp_path / "file", {}, resume=False)
    (tmp_path / "sweep.json").write_text("[")
    with pytest.raises(ValueError, match="expected what a sweep is"):
        open_sweep(tmp_path, {}, resume=True)


def write_run(folder, found, **more):
    folder.mkdir(parents=True)
    data = {"metric": found[0].title, **report.as_data(found), **more}
    (folder / "results.json").write_text(json.dumps(data))


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    one = point(3, {"a": 1}, tmp_path)
    cost = {"energy_nj_per_example": 12.5, "other": 1}
    write_run(one.folder, results(0.1), better="lower", cost=cost)
    found = read_result(one)
    assert found.better == "lower" and found.cost == {"energy_nj_per_example": 12.5}
    for ours, theirs in zip(found.results, results(0.1), strict=True):
        assert (ours.model, ours.title) == (theirs.model, theirs.title)
        assert ours.mismatch_std == 0.1
        np.testing.assert_array_equal(ours.values, theirs.values)
    assert found.score == pytest.approx(np.round(AWARE, 4).mean())


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, "a run that has ended"),
        ("{", "expected JSON"),
        ("{}", "expected the results of a run"),
        ('{"metric": "a", "values_by_seed_and_chip": [1]}', "expected the results"),
    ],
)
def test_results_that_cannot_be_read_are_one_line(tmp_path, text, expected):
    one = point(0, {}, tmp_path)
    one.folder.mkdir(parents=True)
    if text is not None:
        (one.folder / "results.json").write_text(text)
    with pytest.raises(ValueError, match=expected) as caught:
        read_result(one)
    assert "results.json" in str(caught.value) and "\n" not in str(caught.value)


def cells(found):
    names = [column.header for column in found.columns]
    rows = zip(*(column.cells for column in found.columns))
    return [dict(zip(names, row)) for row in rows]


def test_the_table_has_a_row_for_each_run_and_mismatch(tmp_path):
    points = points_of({"a.bits": (4, 6), "b": ("x",)}, tmp_path)
    found = [
        Result(points[0], [*results(0.0), *results(0.2, -5)], cost={"area_mm2": 2.5}),
        Result(points[1], failed="the loss is NaN"),
    ]
    rows = cells(table(found, required=90.0))
    assert len(rows) == 3
    assert rows[0]["bits"] == "4" and rows[0]["b"] == "x" and rows[0]["mm²"] == "2.5"
    assert [row["mismatch"] for row in rows] == ["0", "0.2", ""]
    values = np.round(AWARE - 5, 4)
    std = np.sqrt(values.var(axis=1, ddof=1).mean())
    assert rows[1]["hardware-aware"] == f"{values.mean():.2f} ± {std:.2f}"
    assert rows[1]["yield at 90"] == f"{100 * np.mean(values >= 90):.0f} %"
    assert rows[2]["hardware-aware"] == "failed"


def test_the_files_have_a_row_for_each_model(tmp_path):
    points = points_of({"a": (1, 2)}, tmp_path)
    found = [
        Result(points[0], results(0.1), cost={"devices": 100}),
        Result(points[1], failed="it ended with status -9"),
    ]
    files = write_results(tmp_path, found, required=80.0)
    assert [file.name for file in files] == [
        "results.csv",
        "results.json",
        "results.png",
    ]
    lines = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines))
    assert len(rows) == 3
    assert rows[0]["model"] == "plain" and rows[0]["a"] == "1"
    values = np.round(PLAIN, 4).ravel()
    assert float(rows[0]["mean"]) == pytest.approx(values.mean(), abs=1e-4)
    assert float(rows[0]["worst_5_percent"]) == pytest.approx(
        np.quantile(values, 0.05), abs=1e-4
    )
    assert float(rows[0]["yield"]) == pytest.approx(np.mean(values >= 80))
    assert rows[1]["devices"] == "100"
    assert rows[2]["failed"] == "it ended with status -9"
    same = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [str(row["run"]) for row in same] == ["0", "0", "1"]


def test_a_metric_that_is_better_when_lower_has_its_worst_at_the_other_end(tmp_path):
    (one,) = points_of({}, tmp_path)
    found = [Result(one, results(metric="loss", unit=""), better="lower")]
    write_results(tmp_path, found, required=80.0)
    rows = json.loads((tmp_path / "results.json").read_text())["runs"]
    values = np.round(PLAIN, 4).ravel()
    assert rows[0]["worst_5_percent"] == pytest.approx(
        np.quantile(values, 0.95), rel=1e-5
    )
    assert rows[0]["yield"] == pytest.approx(np.mean(values <= 80))


def test_a_cost_that_is_not_known_is_an_empty_cell(tmp_path):
    points = points_of({"a": (1, 2)}, tmp_path)
    known = {"energy_nj_per_example": 12.5, "area_mm2": None, "devices": 3}
    for one, cost in zip(points, (known, {"area_mm2": None})):
        write_run(one.folder, results(0.1), cost=cost)
    found = [read_result(one) for one in points]
    rows = cells(table(found))
    assert "mm²" not in rows[0] and rows[0]["nJ"] == "12.5" and rows[1]["nJ"] == ""
    write_results(tmp_path, found)
    written = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert "area_mm2" not in written[0] and "devices" not in written[-1]
