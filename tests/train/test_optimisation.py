"""A run's noise schedule and objective, from the configuration to the steps."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.train import Config, init_state, prepare, read_config
from hwtrain.train._config import TrainingParameter
from hwtrain.train._optimisation import base_optimizer, learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"
RAMP = (
    'training.noise_schedule={function="optax:linear_schedule", '
    "arguments={init_value=0.0, end_value=1.0, transition_steps=4}}"
)
SMALL = ["training.steps=8", "training.batch_size=16"]


def read(name, *overrides):
    return read_config(CONFIGS / name, [*SMALL, *overrides])


@functools.cache
def first_losses(config, steps=2):
    ready = prepare(config, CONFIGS)
    state = init_state(ready.aware.init(0), ready.aware_optimizer)
    source, losses = ready.data.training(0, 0, None), []
    for _ in range(steps):
        state, loss = ready.aware_step(state, next(source), jax.random.key(0))
        losses.append(float(loss))
    assert ready.aware_step._cache_size() == 1
    return losses


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["digits_mlp.toml", "digits_mlp_nnx.toml"])
def test_a_ramp_begins_without_noise(name):
    quiet = first_losses(read(name, "hardware.modifier.std_dev=0.0"))
    ramped = first_losses(read(name, RAMP))
    np.testing.assert_allclose(ramped[0], quiet[0], rtol=1e-5)
    assert abs(ramped[1] - quiet[1]) > 1e-4  # a quarter of the noise


@pytest.mark.nightly
def test_a_factor_of_all_layers_multiplies_the_schedule():
    quiet = first_losses(read("digits_mlp.toml", "hardware.modifier.std_dev=0.0"))
    constant = (
        'training.noise_schedule={{function="optax:constant_schedule", '
        'arguments={{value={}}}, layers={{".*"={}}}}}'
    )
    one, halves, none = (
        first_losses(read("digits_mlp.toml", constant.format(*pair)), steps=1)[0]
        for pair in ((0.25, 1), (0.5, 0.5), (2.0, 0.0))
    )
    np.testing.assert_allclose(none, quiet[0], rtol=1e-5)
    np.testing.assert_allclose(one, halves, rtol=1e-6)
    assert abs(one - none) > 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "digits_mlp.toml",
        pytest.param("digits_mlp_nnx.toml", marks=pytest.mark.nightly),
    ],
)
def test_an_objective_changes_the_loss(name):
    quiet = first_losses(read(name, "hardware.modifier.std_dev=0.0"))
    robust = first_losses(
        read(
            name,
            "hardware.modifier.std_dev=0.0",
            'training.objective={type="worst_of_chips", chips=3}',
        ),
        steps=1,
    )
    assert robust[0] > quiet[0] + 1e-3


def test_they_round_trip_and_their_errors_name_the_key():
    config = read("digits_mlp.toml", RAMP, 'training.objective={type="cvar_of_chips"}')
    assert from_dict(Config, to_dict(config)) == config
    assert hash(config.training.noise_schedule) is not None
    for override, expected in {
        'training.objective={type="gaussian"}': "training.objective: .*std_dev=0.1",
        'training.objective={type="adversarial", rho=0.1}': "rho=0.1 does nothing",
    }.items():
        with pytest.raises(ValueError, match=expected):
            read("digits_mlp.toml", override)
    for ramp, expected in {
        RAMP.replace("end_value", "end"): "training.noise_schedule: expected optax",
        RAMP.replace("optax:linear_schedule", "optax:adam"): "training.noise_schedule",
    }.items():
        with pytest.raises(ValueError, match=expected):
            prepare(read("digits_mlp.toml", ramp), CONFIGS)
    unknown = RAMP[:-1] + ', layers={"nowhere" = 0.5}}'
    with pytest.raises(ValueError, match="'nowhere' matches no layer"):
        prepare(read("digits_mlp.toml", unknown), CONFIGS)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_an_optimizer_is_given_the_schedule_of_the_learning_rate(tmp_path, schedule):
    (tmp_path / "own.py").write_text(
        "import optax\n\n\ndef half(rate):\n"
        "    return optax.sgd(lambda step: rate(step) / 2)\n"
    )
    training = TrainingParameter(
        steps=4, optimizer="own.py:half", learning_rate=0.8, schedule=schedule
    )
    optimizer = base_optimizer(training, learning_rate(training), tmp_path)
    state = optimizer.init(jnp.zeros(()))
    found = []
    for _ in range(4):
        change, state = optimizer.update(jnp.ones(()), state)
        found.append(-float(change))
    cosine = 0.2 * (1 + np.cos(np.pi * np.arange(4) / 4))
    expected = [0.4] * 4 if schedule == "constant" else cosine
    np.testing.assert_allclose(found, expected, rtol=1e-5)
