"""SONOS flash and multilevel ReRAM, against CrossSim's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.devices import ReRamMiloNoiseModel, SonosNoiseModel
from hwtrain.devices._programmed import Programmed

DAY_S = 86_400.0


def devices(g, xi):
    return Programmed(g_target=g, g_prog=g, xi=jnp.full_like(g, xi))


@pytest.mark.parametrize("name, xi", [("zero", 0.0), ("plus_one", 1.0)])
def test_sonos_moves_and_spreads_as_in_crosssim(golden, name, xi):
    case, model = golden("crosssim_devices"), SonosNoiseModel()
    g = jnp.asarray(case["g_us"], jnp.float32)
    for days, expected in zip(case["times_days"], case[name], strict=True):
        found = model.mean_at(devices(g, xi), days * DAY_S)
        # A polynomial of tenth degree in float32.
        np.testing.assert_allclose(found, expected, atol=2e-5 * model.g_max)


def test_reads_of_sonos_are_as_in_crosssim(golden):
    case, model = golden("crosssim_devices"), SonosNoiseModel()
    g = jnp.asarray(case["g_us"], jnp.float32)
    found = g + model.read_sigma(devices(g, 0.0), 0.0)
    np.testing.assert_allclose(found, case["read_plus_one"], atol=2e-6 * model.g_max)


def test_sonos_stays_after_five_days_and_scales_turn_it_off(golden):
    model = SonosNoiseModel()
    g = jnp.linspace(0.0, 16.0, 9)
    then, later = (model.mean_at(devices(g, 1.0), t * DAY_S) for t in (5.0, 500.0))
    np.testing.assert_array_equal(then, later)
    off = SonosNoiseModel(prog_noise_scale=0.0, drift_scale=0.0, read_noise_scale=0.0)
    np.testing.assert_allclose(off.mean_at(devices(g, 1.0), DAY_S), g, rtol=1e-6)
    np.testing.assert_array_equal(off.read_sigma(devices(g, 1.0), DAY_S), 0)


def test_another_read_voltage_is_another_current():
    half = SonosNoiseModel(g_max=32.0, v_read=0.05)
    g = jnp.linspace(0.0, 16.0, 9)
    for t_s in (0.0, DAY_S):
        np.testing.assert_allclose(
            half.mean_at(devices(2 * g, 1.0), t_s),
            2 * SonosNoiseModel().mean_at(devices(g, 1.0), t_s),
            rtol=1e-5,
            atol=1e-6,
        )
    with pytest.raises(ValueError, match="1800 nA"):
        SonosNoiseModel(g_max=20.0)


def test_multilevel_reram_is_programmed_as_in_crosssim(golden):
    case, model = golden("crosssim_devices"), ReRamMiloNoiseModel()
    g = jnp.asarray(case["milo_g_us"], jnp.float32)
    found = g + model.programming_sigma(g)
    np.testing.assert_allclose(found, case["milo_plus_one"], rtol=1e-6)


PRESETS = {"sonos": hw.presets.sonos(), "reram_milo": hw.presets.reram_milo()}


@pytest.mark.parametrize("name", PRESETS)
def test_chips_are_proved_exported_and_alike_in_both_frameworks(name, tmp_path):
    chip = PRESETS[name]
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), chip)
    variables = analog.init(jax.random.key(1), x)
    hw.assert_active(analog, variables, x)
    assert name in str(hw.inspect(analog, variables, x))
    plan = hw.plan(analog, variables, x)
    hw.export(tmp_path / "chip", variables, plan, chip_seeds=[3])
    loaded = hw.load(tmp_path / "chip")
    expected = hw.program_chip(variables["params"], plan, hw.chip_key(3)).at(DAY_S)
    found = loaded.chip(3, t_s=DAY_S)["kernel"]
    # The polynomial of tenth degree is rounded as its program does it.
    np.testing.assert_allclose(found, expected["kernel"], rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(expected["kernel"] - variables["params"]["kernel"])) > 1e-3

    model = nnx.Linear(10, 6, rngs=nnx.Rngs(0))
    model.kernel[...] = variables["params"]["kernel"]
    model = hw.analogize(model, chip, rngs=nnx.Rngs(mismatch=1))
    params = nnx.state(model, nnx.Param)
    of_nnx = hw.program_chip(params, hw.plan(model), hw.chip_key(3)).at(DAY_S)
    np.testing.assert_array_equal(of_nnx["kernel"][...], expected["kernel"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_that_draws_nothing_is_told(name, monkeypatch):
    chip = PRESETS[name]
    model = type(chip.noise_model)
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), chip)
    variables = analog.init(jax.random.key(1), x)
    monkeypatch.setattr(
        model,
        "program",
        lambda self, key, g: dataclasses.replace(
            devices(g, 0.0), xi=None if name == "reram_milo" else jnp.zeros_like(g)
        ),
    )
    jax.clear_caches()
    with pytest.raises(ValueError, match="noise_model"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()
