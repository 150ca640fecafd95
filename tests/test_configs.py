"""Every shipped configuration is valid, and its recipe takes two steps."""

from pathlib import Path

import pytest
from rich.console import Console

from hwtrain.train import MismatchConfig, job_of, read_config
from hwtrain.train._folder import make_folder

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


# The main job runs elsewhere, and the slowest kind of training in small.
SHORT = ("digits_mlp_nnx",)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, marks=() if path.stem in SHORT else pytest.mark.nightly, id=path.stem
        )
        for path in CONFIGS
    ],
)
def test_a_recipe_takes_two_steps(path, tmp_path):
    quick = ["training.seeds=[0]", "training.steps=2", "evaluation.chips=2"]
    robust = isinstance(read_config(path), MismatchConfig)
    level = "percent_deviation" if robust else "mismatch_std"
    config = read_config(path, [*quick, f"evaluation.{level}=[0.1]"])
    out = tmp_path / "run"
    make_folder(out, config, path.parent)
    prepare, run = job_of(config)
    results = run(
        config, prepare(config, path.parent), out, console=Console(quiet=True)
    )
    assert {result.values.shape for result in results} == {(1, 2)}
    names = {"config.json", "source.json", "plain"}
    names |= {"with-mismatch", "adversarial"} if robust else {"export"}
    names |= set() if robust else {"hardware-aware"}
    assert {p.name for p in out.iterdir()} == names | {"results.json", "results.png"}


def test_the_two_digits_configurations_differ_in_the_model_only():
    linen, nnx = (
        read_config(path) for path in CONFIGS if path.stem.startswith("digits_mlp")
    )
    assert linen.model != nnx.model
    assert (linen.training, linen.hardware) == (nnx.training, nnx.hardware)
    assert linen.evaluation == nnx.evaluation
