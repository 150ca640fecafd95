"""A small run, trained once for all tests of the commands that read one."""

from pathlib import Path

import pytest
from rich.console import Console

from hwtrain.training import compare, folder, prepare, read_config

CONFIG = Path(__file__).parents[2] / "configs" / "digits_mlp.toml"


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a run of two training seeds."""
    quick = [
        "training.seeds=[3, 4]",
        "training.steps=20",
        "evaluation.chips=2",
        "evaluation.mismatch_std=[0.05]",
    ]
    config = read_config(CONFIG, quick)
    out = tmp_path_factory.mktemp("runs") / "run"
    folder.make_folder(out, config, CONFIG.parent)
    ready = prepare(config, CONFIG.parent)
    compare(config, ready, out, console=Console(quiet=True))
    return out
