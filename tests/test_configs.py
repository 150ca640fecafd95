"""Every shipped configuration is valid, and its recipe takes two steps."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest
from rich.console import Console

from hwtrain.train import MismatchConfig, job_of, read_config, train_plain
from hwtrain.train._folder import make_folder

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
SCRIPTS = {
    "adabs": {"CHIPS": 2, "INPUTS": 64, "TIMES_S": {"1 day": 86_400.0}},
    "adapters": {
        "CHIPS": 2,
        "SEEDS": (0, 1),
        "STEPS": 2,
        "TIMES_S": {"1 day": 86_400.0},
    },
    "chip_in_the_loop": {
        "CHIPS": 1,
        "STEPS": 2,
        "ROUNDS": 2,
        "MISMATCH": {"and 10 % stuck": 0.2},
    },
}
"""Recipes that are run as scripts, with what makes them short."""
RUNS = {"adabs": "digits_conv", "chip_in_the_loop": "digits_mlp"}
"""The runs that scripts evaluate, by script."""


# The main job runs elsewhere, and the slowest kind of training in small.
SHORT = ("digits_mlp_nnx",)
# Convolutions that are not optimised take ten times as long, in hundreds of steps.
LONG = (pytest.mark.nightly, pytest.mark.optimised)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in SHORT else LONG, id=path.stem)
        for path in CONFIGS
    ],
)
def test_a_recipe_takes_two_steps(path, tmp_path):
    results, config = two_steps(path, tmp_path / "run", tmp_path)
    assert {result.values.shape for result in results} == {(1, 2)}
    robust = isinstance(config, MismatchConfig)
    names = {"config.json", "source.json", "plain"}
    names |= {"with-mismatch", "adversarial"} if robust else {"export"}
    names |= set() if robust else {"hardware-aware"}
    names |= {"initial.safetensors"} if config.training.init_from else set()
    found = {p.name for p in (tmp_path / "run").iterdir()}
    assert found == names | {"results.json", "results.png"}


def two_steps(path, out, tmp_path, seeds=(0,)):
    """Trains for two steps, after the run that it starts from, if there is one."""
    quick = [f"training.seeds={list(seeds)}", "training.steps=2", "evaluation.chips=2"]
    config = read_config(path)
    if isinstance(config, MismatchConfig):
        quick.append("evaluation.percent_deviation=[0.1]")
    elif config.evaluation.mismatch_std:
        quick.append("evaluation.mismatch_std=[0.1]")
    start = config.training.init_from
    before = start and re.fullmatch(r"\.\./runs/(\w+)/(.*)", start.path)
    if before:
        earlier = tmp_path / before[1]
        two_steps(path.with_stem(before[1]), earlier, tmp_path)
        quick.append(f"training.init_from={str(earlier / before[2])!r}")
    config = read_config(path, quick)
    make_folder(out, config, path.parent)
    prepare, run = job_of(config)
    ready = prepare(config, path.parent)
    return run(config, ready, out, console=Console(quiet=True)), config


@pytest.mark.nightly
@pytest.mark.optimised
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_prints_its_table(name, tmp_path, monkeypatch, capsys):
    file = ROOT / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for constant, value in SCRIPTS[name].items():
        assert hasattr(script, constant)
        monkeypatch.setattr(script, constant, value)
    run = []
    if name in RUNS:
        run = [tmp_path / "run"]
        path = ROOT / "configs" / f"{RUNS[name]}.toml"
        two_steps(path, *run, tmp_path, seeds=(0, 1))
    else:
        short = functools.partial(train_plain, overrides=["training.steps=2"])
        monkeypatch.setattr(script.train, "train_plain", short)
    script.main(*run)
    said = capsys.readouterr().out
    assert len(re.findall(r"\d+\.\d+ ± \d+\.\d+", said)) >= 2 and "nan" not in said


def test_every_script_is_run_here():
    scripts = {
        path.stem
        for path in (ROOT / "recipes").glob("*.py")
        if "__main__" in path.read_text("utf-8")
    }
    assert scripts == set(SCRIPTS)
    for path in (ROOT / "recipes").glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 200


def test_the_two_digits_configurations_differ_in_the_model_only():
    linen, nnx = (
        read_config(path) for path in CONFIGS if path.stem.startswith("digits_mlp")
    )
    assert linen.model != nnx.model
    assert (linen.training, linen.hardware) == (nnx.training, nnx.hardware)
    assert linen.evaluation == nnx.evaluation
