"""Measurements and times that cannot be are named, wherever they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.devices import Measurements, fit_noise_model

GOOD = {
    "g_target_us": np.full(12, 10.0),
    "t_s": np.zeros(12),
    "g_us": np.linspace(9.0, 11.0, 12),
    "repeat": np.arange(12),
}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("t_s", -5.0, r"t_s\[3\]: expected a finite number of at least 0, got -5"),
        ("t_s", np.nan, r"t_s\[3\]"),
        ("g_us", np.nan, r"g_us\[3\]: expected a finite number, got nan"),
        ("g_us", np.inf, r"g_us\[3\]"),
        ("g_target_us", -1.0, r"g_target_us\[3\]"),
    ],
)
def test_an_impossible_number_is_named(name, value, said):
    wrong = {**GOOD, name: GOOD[name].astype(float)}
    wrong[name][3] = value
    with pytest.raises(ValueError, match=said):
        Measurements(**wrong)


def test_lengths_are_those_of_the_reads():
    with pytest.raises(ValueError, match=r"t_s \(11,\)"):
        Measurements(**{**GOOD, "t_s": np.zeros(11)})


def test_reads_below_zero_are_measurements_too():
    low = {**GOOD, "g_us": GOOD["g_us"] - 10.0}
    assert Measurements(**low).g_us.min() < 0


def test_a_built_in_model_that_cannot_be_fitted_says_what_to_do():
    model = hw.FlickerNoiseModel(
        noise_model=hw.PCMLikeNoiseModel(), relative_std=0.1, f_min_hz=1e-3, f_max_hz=1
    )
    with pytest.raises(ValueError, match="Fit the noise model inside"):
        fit_noise_model(model, Measurements(**GOOD), names=("relative_std",))


@pytest.mark.parametrize("t_s", [1e13, 1e39, float("nan"), -1.0, "3", None, 5 + 0j])
def test_a_time_that_cannot_be_is_refused(t_s):
    analog = hw.analogize(nn.Dense(2), hw.presets.pcm())
    x = jnp.ones((1, 4))
    params = analog.init(jax.random.key(0), x)["params"]
    chip = hw.program_chip(params, hw.plan(analog, params, x), hw.chip_key(0))
    with pytest.raises(ValueError, match="t_s is the time since programming"):
        chip.at(t_s, key=jax.random.key(1))
    late = chip.at(1e12, key=jax.random.key(1))["kernel"]
    assert jnp.isfinite(late).all()
