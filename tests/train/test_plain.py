"""The plain model of a configuration, trained in memory."""

import chex
import pytest
from rich.console import Console

from hwtrain.train import compare, prepare, read_arrays, read_config, train_plain
from hwtrain.train._folder import make_folder

RECIPE = """
import numpy as np
from flax import linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dropout(0.1, deterministic=not train)(nn.Dense(3, name="head")(x))

def data():
    x = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)
    y = np.argmax(x[:, :3], axis=1).astype(np.int32)
    return (x[:64], y[:64]), (x[64:], y[64:])
"""
CONFIG = """
model = "recipe.py:Net"
data = "recipe.py:data"
[training]
seeds = [3]
steps = 5
batch_size = 16
ema = 0.5
[hardware]
[evaluation]
chips = 1
"""


def test_it_is_the_plain_model_of_the_run_bit_for_bit(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    file, out = tmp_path / "run.toml", tmp_path / "out"
    file.write_text(CONFIG)
    config = read_config(file)
    make_folder(out, config, tmp_path)
    compare(config, prepare(config, tmp_path), out, console=Console(quiet=True))
    stored = read_arrays(out / "plain/seed_3")
    found = train_plain(file, seed=3)
    chex.assert_trees_all_equal(
        found["params"]["head"]["kernel"], stored["params/head/kernel"]
    )
    mean = found["batch_stats"]["norm"]["mean"]
    chex.assert_trees_all_equal(mean, stored["batch_stats/norm/mean"])
    other = train_plain(file, ["training.steps=4"], seed=3)["params"]["head"]["kernel"]
    assert (other != found["params"]["head"]["kernel"]).any()


def test_a_training_that_diverges_or_has_no_plain_model_is_one_line(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    file = tmp_path / "run.toml"
    file.write_text(CONFIG)
    (tmp_path / "own.py").write_text(
        "import optax\ndef far(rate):\n    return optax.scale(1e38)\n"
    )
    with pytest.raises(ValueError, match="is NaN or infinite"):
        train_plain(file, ['training.optimizer="own.py:far"'])
    text = CONFIG.partition("[hardware]")[0].replace("ema = 0.5", "")
    file.write_text(text + "[mismatch]\n[evaluation]\n")
    with pytest.raises(ValueError, match="got one with a table"):
        train_plain(file)
