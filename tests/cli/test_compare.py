"""`hwtrain compare` against SciPy on the values of the runs' files."""

import json

import numpy as np
import pytest
from scipy import stats

from hwtrain import cli


@pytest.fixture
def hwtrain(capsys):
    """Runs the command; returns its exit status, stdout and stderr."""

    def call(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call


def values_of(run, model):
    data = json.loads((run / "results.json").read_text())
    found = [x for x in data["values_by_seed_and_chip"] if x["model"] == model]
    return np.mean(found[0]["values"], axis=0)


def test_two_models_of_one_run_are_compared_chip_by_chip(run, tmp_path, hwtrain):
    out = tmp_path / "differences.json"
    words = ["--models", "plain", "hardware-aware", "--json", out]
    status, said, _ = hwtrain("compare", run, run, *words)
    assert status == 0 and "on the same 2 chips" in said
    (found,) = json.loads(out.read_text())["differences"]
    one, two = (values_of(run, name) for name in ("plain", "hardware-aware"))
    expected = stats.ttest_rel(two, one).confidence_interval()
    np.testing.assert_allclose(found["interval"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["difference"], np.mean(two - one), atol=1e-4)
    assert found["mismatch_std"] == 0.05
    assert f"{np.mean(two - one):+.2f}" in said


def test_a_run_does_not_differ_from_itself(run, hwtrain):
    status, said, _ = hwtrain("compare", run, run)
    assert status == 0 and "+0.00" in said and "50 %" in said


def changed(run, folder, key, value):
    """A copy of a run's files with another entry in its configuration."""
    folder.mkdir()
    config = json.loads((run / "config.json").read_text())
    *above, last = key.split(".")
    inner = config
    for step in above:
        inner = inner[step]
    inner[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_bytes((run / "results.json").read_bytes())
    return folder


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("evaluation.seed", 5, "the same evaluation"),
        ("evaluation.chips", 5, "the same evaluation"),
        ("task.loss", "mean_squared_error", "the same task"),
    ],
)
def test_runs_that_were_measured_otherwise_are_refused(
    run, tmp_path, hwtrain, key, value, expected
):
    other = changed(run, tmp_path / "other", key, value)
    status, _, error = hwtrain("compare", run, other)
    assert status == 2 and expected in error and error.count("\n") == 1


def test_runs_of_other_training_are_compared(run, tmp_path, hwtrain):
    other = changed(run, tmp_path / "other", "training.learning_rate", 0.5)
    assert hwtrain("compare", run, other)[0] == 0


def test_equal_test_data_of_other_functions_is_compared(run, tmp_path, hwtrain):
    """As in a distilled run, whose training data has the logits of a teacher."""
    other = changed(run, tmp_path / "other", "data", "other.py:data")
    assert hwtrain("compare", run, other)[0] == 0
    # Runs of earlier versions do not say which data it was.
    data = json.loads((run / "results.json").read_text())
    del data["test_data"]
    (other / "results.json").write_text(json.dumps(data))
    status, _, error = hwtrain("compare", run, other)
    assert status == 2 and "the same data" in error and error.count("\n") == 1


def test_another_loss_beside_equal_metrics_is_compared(run, tmp_path, hwtrain):
    metrics = {"right": {"function": "a/mine.py:right", "better": "higher"}}
    one = changed(run, tmp_path / "one", "task", {"loss": "a", "metrics": metrics})
    moved = {"right": {"function": "b/mine.py:right", "better": "higher"}}
    task = {"loss": "b", "metrics": moved}
    other = changed(run, tmp_path / "other", "task", task)
    assert hwtrain("compare", one, other)[0] == 0
    moved["right"]["function"] = "b/mine.py:wrong"
    third = changed(run, tmp_path / "third", "task", task)
    status, _, error = hwtrain("compare", one, third)
    assert status == 2 and "the same task" in error


def test_other_test_data_of_the_same_name_is_refused(run, tmp_path, hwtrain):
    other = changed(run, tmp_path / "other", "training.steps", 5)
    data = json.loads((run / "results.json").read_text())
    assert len(data["test_data"]) == 64
    data["test_data"] = "0" * 64
    (other / "results.json").write_text(json.dumps(data))
    status, _, error = hwtrain("compare", run, other)
    assert status == 2 and "the same test data" in error and error.count("\n") == 1


def test_what_is_no_run_is_one_line(run, tmp_path, hwtrain):
    status, _, error = hwtrain("compare", run, tmp_path)
    assert status == 2 and "expected the folder of a run" in error
    status, _, error = hwtrain("compare", run, run, "--models", "plain", "noisy")
    assert status == 2 and "one of the models plain, hardware-aware" in error
    other = changed(run, tmp_path / "other", "training.steps", 5)
    (other / "results.json").unlink()
    status, _, error = hwtrain("compare", run, other)
    assert status == 2 and "a run that has ended" in error
