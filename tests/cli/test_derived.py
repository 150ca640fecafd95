"""The commands on a recipe whose layers derive their weights."""

import numpy as np

import hwtrain
from hwtrain import cli

RECIPE = """
import numpy as np
from flax import linen as nn

def data():
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    return (x[:32], y[:32]), (x[32:], y[32:])

class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(2, name="head"), name="norm")(x)

def model():
    return Model()
"""
CONFIG = """
model = "recipe.py:model"
data = "recipe.py:data"
[training]
seeds = [0]
steps = 2
batch_size = 16
optimizer = "optax:sgd"
learning_rate = 1e-2
[hardware.modifier]
type = "add_normal"
std_dev = 0.1
[hardware.mismatch]
type = "add_normal"
std_dev = 0.1
[hardware.converter]
type = "single_pair"
g_max = 25.0
[evaluation]
chips = 2
mismatch_std = [0.1]
[export]
chip_seed = 0
"""


def test_a_run_exports_what_its_layers_multiply_by(tmp_path, capsys):
    (tmp_path / "recipe.py").write_text(RECIPE)
    config, run = tmp_path / "config.toml", str(tmp_path / "run")
    config.write_text(CONFIG)
    assert cli.main(["train", str(config), "--out", run]) == 0
    path = tmp_path / "run" / "export" / "seed_0"
    checkpoint = hwtrain.load(path)
    params = checkpoint.params
    kernel = np.float64(params["head"]["kernel"])
    scale = np.asarray(params["norm"]["head/kernel/scale"])
    expected = scale * kernel / np.linalg.norm(kernel, axis=0)
    found = checkpoint.reconstruct("head/effective_kernel")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for words in (
        ["verify", str(path)],
        ["evaluate", str(path), "--chips", "2"],
        ["export", run, str(tmp_path / "again"), "--chips", "1"],
    ):
        assert cli.main(words) == 0, capsys.readouterr().err
    again = hwtrain.load(tmp_path / "again").reconstruct("head/effective_kernel")
    np.testing.assert_array_equal(again, found)
