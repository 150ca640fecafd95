"""A full disk is reported in one line with path and free space, and no data is lost."""

import errno
import os
import resource
import shutil
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import HardwareCheckpointError, export
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint import _disk as disk
from hwtrain.evaluate import Population
from hwtrain.evaluate import _plots as plots
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train import _report as report
from hwtrain.train._folder import write_json
from hwtrain.train._loop import TrainState
from hwtrain.train._report import OnChips


def state(step, size=40_000):
    w = np.random.default_rng(step).normal(size=size).astype(np.float32)
    return TrainState(jnp.int32(step), {"w": jnp.asarray(w)}, {}, ())


@contextmanager
def largest_file(size):
    """No file of this process grows beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path, capfd, caplog):
    where = tmp_path / "seed_0"
    with checkpoints.open_checkpoints(where) as manager:
        checkpoints.save(manager, state(1))
    with pytest.raises(OSError) as error, largest_file(50_000):
        with checkpoints.open_checkpoints(where) as manager:
            checkpoints.save(manager, state(2))
    text = str(error.value)
    assert text.startswith(f"{where}: could not be written: File too large, ")
    assert "B free there; make room, and continue with --resume" in text
    assert "\n" not in text
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err + captured.out + caplog.text
    # The last good checkpoint is kept; the next attempt removes the remains of the
    # other.
    assert list(where.glob("*tmp*"))
    with checkpoints.open_checkpoints(where) as manager:
        assert not list(where.glob("*tmp*"))
        kept, _ = checkpoints.restore_latest(manager, state(0))
        checkpoints.save(manager, state(2))
    np.testing.assert_array_equal(kept.params["w"], state(1).params["w"])
    with checkpoints.open_checkpoints(where) as manager:
        assert int(checkpoints.restore_latest(manager, state(0))[0].step) == 2


def test_what_went_wrong_first_is_told(tmp_path):
    """An error inside is not replaced by that of the checkpoint still being written."""
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, state(1))
    with pytest.raises(KeyError, match="first"), largest_file(50_000):
        with checkpoints.open_checkpoints(tmp_path) as manager:
            checkpoints.save(manager, state(2))
            raise KeyError("first")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("wrap", [False, True])
def test_the_line_names_path_reason_and_free_space(tmp_path, monkeypatch, number, wrap):
    free = shutil.disk_usage(tmp_path)._replace(free=4_200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    text = os.strerror(number)
    error = ValueError(f"Failed: {text} [os_error_code='{number}']")
    with pytest.raises(OSError) as found:
        with disk.writing(tmp_path / "not" / "there"):
            raise error if wrap else OSError(number, text)
    expected = f"{tmp_path}/not/there: could not be written: {text}, 4.2 MB free there"
    assert str(found.value).startswith(expected)


def test_another_error_passes(tmp_path):
    with pytest.raises(ValueError, match="^shapes$"), disk.writing(tmp_path):
        raise ValueError("shapes")


def test_json_is_complete_or_not_there(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, [1])
    with pytest.raises(OSError, match="results.json: could not be written: File too"):
        with largest_file(1000):
            write_json(path, list(range(1000)))
    assert path.read_text() == "[\n  1\n]\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/x.json: could not be written: Not a dir"):
        write_json(tmp_path / "file" / "x.json", 1)


def plot_of_a_training(path):
    results = [OnChips(model="plain", mismatch_std=0.1, values=np.ones((2, 2)))]
    report.plot(results, path, title="title")


def plot_over_time(path):
    chips = Population(values=np.ones((2, 2)), seeds=(0, 1), times_s=(0.0, 60.0))
    plots.plot_over_time(chips, path, metric="accuracy", title="title")


@pytest.mark.parametrize("plot", [plot_of_a_training, plot_over_time])
def test_a_plot_is_complete_or_not_there(tmp_path, plot):
    with pytest.raises(OSError, match="a.png: could not be written: File too large"):
        with largest_file(2000):
            plot(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


PARAMS = {"w": np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)}
WRITERS = {
    "export": lambda path: export(path, PARAMS, Plan(())),
    "tensors": lambda path: _write(path / "x"),
    "file": lambda path: _write(path),
}


def _write(path):
    folder = path.name == "x"
    with destination.new(path.parent if folder else path, folder=folder) as partial:
        (partial / "x" if folder else partial).write_bytes(bytes(50_000))


@pytest.mark.parametrize("name", WRITERS)
def test_an_export_names_path_reason_and_free_space(tmp_path, monkeypatch, name):
    free = shutil.disk_usage(tmp_path)._replace(free=4_200_000)
    left = []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: left.extend(tmp_path.iterdir()) or free
    )
    with pytest.raises(HardwareCheckpointError) as error, largest_file(10_000):
        WRITERS[name](tmp_path / "chip")
    line = str(error.value)
    assert line.startswith(f"{tmp_path}/chip could not be written: ")
    assert "File too large" in line and ", 4.2 MB free there. Nothing was left" in line
    assert "\n" not in line
    # The error reports the free space after the partial export was removed.
    assert not left and not list(tmp_path.iterdir())
