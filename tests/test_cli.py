"""Tests of the command: from another folder, killed and resumed, given bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

from hwtrain import checkpoint, cli

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "digits_mlp.toml"
SMALL = [
    "--set",
    "training.seeds=[0]",
    "--set",
    "evaluation.chips=2",
    "--set",
    "evaluation.mismatch_std=[0.3]",
    "--set",
    "training.checkpoint_every=100",
]


def command(*words):
    return [sys.executable, "-m", "hwtrain", "train", str(CONFIG), *SMALL, *words]


def environment():
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}


def hwtrain(folder, *words):
    """Runs the command in a process of its own."""
    return subprocess.run(
        command(*words), cwd=folder, env=environment(), capture_output=True, text=True
    )


def exported(folder):
    return checkpoint.load(folder / "export" / "seed_0").params


def test_the_main_job_killed_and_resumed_ends_bit_identical(tmp_path):
    length = ["--set", "training.steps=1500"]
    whole = hwtrain(tmp_path, *length, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr == ""
    assert "Accuracy in %, mean ± standard deviation over 2 chips" in whole.stdout
    assert "(chip_mode)" in whole.stdout
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert [row["model"] for row in results["results"]] == ["plain", "hardware-aware"]
    assert (tmp_path / "whole" / "results.png").stat().st_size > 1000

    # In the terms of the user: the machine goes down in the middle of the second model.
    killed = tmp_path / "killed"
    words = [*length, "--out", "killed"]
    with subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
    ) as process:
        first = killed / "hardware-aware" / "seed_0" / "100"
        while not first.exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (killed / "export").exists(), "the run ended before it was killed"

    resumed = hwtrain(tmp_path, *words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "hardware-aware, seed 0: continuing from step" in resumed.stdout
    chex.assert_trees_all_equal(exported(killed), exported(tmp_path / "whole"))
    name = "results.json"
    assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--set", "training.stpes=3"], "did you mean training.steps?"),
        (["--set", "hardware.modifier.std_dev=-1"], "got -1"),
        (["--set", "training.batch_size=9999"], "at most the 1347 examples"),
        (["--set", 'model="../recipes/digits.py:mpl"'], "did you mean mlp?"),
        (["--set", 'data="../recipes/gone.py:data"'], "gone.py, got none"),
        (["--set", 'model="../recipes/digits.py:data"'], "returns a Linen module"),
        (["--set", 'data="../recipes/digits.py:mlp"'], "(inputs, labels)), got MLP"),
        (["--set", 'training.optimizer="math:cos"'], "training.optimizer"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(CONFIG), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("hwtrain: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not any(tmp_path.iterdir())


def test_an_existing_run_is_left_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["train", str(CONFIG), "--out", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_interrupt_says_how_to_resume(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hwtrain.training.compare", interrupt)
    out = str(tmp_path / "run")
    words = ["train", str(CONFIG), "--set", "training.steps=3", "--out", out]
    assert cli.main(words) == 130
    again = f"hwtrain train {CONFIG} --set training.steps=3 --out {out} --resume"
    assert capsys.readouterr().err.endswith(f"{again}\n")


def test_an_impossible_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "run")
    assert cli.main(["train", str(CONFIG), "--out", out]) == 2
    assert capsys.readouterr().err.count("\n") == 1
