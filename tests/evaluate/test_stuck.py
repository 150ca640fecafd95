"""Stuck devices act in chips of Linen and of NNX models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain
from hwtrain.devices import (
    PCMLikeNoiseModel,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
    StuckParameter,
)

X = jax.random.normal(jax.random.key(0), (6, 40))


def chip_type(at_g_min=0.0, at_g_max=0.0, **parts):
    parts = {"converter": SinglePairConductanceConverter(), **parts}
    stuck = StuckParameter(at_g_min=at_g_min, at_g_max=at_g_max)
    return hwtrain.Hardware(stuck=stuck, **parts)


def linen(chip):
    analog = hwtrain.analogize(nn.Dense(30), chip)
    return analog, jax.jit(analog.init)(jax.random.key(1), X)


def nnx_model(chip):
    rngs = nnx.Rngs(params=1, mismatch=2)
    return hwtrain.analogize(nnx.Linear(40, 30, rngs=rngs), chip, rngs=rngs), None


def first_output(y):
    return y[:, 0]


def outputs(model, variables, chips=4, **options):
    return hwtrain.evaluate.population(
        model,
        variables,
        [(X,)],
        first_output,
        chips=chips,
        key=jax.random.key(3),
        **options,
    ).values


@pytest.mark.parametrize("build", [linen, nnx_model])
def test_chips_differ_by_their_stuck_devices(build):
    healthy = outputs(*build(chip_type()))
    stuck = outputs(*build(chip_type(0.05, 0.02)))
    assert len(set(healthy.tolist())) == 1
    assert len(set(stuck.tolist())) == 4
    np.testing.assert_array_equal(outputs(*build(chip_type(0.05, 0.02)), [2]), stuck[2])


@pytest.mark.parametrize("build", [linen, nnx_model])
@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 1.0)])
def test_a_pair_of_stuck_devices_is_a_weight_of_zero(build, ends):
    np.testing.assert_allclose(outputs(*build(chip_type(*ends))), 0, atol=1e-6)


def test_a_single_stuck_device_is_the_largest_weight():
    chip = chip_type(at_g_max=1.0, converter=SingleDeviceConductanceConverter())
    analog, variables = linen(chip)
    largest = variables["params"]["kernel"].max()
    expected = (X @ jnp.full((40,), largest)).mean()
    np.testing.assert_allclose(outputs(analog, variables), expected, rtol=1e-5)


def test_stuck_devices_neither_drift_nor_have_read_noise():
    noise = {"noise_model": PCMLikeNoiseModel(read_noise_scale=3.0)}
    analog, variables = linen(chip_type(at_g_max=1.0, **noise))
    params, plan = variables["params"], hwtrain.plan(analog, variables, X)
    chip = hwtrain.program_chip(params, plan, hwtrain.chip_key(5))
    for device in chip.weights["kernel"].devices:
        np.testing.assert_array_equal(device.g_prog, 25.0)
    later = chip.at(1e6, jax.random.key(9))["kernel"]
    np.testing.assert_allclose(later, 0, atol=1e-6)


def test_half_of_the_devices_stuck_halves_the_mean_weight():
    chip = chip_type(at_g_min=0.5)
    analog = hwtrain.analogize(nn.Dense(400, use_bias=False), chip)
    variables = jax.jit(analog.init)(jax.random.key(1), X)
    plan = hwtrain.plan(analog, variables, X)
    params = variables["params"]
    kernel = hwtrain.program_chip(params, plan, hwtrain.chip_key(0)).at(0.0)["kernel"]
    kept = np.asarray(kernel / params["kernel"])
    # g_neg of a positive weight is at g_min already; stuck there, it changes nothing.
    assert np.all((abs(kept) < 1e-6) | (abs(kept - 1) < 1e-5))
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / np.sqrt(kept.size)


def test_inspect_says_the_shares():
    row = hwtrain.inspect(nnx_model(chip_type(0.05, 0.002))[0]).rows[0]
    assert row["stuck"] == "5.00% at g_min, 0.20% at g_max"
