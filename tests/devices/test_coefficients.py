"""Own coefficients of every noise model, against NumPy and through every file."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hwtrain as hw
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.devices._around import AroundNoiseModel
from hwtrain.devices._programmed import Programmed

N = 20_000
# A correct estimator leaves 4.5 standard errors once in 150,000 keys.
Z = 4.5
LOG = (-0.02, 0.03, 0.04, 0.2)
OWN = {
    "pcm_like": hw.PCMLikeNoiseModel(
        prog_coeff=(0.1, 0.5),
        drift_mean_coeff=LOG,
        drift_std_coeff=(-0.01, 0.002, 0.004, 0.03),
        read_coeff=(0.02, 0.5, 0.1),
    ),
    "custom_drift_pcm_like": hw.CustomDriftPCMLikeNoiseModel(
        g_lst=(0.0, 25.0),
        nu_mean_lst=(0.1, 0.05),
        nu_std_lst=(0.02, 0.01),
        read_coeff=(0.02, 0.5, 0.1),
    ),
    "hermes": hw.HermesNoiseModel(
        drift_mean_start=0.3,
        drift_mean_log=LOG,
        drift_mean_coeff=(0.09, -0.05),
        drift_std_start=0.2,
        drift_std_log=(-0.01, 0.0, 0.01, 0.05),
        drift_std_coeff=(0.02,),
        read_start=0.5,
        read_log=(-0.01, 0.0, 0.01, 0.05),
        read_coeff=(0.01, 0.01),
    ),
    "state_independent": hw.StateIndependentNoiseModel(
        prog_coeff=(0.3, 0.1), drift_nu_mean=0.06, drift_nu_std=0.01
    ),
    "reram_wan2022": hw.ReRamWan2022NoiseModel(
        times_s=(10.0, 1e6), spread_coeff=((0.5, 1.0), (1.0, 3.0))
    ),
    "reram_cmo": hw.ReRamCMONoiseModel(
        prog_coeff=(0.2, 0.01, 1e-5),
        drift_mean_coeff=-0.2,
        drift_std_coeff=(0.1, 0.05),
        read_coeff=0.05,
        t_read=1e-5,
    ),
    "reram_milo": hw.ReRamMiloNoiseModel(prog_coeff=(1.0, 0.01, 1e-5)),
    "sonos": hw.SonosNoiseModel(
        times_s=(0.0, 1e4, 1e5),
        drift_mean_coeff=((0.0, 0.0), (1.0, -0.01), (2.0, -0.03)),
        spread_coeff=((20.0, 100.0), (25.0, 150.0), (30.0, 160.0)),
        read_coeff=(10.0, 100.0),
    ),
}


def test_every_noise_model_with_curves_of_its_own_is_here():
    from hwtrain._parts import registry

    every = {x: registry.named("noise_model", x) for x in registry.names("noise_model")}
    known = {
        name
        for name, kind in every.items()
        if kind.__module__.startswith("hwtrain.")
        and not issubclass(kind, AroundNoiseModel)
    }
    assert known - {"measured"} == set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_own_coefficients_are_written_and_read(name):
    model = OWN[name]
    assert from_dict(type(model), to_dict(model)) == model
    assert model.type == name and hash(model) != hash(None)


@pytest.mark.parametrize("name", OWN)
def test_devices_are_as_numpy_draws_them(name):
    model, t_s = OWN[name], 3e4
    held = types.SimpleNamespace(behaves=lambda sample: found.append(sample))
    found = []
    model.proof(held)
    (sample,) = found
    for share in (0.25, 0.9):
        g = np.full(N, share * model.g_max)
        written, drift, _ = sample(np.random.default_rng(1), g, t_s)
        devices = model.program(jax.random.key(0), jnp.asarray(g, jnp.float32))
        now = model.mean_at(devices, t_s)
        start = model.mean_at(devices, 0.0)
        for ours, theirs in ((devices.g_prog, written), (now - start, drift)):
            ours, scatter = np.asarray(ours, np.float64), theirs.std() / np.sqrt(N)
            floor = 1e-5 * model.g_max
            assert abs(ours.mean() - theirs.mean()) < Z * 1.5 * scatter + floor
            assert abs(ours.std() - theirs.std()) < Z * 1.5 * scatter + floor


def at(model, g, **numbers):
    g = jnp.asarray(g, jnp.float32)
    return Programmed(g_target=g, g_prog=g, **numbers)


G = np.array([0.5, 4.0, 9.0, 15.0])


def test_own_curves_of_phase_change_memory():
    model = OWN["pcm_like"]
    a = G / 25
    mean = np.clip(-0.02 * np.log(a) + 0.03, 0.04, 0.2)
    np.testing.assert_allclose(model.drift_mean(G), mean, rtol=1e-5)
    std = np.clip(-0.01 * np.log(a) + 0.002, 0.004, 0.03)
    np.testing.assert_allclose(model.drift_std(G), std, rtol=1e-5)
    np.testing.assert_allclose(model.programming_sigma(G), 0.1 + 0.5 * a, rtol=1e-5)
    sigma = G * np.minimum(0.02 / np.sqrt(a), 0.1)
    sigma *= np.sqrt(np.log((20 + 250e-9) / 500e-9))
    read = model.read_sigma(at(model, G, nu=jnp.zeros(4)), 0.0)
    np.testing.assert_allclose(read, sigma, rtol=1e-5)


def test_own_curves_of_hermes():
    model, a = OWN["hermes"], G / 20.7
    low = np.clip(-0.02 * np.log(a) + 0.03, 0.04, 0.2)
    mean = np.where(a < 0.3, low, 0.09 - 0.05 * a)
    np.testing.assert_allclose(model.drift_mean(G), mean, rtol=1e-5)
    low = np.clip(-0.01 * np.log(a), 0.01, 0.05)
    np.testing.assert_allclose(
        model.drift_std(G), np.where(a < 0.2, low, 0.02), rtol=1e-5
    )
    level = np.where(a < 0.5, low, 0.01 + 0.01 * a)
    growth = np.sqrt(np.log((300 + 512e-9) / (2 * 512e-9)))
    read = model.read_sigma(at(model, G, nu=jnp.zeros(4)), 0.0)
    np.testing.assert_allclose(read, G * level * growth, rtol=1e-5)


def test_own_relaxation_of_cmo_reram():
    model, g = OWN["reram_cmo"], np.array([20.0, 50.0])
    log_t = np.log(1e4)
    devices = at(model, g, xi=jnp.asarray([1.0, -2.0], jnp.float32))
    moved = -0.2 * log_t + (0.1 + 0.05 * log_t) * np.array([1.0, -2.0])
    np.testing.assert_allclose(model.mean_at(devices, 1e4), g + moved, rtol=1e-5)
    sigma = 0.05 * np.log10(g + moved) * np.sqrt(np.log((1e4 + 1e-5) / 2e-5))
    np.testing.assert_allclose(model.read_sigma(devices, 1e4), sigma, rtol=1e-5)
    np.testing.assert_allclose(
        model.programming_sigma(g), 0.2 + 0.01 * g + 1e-5 * g**2, rtol=1e-5
    )


def test_own_spread_of_reram_and_sonos():
    model = OWN["reram_wan2022"]
    middle = model.sigma_at(20.0, np.sqrt(1e7))
    np.testing.assert_allclose(middle, (1.0 + 2.5) / 2, rtol=1e-5)
    assert float(OWN["reram_milo"].programming_sigma(100.0)) == pytest.approx(2.1)
    sonos, current = OWN["sonos"], 0.1 * 1e3 * G[:3]
    moved = sonos.mean_at(at(sonos, G[:3], xi=jnp.zeros(3)), 5.5e4)
    expected = G[:3] + (1.5 - 0.02 * current) / 100
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_the_acceptance_range_decides_the_default_of_the_coefficients():
    assert hw.ReRamCMONoiseModel(acceptance_range=2.0).prog_coeff[0] == 0.0112185391
    own = hw.ReRamCMONoiseModel(acceptance_range=2.0, prog_coeff=(0.1,))
    assert own.prog_coeff == (0.1,)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("pcm_like", {"drift_mean_coeff": (0.0, 0.1, 0.2, 0.1)}, "least and the most"),
        ("pcm_like", {"drift_mean_coeff": (0.0, 0.1)}, "drift_mean_coeff"),
        ("reram_wan2022", {"times_s": (10.0, 1.0)}, "must rise"),
        ("reram_wan2022", {"times_s": (0.0, 1.0)}, "begin after 0 s"),
        ("reram_wan2022", {"times_s": (1.0, 2.0, 3.0)}, "3 times and rows of"),
        ("sonos", {"spread_coeff": ((1.0, 1.0),)}, "at least 2 entries"),
        ("sonos", {"read_coeff": (1.0, 0.0)}, "read_coeff"),
        ("sonos", {"drift_mean_coeff": ((0.0,), (1.0, 1.0), (1.0,))}, "equally many"),
    ],
)
def test_coefficients_that_do_not_fit_are_an_error(name, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OWN[name], **fields)


def test_own_currents_are_not_limited_by_the_measurements_of_others():
    with pytest.raises(ValueError, match="own drift_mean_coeff"):
        hw.SonosNoiseModel(g_max=32.0)
    assert dataclasses.replace(OWN["sonos"], g_max=32.0).g_max == 32.0


def test_an_adapter_says_that_it_loses_own_coefficients():
    from hwtrain.checkpoint.adapters._aihwkit_config import rpu_config

    model = OWN["pcm_like"]
    converter = hw.SinglePairConductanceConverter(g_max=25.0)
    chip = hw.Hardware(noise_model=model, converter=converter)
    text, lost = rpu_config({"layer": chip})
    assert "prog_coeff=[0.1, 0.5]" in text
    assert any("noise_model.drift_mean_coeff" in line for line in lost["layer"])
    plain = dataclasses.replace(chip, noise_model=hw.PCMLikeNoiseModel())
    assert not any("noise_model" in x for x in rpu_config({"layer": plain})[1]["layer"])
