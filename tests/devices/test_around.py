"""Noise models around noise models: what the inner one does is kept, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.devices import Measurements, NoiseModel, fit_noise_model

QUIET = hw.StateIndependentNoiseModel(
    prog_noise_scale=0.0, drift_scale=0.0, read_noise_scale=0.0
)
FLICKER = hw.FlickerNoiseModel(
    noise_model=QUIET, relative_std=0.05, f_min_hz=1e-4, f_max_hz=1.0
)


FAILING = hw.RetentionFailures(noise_model=QUIET, law="weibull", scale_s=1e6, shape=1.0)


def written(within):
    return hw.WriteVerifyNoiseModel(noise_model=within, g_high=40.0)


def test_writing_keeps_the_memory_of_reads():
    model = written(FLICKER)
    devices = model.program(jax.random.key(0), jnp.full(2000, 10.0))
    one, other = (model.at(jax.random.key(k), devices, 60.0) for k in (1, 2))
    np.testing.assert_array_equal(one, other)
    assert 0.04 < np.std(one / devices.g_prog) < 0.06


@pytest.mark.parametrize("voltage, cycles", [(0.1, 1e6), (0.3, 1e6), (0.1, 0.0)])
def test_no_read_disturbs_nothing(voltage, cycles):
    model = hw.ReadDisturb(
        noise_model=QUIET,
        read_voltage_v=voltage,
        read_time_s=1e-7,
        reads_per_s=1e6,
        write_cycles=cycles,
    )
    assert model.factor(0.0) == 1
    assert np.isfinite(jax.grad(model.factor)(0.0))
    assert model.factor(1e12) < 1


@pytest.mark.parametrize("between", [lambda x: x, written])
def test_the_same_model_twice_is_refused(between):
    with pytest.raises(ValueError, match="draw the same numbers"):
        hw.FlickerNoiseModel(
            noise_model=between(FLICKER), relative_std=0.05, f_min_hz=1.0, f_max_hz=9.0
        )
    with pytest.raises(ValueError, match="state both effects in one"):
        hw.RetentionFailures(noise_model=FAILING, law="weibull", scale_s=1e6, shape=1.0)


def test_models_that_draw_nothing_may_stand_around_themselves():
    reads = {"read_voltage_v": 0.3, "read_time_s": 1e-7, "reads_per_s": 1e6}
    once = hw.ReadDisturb(noise_model=QUIET, **reads)
    twice = hw.ReadDisturb(noise_model=once, **reads)
    devices = twice.program(jax.random.key(0), jnp.full(3, 10.0))
    found = twice.mean_at(devices, 1e6)
    np.testing.assert_allclose(found, 10 * once.factor(1e6) ** 2, rtol=1e-6)
    assert once.factor(1e6) < 0.9


def test_corrections_belong_outside_of_pulses():
    corrected = hw.GradientProgrammedNoiseModel(noise_model=QUIET)
    with pytest.raises(ValueError, match="put write_verify inside"):
        written(corrected)
    assert hw.GradientProgrammedNoiseModel(noise_model=written(QUIET)).corrects


@hw.register("noise_model", "halved_by_a_correction")
class Halved(NoiseModel):
    g_max: float = 25.0

    def programming_sigma(self, g):
        return 0.0 * g

    def correct(self, key, devices, tiles):
        return tuple(self.adjust(key, x, -x.g_prog / 2) for x in devices)


def test_the_corrections_of_a_model_inside_are_made_first():
    x = jnp.ones((1, 6))
    model = hw.GradientProgrammedNoiseModel(
        noise_model=Halved(), iterations=1, examples=1, rate=1e-6
    )
    chip = hw.Hardware(
        noise_model=model, converter=hw.SinglePairConductanceConverter(g_max=25.0)
    )
    analog = hw.analogize(nn.Dense(4), chip)
    params = analog.init(jax.random.key(0), x)["params"]
    plan = hw.plan(analog, params, x)
    found = hw.program_chip(params, plan, hw.chip_key(0)).at(0.0)["kernel"]
    np.testing.assert_allclose(found, params["kernel"] / 2, rtol=1e-3, atol=1e-5)


def test_gradients_pass_straight_through_writing():
    def g(target):
        devices = written(QUIET).program(jax.random.key(0), target)
        return jnp.sum(devices.g_prog * jnp.arange(1.0, 4.0))

    slope = jax.grad(g)(jnp.array([5.0, 10.0, 20.0]))
    np.testing.assert_allclose(slope, [1.0, 2.0, 3.0], rtol=1e-6)


def test_failures_begin_after_programming():
    model = hw.RetentionFailures(
        noise_model=QUIET, law="weibull", scale_s=1.0, shape=0.01
    )
    devices = model.program(jax.random.key(0), jnp.full(1000, 10.0))
    assert (model.mean_at(devices, 0.0) == 10).all()
    assert (model.mean_at(devices, 1e-3) == 0).mean() > 0.5


def test_a_fit_looks_inside():
    rng = np.random.default_rng(0)
    measured = Measurements(
        g_target_us=np.full(40, 10.0),
        t_s=np.zeros(40),
        g_us=10 + rng.normal(size=40),
        repeat=np.arange(40),
    )
    hot = hw.AtTemperature(
        noise_model=FLICKER, temperature_k=320.0, conduction_ev=(0.01,)
    )
    with pytest.raises(ValueError, match="FlickerNoiseModel overrides program"):
        fit_noise_model(hot, measured)


def test_cold_devices_need_not_drift():
    cold = hw.AtTemperature(
        noise_model=hw.StateIndependentNoiseModel(),
        temperature_k=150.0,
        retention_ev=1.0,
    )
    warm = hw.AtTemperature(
        noise_model=hw.StateIndependentNoiseModel(),
        temperature_k=310.0,
        retention_ev=1.0,
    )
    assert not cold.must_drift(86_400.0) and warm.must_drift(86_400.0)


@pytest.mark.parametrize(
    "within, name, said",
    [
        (FLICKER, "f_min_hz", "stays static"),
        (FAILING, "scale_s", "no gradient"),
    ],
)
def test_what_has_no_slope_has_none_inside_another_model_either(within, name, said):
    x = jnp.ones((1, 6))
    chip = hw.Hardware(
        noise_model=written(within),
        converter=hw.SinglePairConductanceConverter(g_max=25.0),
    )
    analog = hw.analogize(nn.Dense(4), chip)
    params = analog.init(jax.random.key(0), x)["params"]
    plan = hw.plan(analog, params, x)

    def size(f):
        traced = hw.with_constants(plan, {f"noise_model.noise_model.{name}": f})
        chip = hw.program_chip(params, traced, hw.chip_key(0))
        return jnp.sum(chip.at(60.0, jax.random.key(1))["kernel"])

    with pytest.raises(ValueError, match=said):
        jax.grad(size)(1e4)
