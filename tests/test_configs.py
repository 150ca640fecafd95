"""Every shipped configuration is valid, and its recipe takes two steps."""

import functools
import importlib.util
import json
import re
from pathlib import Path

import pytest

from hwtrain import cli
from hwtrain.train import MismatchConfig, read_config, train_plain

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))

# The main job runs elsewhere, and the slowest kind of training in small.
SHORT = ("digits_mlp_nnx",)
# Convolutions that are not optimised take ten times as long, in hundreds of steps.
LONG = (pytest.mark.nightly, pytest.mark.optimised)

# Instead of models that take minutes to compile without optimisations, or to run.
SMALL = {
    "cifar10": ['model="../recipes/cifar10.py:resnet8"'],
    "lm_100m": ['model="../recipes/lm.py:lm_tiny"', 'data="../recipes/lm.py:text"'],
}

OTHER_MODELS = (
    ("digits_dynapse", "reference_network"),
    ("time_series", "gru_nnx"),
    ("time_series", "lstm"),
)

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
    "chip_design": {"CHIPS": 2},
}
"""Recipes that are run as scripts, with what makes them short."""
RUNS = {
    "adabs": "digits_conv",
    "chip_design": "digits_pcm",
    "chip_in_the_loop": "digits_mlp",
}
"""The runs that scripts evaluate, by script."""

pytestmark = pytest.mark.usefixtures("tiny_cifar", "tiny_llama", "forgotten_parts")


def words(path, *more):
    return [str(path), *(word for each in more for word in ("--set", each))]


def before(path):
    """The name of the configuration whose run another one starts from, and where."""
    start = read_config(path).training.init_from
    found = start and re.fullmatch(r"\.\./runs/(\w+)/(.*)", start.path)
    return found.groups() if found else None


@pytest.mark.sampled(100)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_right(path, capsys):
    small = SMALL.get(path.stem, [])
    status = cli.main(["config", "check", *words(path, *small)])
    said, error = capsys.readouterr()
    earlier = before(path)
    if earlier is not None and not (path.parent / "../runs" / earlier[0]).exists():
        # The logits of a teacher come with the data.
        assert status == 2 and re.search(r"training\.init_from|data: ", error)
        assert earlier[0] in error
        return
    assert status == 0 and f"{path.name} is right" in said


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in SHORT else LONG, id=path.stem)
        for path in CONFIGS
    ],
)
def test_a_recipe_takes_two_steps(path, tmp_path):
    takes_two_steps(path, tmp_path / "run", tmp_path)
    config = read_config(path)
    robust = isinstance(config, MismatchConfig)
    names = {"config.json", "source.json", "plain"}
    names |= {"with-mismatch", "adversarial"} if robust else {"export"}
    names |= set() if robust else {"hardware-aware"}
    names |= {"initial.safetensors"} if config.training.init_from else set()
    found = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert found == names | {"results.json", "results.png"}


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "model"), OTHER_MODELS)
def test_another_model_of_a_recipe_takes_two_steps(name, model, tmp_path):
    path = ROOT / "configs" / f"{name}.toml"
    other = f'model="../recipes/{name}.py:{model}"'
    takes_two_steps(path, tmp_path / "run", tmp_path, other)


def takes_two_steps(path, out, tmp_path, *more, seeds=(0,)):
    """Trains for two steps, after the run that it starts from, if there is one."""
    quick = [f"training.seeds={list(seeds)}", "training.steps=2", "evaluation.chips=2"]
    config = read_config(path)
    quick += SMALL.get(path.stem, [])
    if isinstance(config, MismatchConfig):
        quick.append("evaluation.percent_deviation=[0.1]")
    elif config.evaluation.mismatch_std:
        quick.append("evaluation.mismatch_std=[0.1]")
    earlier = before(path)
    if earlier is not None:
        name, inner = earlier
        takes_two_steps(path.with_stem(name), tmp_path / name, tmp_path)
        quick.append(f"training.init_from={str(tmp_path / name / inner)!r}")
    command = ["train", *words(path, *quick, *more), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        if earlier is not None:
            patch.setenv("TEACHER", str(tmp_path / name / inner))
        assert cli.main(command) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["chips"] == 2 and results["seeds"] == list(seeds)
    for each in results["values_by_seed_and_chip"]:
        assert [len(values) for values in each["values"]] == [2] * len(seeds)


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
        takes_two_steps(path, *run, tmp_path, seeds=(0, 1))
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


def test_the_two_digits_configurations_differ_in_the_model_only():
    linen, nnx = (
        read_config(path) for path in CONFIGS if path.stem.startswith("digits_mlp")
    )
    assert linen.model != nnx.model
    assert (linen.training, linen.hardware) == (nnx.training, nnx.hardware)
    assert linen.evaluation == nnx.evaluation
