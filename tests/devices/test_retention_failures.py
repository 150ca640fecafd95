"""Failures of devices, against closed forms of their survival."""

import dataclasses
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.devices.at_temperature import K_EV

N = 40_000
# A correct estimator leaves 4.5 standard errors once in 150,000 keys.
Z = 4.5
DAY_S = 86_400.0
PCM = hw.PCMLikeNoiseModel()
MODEL = hw.RetentionFailures(
    noise_model=PCM, law="weibull", scale_s=1e5, shape=0.7, g_fail=1.0
)
CHIP = hw.Hardware(noise_model=MODEL, converter=hw.SinglePairConductanceConverter())


def survival(model, t_s):
    if model.law == "weibull":
        return np.exp(-((t_s / model.scale_s) ** model.shape))
    return NormalDist().cdf(-np.log(t_s / model.scale_s) / model.shape)


def alive(model, devices, t_s):
    return np.asarray(model.mean_at(devices, t_s)) != np.float32(1.0)


@pytest.mark.parametrize("law", ["weibull", "lognormal"])
@pytest.mark.parametrize("shape", [0.5, 2.0])
def test_devices_survive_as_the_closed_form_says(law, shape):
    model = dataclasses.replace(MODEL, law=law, shape=shape)
    devices = model.program(jax.random.key(0), jnp.full(N, 20.0))
    for t_s in (1e3, 2e4, 1e5, 4e5, 2e6):
        share = survival(model, t_s)
        error = np.sqrt(max(share * (1 - share), 1 / N) / N)
        assert abs(alive(model, devices, t_s).mean() - share) < Z * error, t_s
    assert alive(model, devices, 0.0).all()


def test_the_first_of_a_million_devices_fail_when_they_should():
    model = dataclasses.replace(MODEL, shape=2.0)
    devices = model.program(jax.random.key(0), jnp.full(10**6, 20.0))
    t_s = 1e5 * (2e-5) ** 0.5
    failed = (~alive(model, devices, t_s)).sum()
    # Poisson with a mean of 20.
    assert abs(failed - 20) < Z * np.sqrt(20)


def test_a_device_fails_once_and_for_ever():
    devices = MODEL.program(jax.random.key(0), jnp.full(N, 20.0))
    before = np.ones(N, bool)
    for t_s in np.geomspace(1e3, 1e7, 9):
        now = alive(MODEL, devices, t_s)
        assert not (now & ~before).any()
        before = now
    key = jax.random.key(1)
    read, sigma = MODEL.at(key, devices, 1e5), MODEL.read_sigma(devices, 1e5)
    dead = ~alive(MODEL, devices, 1e5)
    assert (np.asarray(read)[dead] == 1.0).all() and not np.asarray(sigma)[dead].any()
    healthy = PCM.at(key, devices, 1e5)
    np.testing.assert_array_equal(np.asarray(read)[~dead], np.asarray(healthy)[~dead])


def test_failures_are_independent_of_programming():
    for inner in (PCM, hw.ReRamWan2022NoiseModel(g_max=25.0), hw.ReRamCMONoiseModel()):
        model = dataclasses.replace(MODEL, noise_model=inner)
        devices = model.program(jax.random.key(0), jnp.full(N, 20.0))
        numbers = devices.xi if devices.nu is None else devices.nu
        for other in (devices.g_prog, numbers):
            found = np.corrcoef(devices.life, other)[0, 1]
            assert abs(found) < Z / np.sqrt(N)


def test_heat_accelerates_failures():
    hot = hw.AtTemperature(noise_model=MODEL, temperature_k=358.0, retention_ev=1.1)
    devices = hot.program(jax.random.key(0), jnp.full(N, 20.0))
    faster = np.exp(1.1 / K_EV * (1 / 300 - 1 / 358))
    for t_s in (5.0, 50.0):
        share = survival(MODEL, t_s * faster)
        error = np.sqrt(share * (1 - share) / N)
        assert abs(alive(hot, devices, t_s).mean() - share) < Z * error
        assert 0.02 < share < 0.98


def test_it_is_written_read_and_described():
    assert from_dict(hw.Hardware, to_dict(CHIP)) == CHIP
    assert "weibull failures around 1e+05 s" in MODEL.describe()
    with pytest.raises(ValueError, match="shape"):
        dataclasses.replace(MODEL, shape=0.0)
    other = PCM.program(jax.random.key(0), jnp.ones(3))
    with pytest.raises(ValueError, match="never fail"):
        MODEL.mean_at(other, 1.0)


def test_it_is_proved_exported_and_alike_in_both_frameworks(tmp_path):
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    variables = analog.init(jax.random.key(1), x)
    hw.assert_active(analog, variables, x)
    assert "weibull failures" in str(hw.inspect(analog, variables, x))
    plan = hw.plan(analog, variables, x)
    hw.export(tmp_path / "chip", variables, plan, chip_seeds=[3])
    loaded = hw.load(tmp_path / "chip")
    chip = hw.program_chip(variables["params"], plan, hw.chip_key(3))
    for t_s in (0.0, 1e5, 1e7):
        expected = chip.at(t_s)["kernel"]
        found = loaded.chip(3, t_s=t_s)["kernel"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    hw.checkpoint.verify(tmp_path / "chip")

    model = nnx.Linear(10, 6, rngs=nnx.Rngs(0))
    model.kernel[...] = variables["params"]["kernel"]
    model = hw.analogize(model, CHIP, rngs=nnx.Rngs(mismatch=1))
    params = nnx.state(model, nnx.Param)
    of_nnx = hw.program_chip(params, hw.plan(model), hw.chip_key(3)).at(1e7)
    np.testing.assert_array_equal(of_nnx["kernel"][...], expected)


def test_failures_that_do_nothing_are_told(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    variables = analog.init(jax.random.key(1), x)
    for_ever = lambda self, devices, t_s: PCM.mean_at(devices, t_s)  # noqa: E731
    monkeypatch.setattr(hw.RetentionFailures, "mean_at", for_ever)
    jax.clear_caches()
    with pytest.raises(ValueError, match="drift"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


@pytest.mark.parametrize("name", ["scale_s", "shape"])
def test_when_devices_fail_has_no_slope(name):
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    params = analog.init(jax.random.key(1), x)["params"]
    plan = hw.plan(analog, params, x)

    def mean(number):
        traced = hw.with_constants(plan, {f"noise_model.{name}": number})
        return hw.program_chip(params, traced, hw.chip_key(0)).at(1e5)["kernel"].sum()

    with pytest.raises(ValueError, match=f"no gradient to 'noise_model.{name}'"):
        jax.grad(mean)(getattr(MODEL, name) * 1.1)
