"""`hwtrain sweep`: processes, interruptions and resuming."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwtrain import cli
from hwtrain.train import _folder as folder

ROOT = Path(__file__).parents[2]
CONFIG = """
model = "{root}/recipes/digits.py:mlp"
data = "{root}/recipes/digits.py:data"

[training]
steps = 40
checkpoint_every = 10
learning_rate = 2e-3

[hardware]
modifier = {{ type = "add_normal", std_dev = 0.1 }}
mismatch = {{ type = "add_normal", std_dev = 0.1 }}

[evaluation]
chips = 4
"""
GRID = ("--grid", "hardware.modifier.std_dev=0.1,0.3", "--jobs", "2")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(CONFIG.format(root=ROOT))
    return path


@pytest.fixture
def hwtrain(capsys):
    """Runs the command; returns its exit status, stdout and stderr."""

    def call(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call


def files(folder, pattern="results.*"):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob(pattern))
    }


def program(*words, errors=subprocess.DEVNULL):
    """Starts the command as a program, compiled as its runs are."""
    return subprocess.Popen(
        [sys.executable, "-m", "hwtrain", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def started(config, out, *words, errors=subprocess.DEVNULL):
    return program("sweep", config, *GRID, "--out", out, *words, errors=errors)


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], "either --grid"),
        (["--grid", "training.steps=1,2", "--search", "a=1:2"], "got both"),
        (["--search", "training.learning_rate=1e-3:1"], "--trials go together"),
        (["--grid", "training.steps=1,2", "--trials", 2], "--trials go together"),
        (["--grid", "training.steps=1,2", "--jobs", 0], "--jobs: expected at least 1"),
        (["--grid", "training.steps=1,2", "--seeds", 0], "--seeds: expected at least"),
        (["--grid", "training.step=1,2"], "did you mean training.steps"),
        (["--grid", "training.steps=1,x"], "training.steps: expected a whole number"),
        (["--grid", "training.steps"], "expected KEY=VALUE"),
        (["--search", "training.step=1:2", "--trials", 1], "training.step"),
    ],
)
def test_a_wrong_sweep_writes_nothing(config, tmp_path, hwtrain, words, expected):
    out = tmp_path / "sweep"
    status, _, error = hwtrain("sweep", config, *words, "--out", out)
    assert status == 2 and expected in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_two_processes_do_not_work_in_one_folder(
    config, tmp_path, hwtrain, command, monkeypatch
):
    monkeypatch.setattr(folder, "_TRIES", 2)
    out, words = tmp_path / "out", []
    if command == "sweep":
        words = ["--grid", "training.steps=1,2"]
    out.mkdir()
    with folder.alone_in(out):
        status, _, error = hwtrain(command, config, *words, "--out", out)
    assert status == 2 and "another process is at work here" in error
    assert error.count("\n") == 1 and not (out / "runs").exists()


@pytest.mark.nightly
def test_a_sweep_is_its_runs_by_hand(config, tmp_path, hwtrain):
    out = tmp_path / "sweep"
    status, said, error = hwtrain(
        "sweep", config, *GRID, "--seeds", 2, "--required", 50, "--out", out
    )
    assert status == 0, error
    assert "best: run " in said and "yield at 50" in said
    lines = said.splitlines()
    for number in range(2):
        (begun,) = (x for x in lines if x.startswith(f"run {number} of 2 started: "))
        (ended,) = (x for x in lines if x.startswith(f"run {number}: "))
        assert lines.index(begun) < lines.index(ended)
        what = begun.partition("started: ")[2]
        assert ended.startswith(f"run {number}: {what}: ")
    words = ["--set", "hardware.modifier.std_dev=0.3", "--set", "training.seeds=[0,1]"]
    alone = tmp_path / "alone"
    assert program("train", config, *words, "--out", alone).wait() == 0
    ours, theirs = files(alone), files(out / "runs" / "0001")
    assert ours == theirs
    assert (out / "logs" / "0001.txt").read_text().count("step 40/40") == 4
    before = files(out)
    status, _, error = hwtrain("sweep", config, *GRID, "--seeds", 2, "--out", out)
    assert status == 2 and "continue it with --resume" in error
    shutil.rmtree(out / "runs" / "0000")
    words = ["--seeds", 2, "--required", 50, "--out", out, "--resume"]
    assert hwtrain("sweep", config, *GRID, *words)[0] == 0
    assert files(out) == before
    words[1] = 3
    status, _, error = hwtrain("sweep", config, *GRID, *words)
    assert status == 2 and "config was" in error


@pytest.mark.nightly
def test_a_run_that_fails_does_not_end_the_others(config, tmp_path, hwtrain):
    out = tmp_path / "sweep"
    words = ["--grid", "training.learning_rate=1e3,1e-3", "--out", out]
    words += ["--set", 'training.optimizer="optax:sgd"']
    status, said, error = hwtrain("sweep", config, *words)
    assert status == 1 and "failed" in said
    assert "run 0: learning_rate 1000: failed: plain, seed 0: the loss" in error
    rows = json.loads((out / "results.json").read_text())["runs"]
    assert [row["run"] for row in rows] == [0, 1, 1]
    words[1] = "training.learning_rate=1e3"
    words[3] = tmp_path / "other"
    status, _, error = hwtrain("sweep", config, *words)
    assert status == 2 and "every run failed" in error


@pytest.mark.nightly
def test_a_search_is_repeated_from_what_it_found(config, tmp_path, hwtrain):
    out = tmp_path / "sweep"
    words = ["--search", "training.learning_rate=1e-4:1e-1:log", "--trials", 3]
    words += ["--set", "training.steps=5", "--jobs", 2, "--out", out]
    assert hwtrain("sweep", config, *words)[0] == 0
    before = files(out)
    shutil.rmtree(out / "runs" / "0001")
    shutil.rmtree(out / "runs" / "0002")
    assert hwtrain("sweep", config, *words, "--resume")[0] == 0
    assert files(out) == before


@pytest.mark.nightly
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_killed_at_any_time_ends_with_the_same_bits(config, tmp_path, sent):
    whole = tmp_path / "whole"
    begin = time.monotonic()
    assert started(config, whole).wait() == 0
    seconds, random_times = time.monotonic() - begin, random.Random(sent)
    for number in range(3):
        out = tmp_path / f"killed_{number}"
        process = started(config, out, errors=subprocess.PIPE)
        time.sleep(random_times.uniform(0.2, 1) * seconds)
        process.send_signal(sent)
        _, error = process.communicate()
        if sent == signal.SIGINT and process.returncode:
            assert process.returncode in (130, -signal.SIGINT)
            assert "--resume" in error or "hwtrain" not in error
        resumed = ["--resume"] if (out / "sweep.json").exists() else []
        last = started(config, out, *resumed, errors=subprocess.PIPE)
        _, error = last.communicate()
        assert last.returncode == 0, error
        assert files(out) == files(whole)


@pytest.mark.nightly
def test_runs_end_with_the_sweep_that_started_them(config, tmp_path):
    out = tmp_path / "sweep"
    process = started(config, out, "--set", "training.steps=100000")
    log = out / "logs" / "0000.txt"
    deadline = time.monotonic() + 120
    while not (log.exists() and "Writing" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.kill()
    process.wait()
    for _ in range(50):
        listed = subprocess.run(
            ["ps", "-ef"], capture_output=True, text=True, check=True
        ).stdout
        children = [x for x in listed.splitlines() if f"{process.pid} " in x]
        if not any("spawn_main" in line for line in children):
            break
        time.sleep(0.2)
    size = log.stat().st_size
    steps = [p.name for p in (out / "runs").rglob("*") if p.name.isdecimal()]
    time.sleep(3)
    assert log.stat().st_size == size
    assert [p.name for p in (out / "runs").rglob("*") if p.name.isdecimal()] == steps
