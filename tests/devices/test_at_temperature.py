"""Devices at another temperature, against Arrhenius' law in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._errors import InputError
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.devices import Measurements, fit_noise_model
from hwtrain.devices.at_temperature import K_EV, arrhenius

DAY_S = 86_400.0
PCM = hw.PCMLikeNoiseModel()
HOT = hw.AtTemperature(
    noise_model=PCM, temperature_k=350.0, conduction_ev=(0.2, -0.15), retention_ev=0.6
)
CHIP = hw.Hardware(noise_model=HOT, converter=hw.SinglePairConductanceConverter())


def test_the_acceleration_is_that_of_the_literature():
    # 0.323 eV from 35 to 70 °C: the factor of 3.46 in Yang, Life cycle reliability
    # engineering, 2007, example 7.1, as it is worked out for ALTA.
    assert float(arrhenius(0.323, 343.15, 308.15)) == pytest.approx(3.46, abs=0.005)
    assert float(arrhenius(0.0, 400.0, 300.0)) == 1.0
    assert float(arrhenius(1.1, 300.0, 300.0)) == 1.0


def test_conductances_and_time_follow_arrhenius():
    g = jnp.linspace(0.0, 25.0, 6)
    devices = HOT.program(jax.random.key(0), g)
    cold = PCM.program(jax.random.key(0), g)
    np.testing.assert_array_equal(devices.g_prog, cold.g_prog)
    gap = (1 / 300.0 - 1 / 350.0) / 8.617333262e-5
    a = np.asarray(g, np.float64) / 25
    factor = np.exp((0.2 - 0.15 * a) * gap)
    older = 1e5 * np.exp(0.6 * gap)
    nu = np.asarray(devices.nu, np.float64)
    expected = np.asarray(devices.g_prog) * ((older + 20) / 20) ** -nu * factor
    np.testing.assert_allclose(HOT.mean_at(devices, 1e5), expected, rtol=2e-5)
    np.testing.assert_allclose(
        HOT.read_sigma(devices, 1e5), PCM.read_sigma(cold, older) * factor, rtol=2e-5
    )
    key = jax.random.key(1)
    np.testing.assert_allclose(
        HOT.at(key, devices, 1e5), PCM.at(key, cold, older) * factor, rtol=2e-5
    )


def test_the_reference_temperature_changes_nothing():
    same = dataclasses.replace(HOT, temperature_k=300.0)
    g = jnp.linspace(0.0, 25.0, 6)
    devices = PCM.program(jax.random.key(0), g)
    found, expected = same.mean_at(devices, 1e5), PCM.mean_at(devices, 1e5)
    np.testing.assert_array_equal(found, expected)


def test_reram_loses_its_state_faster_and_keeps_its_bounds():
    cmo = hw.ReRamCMONoiseModel()
    hot = hw.AtTemperature(noise_model=cmo, temperature_k=398.0, retention_ev=1.0)
    assert (hot.g_max, hot.g_min) == (cmo.g_max, cmo.g_min)
    assert not hasattr(HOT, "g_min")
    devices = hot.program(jax.random.key(0), jnp.full(1000, 50.0))
    older = 10.0 * np.exp((1 / 300 - 1 / 398) / K_EV)
    np.testing.assert_allclose(
        hot.mean_at(devices, 10.0), cmo.mean_at(devices, older), rtol=1e-5
    )


def test_it_is_written_read_and_described():
    assert from_dict(hw.Hardware, to_dict(CHIP)) == CHIP
    assert HOT.describe() == "pcm_like at 350 K"
    with pytest.raises(ValueError, match="changes nothing"):
        hw.AtTemperature(noise_model=PCM, temperature_k=350.0)
    with pytest.raises(ValueError, match="they must be the same"):
        dataclasses.replace(CHIP, converter=hw.SinglePairConductanceConverter(g_max=9))


def test_the_temperature_is_swept_and_has_a_slope():
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    params = analog.init(jax.random.key(1), x)["params"]
    plan = hw.plan(analog, params, x)

    def size(plan):
        return abs(hw.program_chip(params, plan, hw.chip_key(0)).at(DAY_S)["kernel"])

    def mean(kelvin):
        constants = {"noise_model.temperature_k": kelvin}
        return size(hw.with_constants(plan, constants)).mean()

    for kelvin in (320.0, 380.0):
        model = dataclasses.replace(HOT, temperature_k=kelvin)
        other = hw.analogize(nn.Dense(6), dataclasses.replace(CHIP, noise_model=model))
        expected = size(hw.plan(other, params, x)).mean()
        assert float(mean(kelvin)) == pytest.approx(float(expected), rel=1e-5)
    slope = (float(mean(351.0)) - float(mean(349.0))) / 2
    assert float(jax.grad(mean)(350.0)) == pytest.approx(slope, rel=0.02)
    both = {"noise_model.noise_model.g_max": 20.0, "converter.g_max": 20.0}
    assert size(hw.with_constants(plan, both)).mean() > 0
    with pytest.raises(ValueError, match="are one number"):
        hw.with_constants(plan, {"converter.g_max": 20.0})
    with pytest.raises(ValueError, match="are one number"):
        hw.with_constants(plan, {**both, "converter.g_max": 21.0})
    inner = {"noise_model.noise_model.drift_scale": 2.0}
    assert size(hw.with_constants(plan, inner)).mean() < size(plan).mean()


def test_a_nest_is_swept_at_one_temperature():
    """As chips that were configured at the other one; half of a nest is refused."""
    x = jax.random.normal(jax.random.key(0), (4, 10))

    def nest(kelvin):
        reads = {"read_voltage_v": 0.3, "read_time_s": 1e-5, "reads_per_s": 1e5}
        model = dataclasses.replace(HOT, temperature_k=kelvin)
        model = hw.ReadDisturb(noise_model=model, temperature_k=kelvin, **reads)
        model = hw.FlickerNoiseModel(
            noise_model=model, relative_std=0.01, f_min_hz=1e-6, f_max_hz=1e3
        )
        return hw.analogize(nn.Dense(6), dataclasses.replace(CHIP, noise_model=model))

    params = nest(330.0).init(jax.random.key(1), x)["params"]
    plan, other = (hw.plan(nest(k), params, x) for k in (330.0, 400.0))
    outer = "noise_model.noise_model.temperature_k"
    inner = "noise_model.noise_model.noise_model.temperature_k"

    def kernel(plan):
        return hw.program_chip(params, plan, hw.chip_key(0)).at(DAY_S)["kernel"]

    swept = kernel(hw.with_constants(plan, {outer: 400.0, inner: 400.0}))
    np.testing.assert_allclose(swept, kernel(other), rtol=1e-4)
    assert np.abs(swept - kernel(plan)).max() > 0.01
    jax.vmap(lambda k: kernel(hw.with_constants(plan, {outer: k, inner: k})))(
        jnp.array([330.0, 400.0])
    )
    for given in ({outer: 400.0}, {inner: 400.0}, {outer: 400.0, inner: 399.0}):
        with pytest.raises(InputError, match=f"'{outer}' and '{inner}' of kernel"):
            hw.with_constants(plan, given)
    with pytest.raises(InputError, match="give all of them the same value"):
        jax.jit(lambda k: kernel(hw.with_constants(plan, {outer: k})))(400.0)


def test_it_is_proved_exported_and_alike_in_both_frameworks(tmp_path):
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    variables = analog.init(jax.random.key(1), x)
    hw.assert_active(analog, variables, x)
    assert "at 350 K" in str(hw.inspect(analog, variables, x))
    plan = hw.plan(analog, variables, x)
    hw.export(tmp_path / "chip", variables, plan, chip_seeds=[3])
    loaded = hw.load(tmp_path / "chip")
    expected = hw.program_chip(variables["params"], plan, hw.chip_key(3)).at(DAY_S)
    found = loaded.chip(3, t_s=DAY_S)["kernel"]
    np.testing.assert_allclose(found, expected["kernel"], rtol=1e-5, atol=1e-6)

    model = nnx.Linear(10, 6, rngs=nnx.Rngs(0))
    model.kernel[...] = variables["params"]["kernel"]
    model = hw.analogize(model, CHIP, rngs=nnx.Rngs(mismatch=1))
    params = nnx.state(model, nnx.Param)
    of_nnx = hw.program_chip(params, hw.plan(model), hw.chip_key(3)).at(DAY_S)
    np.testing.assert_array_equal(of_nnx["kernel"][...], expected["kernel"])


def test_a_temperature_that_does_nothing_is_told(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    variables = analog.init(jax.random.key(1), x)
    cold = lambda self, devices, t_s: PCM.mean_at(devices, t_s)  # noqa: E731
    monkeypatch.setattr(hw.AtTemperature, "mean_at", cold)
    jax.clear_caches()
    with pytest.raises(ValueError, match="drift"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


def test_activation_energies_are_fitted_to_hot_devices():
    rng, gap = np.random.default_rng(0), (1 / 300 - 1 / 350) / K_EV
    target = np.repeat([5.0, 15.0, 25.0], 200)
    now = target + (0.3 + 0.02 * target) * rng.normal(size=600)
    g = now * np.exp((0.2 - 0.15 * target / 25) * gap)
    reads = Measurements(
        g_target_us=target, t_s=np.zeros(600), g_us=g, repeat=np.arange(600)
    )
    inner = hw.PCMLikeNoiseModel(prog_coeff=(0.3, 0.5), read_noise_scale=0.0)
    start = hw.AtTemperature(
        noise_model=inner, temperature_k=350.0, conduction_ev=(0.1, 0.0)
    )
    fit = fit_noise_model(start, reads, names=("conduction_ev",))
    (_, first, low, high), (_, second, lowest, highest) = fit.rows()
    assert low < 0.2 < high and lowest < -0.15 < highest
    assert abs(first - 0.2) < 0.01 and abs(second + 0.15) < 0.01


def test_what_stays_static_does_so_inside():
    cmo = hw.ReRamCMONoiseModel()
    hot = hw.AtTemperature(noise_model=cmo, temperature_k=398.0, retention_ev=1.0)
    bounds = {"g_max": cmo.g_max, "g_min": cmo.g_min}
    chip = hw.Hardware(
        noise_model=hot, converter=hw.SinglePairConductanceConverter(**bounds)
    )
    x = jnp.ones((1, 4))
    analog = hw.analogize(nn.Dense(3), chip)
    plan = hw.plan(analog, analog.init(jax.random.key(0), x), x)
    with pytest.raises(ValueError, match="stays static"):
        constants = {"noise_model.noise_model.acceptance_range": 2.0}
        hw.with_constants(plan, constants)


def test_a_population_is_evaluated_over_temperatures():
    x = jax.random.normal(jax.random.key(0), (8, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    variables = analog.init(jax.random.key(1), x)
    found = hw.evaluate.population(
        analog,
        variables,
        [(x,)],
        lambda y: abs(y).mean(-1),
        chips=2,
        times_s=(0.0,),
        key=jax.random.key(2),
        constants={"noise_model.temperature_k": (300.0, 330.0, 370.0)},
    )
    # Small conductances gain most, and at 0 s nothing has drifted.
    assert found.values.shape == (2, 3, 1)
    assert (np.diff(found.values, axis=1) > 0.05 * found.values[:, :1]).all()
