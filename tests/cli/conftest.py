"""A small run, trained once for all tests of commands that read a run."""

import importlib.util
from pathlib import Path

import pytest

from hwtrain import cli

CONFIG = Path(__file__).parents[2] / "configs" / "digits_mlp.toml"
QUICK = (
    "training.seeds=[3, 4]",
    "training.steps=20",
    "training.checkpoint_every=10",
    "evaluation.chips=2",
    "evaluation.mismatch_std=[0.05]",
)


@pytest.fixture(scope="session")
def train_words():
    """What trains that run, but for its folder."""
    overrides = [word for value in QUICK for word in ("--set", value)]
    return ["train", str(CONFIG), *overrides, "--out"]


@pytest.fixture(scope="session")
def run(train_words, tmp_path_factory):
    """The folder of a run of two training seeds."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main([*train_words, str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def conversions():
    """The functions of `conversions.py`."""
    path = Path(__file__).with_name("conversions.py")
    spec = importlib.util.spec_from_file_location("conversions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
