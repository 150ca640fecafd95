"""The job that compares training methods under mismatch, in Linen and in NNX."""

import json
import textwrap

import jax
import numpy as np
import pytest
from rich.console import Console

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain.chips import chip_key
from hwtrain.train import contest, init_state, prepare_contest, read_config
from hwtrain.train._folder import make_folder, open_folder, read_run
from hwtrain.train._robustness import on_chips

RECIPE = """
import numpy as np
from flax import linen as nn
from flax import nnx


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(np.int32)
    return (x, y), (x[:32], y[:32])


def linen():
    return nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers_0 = nnx.Linear(3, 8, rngs=rngs)
        self.layers_2 = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.layers_2(nnx.relu(self.layers_0(x)))


def nnx_net(rngs):
    return Net(rngs)
"""

CONFIG = """
    model = "recipe.py:linen"
    data = "recipe.py:data"

    [training]
    steps = 40
    batch_size = 16
    learning_rate = 3e-2

    [mismatch]
    digital = ["layers_2/.*"]
    percent_deviation = 0.6

    [objective]
    type = "adversarial"
    attack_steps = 2

    [evaluation]
    chips = 6
    percent_deviation = [0.0, 0.9]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "c.toml").write_text(textwrap.dedent(CONFIG))
    return tmp_path


@pytest.mark.nightly
@pytest.mark.parametrize(
    "model", ["linen", pytest.param("nnx_net", marks=pytest.mark.nightly)]
)
def test_three_trainings_differ_and_are_evaluated_on_equal_chips(folder, model):
    config = read_config(folder / "c.toml", [f'model="recipe.py:{model}"'])
    ready = prepare_contest(config, folder)
    out = folder / "run"
    make_folder(out, config, folder)
    results = contest(config, ready, out, console=Console(quiet=True))
    assert [(r.model, round(r.mismatch_std, 6)) for r in results] == [
        (name, level)
        for level in (0.0, 0.3)
        for name in ("plain", "with mismatch", "adversarial")
    ]
    for result in results:
        assert result.values.shape == (1, 6)
        if result.mismatch_std == 0:
            assert (result.values == result.values[0, 0]).all()
            assert result.values[0, 0] > 80
    stored = json.loads((out / "results.json").read_text())
    assert "90 % deviation at 3 sigma" in stored["largest mismatch"]
    assert (out / "results.png").stat().st_size > 1000
    # The same initial parameters, other updates: the first step differs already.
    losses = {}
    for name, step in ready.steps.items():
        start = init_state(ready.plain.init(0), ready.optimizer)
        taken = next(ready.data.training(0, 0, None))
        losses[name] = float(step(start, taken, jax.random.key(1))[1])
    assert len(set(losses.values())) == 3


def test_chips_are_draws_of_the_nominal_parameters(folder):
    config = read_config(folder / "c.toml", ["evaluation.percent_deviation=[0.9]"])
    ready = prepare_contest(config, folder)
    assert [p for p, on in paths.leaves(ready.prototype).items() if on] == [
        "layers_0/kernel"
    ]
    start = init_state(ready.plain.init(0), ready.optimizer)
    params, (test,) = start.params, ready.data.evaluation()
    (found,) = on_chips(config, ready, {"plain": [start]})
    generate = hw.mismatch_generator(ready.prototype, 0.9, 3.0)
    for chip in range(6):
        drawn = generate(params, chip_key(chip))
        outputs = ready.plain.evaluate(drawn, {}, test)
        expected = 100 * np.mean(outputs.argmax(-1) == test.labels)
        np.testing.assert_allclose(found.values[0, chip], expected, rtol=1e-5)


def test_runs_are_continued_but_not_exported(folder):
    config = read_config(folder / "c.toml")
    make_folder(folder / "run", config, folder)
    keep = {"resume": True, "overwrite": False}
    assert open_folder(folder / "run", config, folder, **keep)
    with pytest.raises(ValueError, match="compares trainings under mismatch"):
        read_run(folder / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('mismatch.digital=["kernel"]', "'kernel' matches nothing that would deviate"),
        ('mismatch.digital=[".*"]', "nothing is left that deviates"),
        ("mismatch.sigma_rule=0.0", "mismatch.sigma_rule.*greater than 0"),
        ('training.objective={type="sharpness_aware"}', "table .objective."),
        ("training.early_stopping={every=5}", "early_stopping: does nothing beside"),
        ('objective={type="worst_of_chips"}', "objective"),
    ],
)
def test_bad_configurations(folder, override, message):
    with pytest.raises(ValueError, match=message):
        prepare_contest(read_config(folder / "c.toml", [override]), folder)
