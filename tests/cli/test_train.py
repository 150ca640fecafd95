"""Tests of `train`: from another folder, killed and resumed, with bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import chex
import pytest
import tomli_w

from hwtrain import checkpoint, cli
from hwtrain.train import _folder as folder
from hwtrain.train import read_config

ROOT = Path(__file__).parents[2]
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


def hwtrain(where, *words):
    """Runs the command in a process of its own."""
    return subprocess.run(
        command(*words), cwd=where, env=environment(), capture_output=True, text=True
    )


def exported(run):
    return checkpoint.load(run / "export" / "seed_0").params


@pytest.mark.nightly
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
        (["--set", 'data="../recipes/digits.py:mlp"'], "(train, evaluation), got MLP"),
        (["--set", 'training.optimizer="math:cos"'], "training.optimizer"),
        (
            ["--set", 'training.optimizer="optax:lbfgs"'],
            "expected optax:lbfgs to return an optax transformation that needs",
        ),
        (["--set", "training.steps=10\nfoo=1"], "expected one value, got 2 entries"),
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


RECIPE = """
import numpy as np
from flax import linen as nn

def data(images=np.ones((64, 8), np.float32), labels=np.arange(64) % 10):
    return (images, labels), (images, labels)

def broken_data():
    return {}["train"]

def float_labels():
    return data(labels=np.ones(64))

def many_labels():
    return data(labels=np.arange(64))

def model():
    return nn.Dense(10)

def broken_model():
    raise OSError("no\\nfile")

class Reshaping(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(3, 5))

def reshaping_model():
    return Reshaping()

class Summing(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x).sum(0)

def summing_model():
    return Summing()
"""


@pytest.mark.parametrize(
    "data, model, message",
    [
        ("broken_data", "model", "broken_data raised KeyError: 'train'"),
        ("data", "broken_model", "broken_model raised OSError: no"),
        ("data", "reshaping_model", "reshaping_model raised TypeError: cannot resh"),
        ("data", "summing_model", "expected outputs ["),
        ("float_labels", "model", "labels of whole numbers"),
        ("many_labels", "model", "expected labels from 0 to 9"),
    ],
)
def test_what_a_recipe_raises_is_one_line(tmp_path, capsys, data, model, message):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    words = ["--set", f'data="{recipe}:{data}"', "--set", f'model="{recipe}:{model}"']
    out = tmp_path / "run"
    assert cli.main(["train", str(CONFIG), *words, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not out.exists()


SMALL_RECIPE = (
    RECIPE
    + """
from flax import nnx

def fixed_model(rngs):
    return nnx.Linear(64, 10, rngs=rngs)

def negative(**_):
    return lambda step: 1.0 - step

def late_nan(**_):
    return lambda step: jax.numpy.where(step == 17, jax.numpy.nan, 1.0)

def late_inf(**_):
    return lambda step: 1.0 / (19.0 - step)

def of_strings(rate):
    return "adam"

def mean(outputs, batch):
    return outputs.mean()

def idle(apply, batch, train):
    return batch[0]

import jax, optax

def hungry(rate):
    return optax.GradientTransformationExtraArgs(
        lambda p: (), lambda u, s, p, *, value: (u, s)
    )

def whole_model():
    return nn.Dense(10, param_dtype=jax.numpy.int32)
"""
)


def schedule(function="optax:constant_schedule", arguments="{value=1.0}", layers="{}"):
    return (
        f'training.noise_schedule={{function="{function}", arguments={arguments}, '
        f"layers={layers}}}"
    )


OTHER_KEYS = [
    # override, the key that is named, and a part of the message
    (
        schedule(arguments="{value=-1.0}"),
        "training.noise_schedule",
        "-1 after 0 up",
    ),
    (schedule("R:negative"), "training.noise_schedule", "got -1 after 2 updates"),
    (schedule("R:late_nan"), "training.noise_schedule", "got nan after 17 updates"),
    (schedule("R:late_inf"), "training.noise_schedule", "got inf after 19 updates"),
    (
        schedule("R:gone"),
        "training.noise_schedule.function",
        "expected a function gone",
    ),
    (schedule(layers="{nowhere=1.0}"), "training.noise_schedule", "matches no layer"),
    (schedule(layers="{'a('=1.0}"), "training.noise_schedule.layers.a(", "pattern"),
    ('training.optimizer="R:gone"', "training.optimizer", "expected a function gone"),
    ('training.optimizer="R:of_strings"', "training.optimizer", "got str"),
    ('training.optimizer="R:hungry"', "training.optimizer", "value"),
    ('model="R:gone"', "model", "expected a function gone"),
    ('model="R:broken_model"', "model", "broken_model raised OSError: no"),
    ('model="R:summing_model"', "model", "expected outputs ["),
    ('model="R:data"', "model", "returns a Linen module"),
    ('data="R:gone"', "data", "expected a function gone"),
    ('data="R:broken_data"', "data", "broken_data raised KeyError: 'train'"),
    ('data="R:float_labels"', "data", "labels of whole numbers"),
    ('data="R:many_labels"', "data", "expected labels from 0 to 9"),
    ("training.batch_size=9999", "training.batch_size", "at most the"),
    ('task.loss="R:gone"', "task.loss", "expected a function gone"),
    ('task.loss="cross"', "task.loss", "expected one of softmax_cross_entropy"),
    ('task.loss="R:of_strings"', "task.loss", "of_strings raised TypeError"),
    ('task.loss="R:mean"', "task.loss", "one number for each example of a batch"),
    ('task.forward="R:gone"', "task.forward", "expected a function gone"),
    ('task.forward="R:idle"', "task.forward", "calls its first argument"),
    (
        'task.metrics={hits={function="R:mean", better="higher"}}',
        "task.metrics.hits",
        "one number for each example of a batch",
    ),
    (
        'training.early_stopping={every=5, metric="gone"}',
        "training.early_stopping.metric",
        "expected one of accuracy, got 'gone'",
    ),
    ("training.accumulate=5", "training.accumulate", "divided into 5 equal"),
    ("training.devices=32", "training.devices", "expected 32 devices"),
    ('rules=[{pattern="nowhere", digital=true}]', "rules", "nowhere"),
]


def told(override):
    """Returns an override as messages tell it: its key, if a folder makes it long."""
    return override if len(override) <= 100 else f"{override.partition('=')[0]}=..."


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("override", "key", "message"), OTHER_KEYS)
@pytest.mark.parametrize("where", ["override", "file"])
def test_a_rejection_names_place_and_key(
    tmp_path, capsys, override, key, message, where
):
    """Of the override, or of the file that has the entry."""
    (tmp_path / "recipe.py").write_text(SMALL_RECIPE)
    recipe = tmp_path / "recipe.py"
    override = override.replace("R:", f"{recipe}:")
    data = tomllib.loads(CONFIG.read_text())
    for name in ("model", "data"):
        data[name] = data[name].replace("..", str(ROOT))
    data["training"]["steps"] = 21
    words = ["--set", override]
    if where == "file":
        name, _, value = override.partition("=")
        *above, last = name.split(".")
        inner = data
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = tomllib.loads(f"x = {value}")["x"]
        words = []
    file = tmp_path / "wrong.toml"
    file.write_text(tomli_w.dumps(data))
    out = tmp_path / "run"
    assert cli.main(["train", str(file), *words, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    place = f"--set {told(override)}" if words else str(file)
    assert error.startswith(f"hwtrain: error: {place}: {key}: ")
    assert message in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ('mismatch.digital=["x/.*"]', "mismatch.digital", "matches nothing"),
        ('mismatch.digital=["a("]', "mismatch.digital.0", "pattern"),
        ('mismatch.digital=[".*"]', "mismatch.digital", "nothing is left"),
        ('model="R:gone"', "model", "expected a function gone"),
        ('training.optimizer="R:hungry"', "training.optimizer", "value"),
        ('training.objective={type="worst_of_chips"}', "training.objective", "nothing"),
        ('objective={type="mean_of_chips"}', "objective", ""),
    ],
)
def test_a_rejection_of_a_contest_names_place_and_key(
    tmp_path, capsys, override, key, message
):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(SMALL_RECIPE)
    override = override.replace("R:", f"{recipe}:")
    config = CONFIG.with_name("digits_dynapse.toml")
    words = ["--set", override, "--out", str(tmp_path / "run")]
    assert cli.main(["train", str(config), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hwtrain: error: --set {told(override)}: {key}: ")
    assert message in error and error.count("\n") == 1


def test_data_of_another_shape_are_named_with_the_network(tmp_path, capsys):
    """Neither alone is wrong."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(SMALL_RECIPE)
    for model in ("fixed_model", "reshaping_model"):
        words = [f'data="{recipe}:data"', f'model="{recipe}:{model}"']
        sets = [word for value in words for word in ("--set", value)]
        out = ["--out", str(tmp_path / "run")]
        assert cli.main(["train", str(CONFIG), *sets, *out]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"hwtrain: error: --set {told(words[0])}: data: ")
        assert f"{recipe}:{model} raised TypeError: " in error
        assert f"inputs=(1, 8), labels=(1,)) of {recipe}:data" in error
        assert error.count("\n") == 1


def test_a_run_whose_recipe_is_gone_names_its_file(run, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    (moved / "source.json").write_text(json.dumps({"folder": str(tmp_path)}))
    assert cli.main(["evaluate", str(moved)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hwtrain: error: {moved / 'config.json'}: data: ")
    assert error.count("\n") == 1


@pytest.mark.nightly
def test_a_learned_clip_is_trained_exported_and_evaluated(train_words, tmp_path):
    """The export holds the clipped weights, which are not those that were trained."""
    clip = ["--set", 'hardware.clip={type="learnable_per_channel"}']
    rate = ["--set", "training.learning_rate=0.1", "--set", "training.seeds=[3]"]
    out = tmp_path / "run"
    assert cli.main([*train_words, str(out), *clip, *rate]) == 0
    kept = checkpoint.load(out / "export" / "seed_3").params["hidden_0"]
    assert (abs(kept["kernel"]).max(0) <= kept["clip_bound"][0] * (1 + 1e-6)).all()
    assert cli.main(["evaluate", str(out / "export" / "seed_3"), "--chips", "1"]) == 0


def test_an_existing_run_is_left_alone(tmp_path, capsys):
    folder.make_folder(tmp_path / "run", read_config(CONFIG), ROOT)
    assert cli.main(["train", str(CONFIG), "--out", str(tmp_path / "run")]) == 2
    assert "--resume" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["config.json", "source.json"]


@pytest.mark.nightly
def test_a_run_without_its_end_is_resumed_and_ends_bit_identical(
    run, train_words, tmp_path, capsys
):
    """As above, in this process: what was written last is not there yet."""
    halted = tmp_path / "halted"
    shutil.copytree(run, halted)
    for name in ("results.json", "results.png"):
        assert (halted / name).stat().st_size > 100
        (halted / name).unlink()
    for gone in ("export", "hardware-aware/seed_4", "hardware-aware/seed_3/20"):
        shutil.rmtree(halted / gone)
    assert cli.main([*train_words, str(halted), "--resume"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "plain, seed 4: all 20 steps are done" in captured.out
    assert "hardware-aware, seed 3: continuing from step 10" in captured.out
    assert "Accuracy in %, mean ± standard deviation over 2 chips" in captured.out
    assert "(chip_mode)" in captured.out
    results = json.loads((halted / "results.json").read_text())
    assert [row["model"] for row in results["results"]] == ["plain", "hardware-aware"]
    assert (halted / "results.png").stat().st_size > 1000
    for seed in ("seed_3", "seed_4"):
        ours, theirs = (checkpoint.load(r / "export" / seed) for r in (halted, run))
        chex.assert_trees_all_equal(ours.params, theirs.params)
    name = "results.json"
    assert (halted / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.nightly
@pytest.mark.nightly
def test_a_damaged_checkpoint_is_one_line_and_a_terminal_without_sigma_is_fine(
    tmp_path,
):
    words = ["--set", "training.steps=40", "--set", "training.checkpoint_every=20"]
    words += ["--out", "run"]
    env = environment() | {"PYTHONIOENCODING": "ascii"}
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
    whole = subprocess.run(command(*words), env=env, **options)
    assert whole.returncode == 0, whole.stderr
    assert "mean ? standard deviation" in whole.stdout
    run = tmp_path / "run"
    latest = run / "hardware-aware" / "seed_0" / "40"
    for path in latest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])
    damaged = hwtrain(tmp_path, *words, "--resume")
    assert damaged.returncode == 2
    assert damaged.stderr.count("hwtrain: error: ") == 1
    assert f"{latest}: expected the checkpoint of step 40" in damaged.stderr
    assert "delete this folder to continue from step 20" in damaged.stderr
    assert "Traceback" not in damaged.stderr
    shutil.rmtree(latest)
    resumed = hwtrain(tmp_path, *words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "hardware-aware, seed 0: continuing from step 20" in resumed.stdout


@pytest.mark.nightly
def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path):
    """No file of the process grows beyond a size: checkpoints are larger."""
    words = ["--set", "training.steps=40", "--set", "training.checkpoint_every=20"]
    words += ["--out", "run"]
    env = {name: value for name, value in environment().items() if "CACHE" not in name}
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
    # In a shell: a function between fork and exec is not for a process with threads.
    small_files = ["sh", "-c", 'ulimit -f 20 && exec "$@"', "sh"]
    for more in ([], ["--resume"]):
        run = [*small_files, *command(*words, *more)]
        full = subprocess.run(run, env=env, **options)
        assert full.returncode == 2
        assert full.stderr.count("\n") == 1, full.stderr
        assert full.stderr.startswith("hwtrain: error: ")
        said = "run/plain/seed_0: could not be written: File too large, "
        assert said in full.stderr and "B free there" in full.stderr
    resumed = subprocess.run(command(*words, "--resume"), env=env, **options)
    assert resumed.returncode == 0 and resumed.stderr == "", resumed.stderr


def test_an_interrupt_says_how_to_resume(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hwtrain.train._job.compare", interrupt)
    out = str(tmp_path / "run")
    words = ["train", str(CONFIG), "--set", "training.steps=3", "--out", out]
    assert cli.main(words) == 130
    again = f"hwtrain train {CONFIG} --set training.steps=3 --out {out} --resume"
    assert capsys.readouterr().err.endswith(f"{again}\n")


def test_an_impossible_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", tmp_path / "file" / "a" / "run"):
        assert cli.main(["train", str(CONFIG), "--out", str(out)]) == 2
        assert capsys.readouterr().err == (
            f"hwtrain: error: {out}: cannot be made, because {tmp_path / 'file'} is a "
            "file; name another folder (docs/training.md)\n"
        )
