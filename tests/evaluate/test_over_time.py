"""Populations of programmed chips over time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy import stats

import hwtrain as hw
from hwtrain._arrays.random import draw_key
from hwtrain.devices import GlobalDriftCompensation
from hwtrain.evaluate import Population, population

DAY = 86_400.0
X = jax.random.normal(jax.random.key(1), (16, 12))


def size(y):
    return jnp.abs(y).mean(-1)


def run(analog, variables, **options):
    options = {"chips": 5, "key": jax.random.key(0), **options}
    return population(analog, variables, [(X,), (X[:8],)], size, **options)


@pytest.fixture(scope="module")
def pcm():
    analog = hw.analogize(nn.Dense(6), hw.presets.pcm())
    return analog, jax.jit(analog.init)(jax.random.key(0), X)


def test_times_are_an_axis_and_the_output_falls(pcm):
    times = (0.0, 60.0, 3600.0, DAY)
    result = run(*pcm, times_s=times)
    assert result.values.shape == (5, 4)
    assert result.times_s == times
    assert (np.diff(result.mean) < 0).all()
    low, high = result.interval
    assert low.shape == high.shape == result.std.shape == (4,)
    expected = stats.t.interval(
        0.95, 4, result.values.mean(0), stats.sem(result.values)
    )
    np.testing.assert_allclose((low, high), expected)
    assert (result.std > 0).all()


def test_without_times_it_is_just_after_programming(pcm):
    result, at_zero = run(*pcm), run(*pcm, times_s=[0.0])
    assert result.values.shape == (5,)
    assert result.times_s is None
    assert isinstance(result.mean, float)
    np.testing.assert_allclose(result.values, at_zero.values[:, 0], rtol=1e-6)
    assert len(set(result.values)) == 5


def test_compensation_keeps_the_output(pcm):
    hardware = dataclasses.replace(
        hw.presets.pcm(), drift_compensation=GlobalDriftCompensation()
    )
    analog = hw.analogize(nn.Dense(6), hardware)
    plain = run(*pcm, times_s=(0.0, DAY)).mean
    kept = run(analog, pcm[1], times_s=(0.0, DAY)).mean
    assert plain[1] < 0.75 * plain[0]
    np.testing.assert_allclose(kept[1], kept[0], rtol=0.1)


def test_a_chip_is_its_seed_and_a_loaded_checkpoint_the_model(pcm, tmp_path):
    analog, variables = pcm
    times = (0.0, DAY)
    whole = run(analog, variables, times_s=times).values
    some = run(analog, variables, times_s=times, chips=[4, 1], chunk=1).values
    np.testing.assert_allclose(some, whole[[4, 1]], rtol=1e-5)
    plan = hw.plan(analog, variables, X)
    loaded = hw.load(hw.export(tmp_path / "m", variables, plan, chip_seed=1))
    np.testing.assert_array_equal(run(analog, loaded, times_s=times).values, whole)


def test_nnx_gives_the_same_chips(pcm):
    _, variables = pcm
    twin = hw.analogize(nnx.Linear(12, 6, rngs=nnx.Rngs(0)), hw.presets.pcm())
    linen = run(*pcm, times_s=(0.0, DAY)).values
    found = run(twin, variables["params"], times_s=(0.0, DAY)).values
    np.testing.assert_allclose(found, linen, rtol=1e-5)


def test_times_that_float32_does_not_tell_apart_are_refused(pcm):
    year = 31_536_000.0
    with pytest.raises(ValueError, match="31536000.0 and 31536001.0, .* 2 s apart"):
        run(*pcm, times_s=(year, 0.0, year + 1))
    # The same time twice is one read, asked for twice.
    twice = run(*pcm, times_s=(year, year)).values
    np.testing.assert_array_equal(twice[:, 0], twice[:, 1])


def test_float64_has_times_a_second_apart_after_a_year():
    year = 31_536_000.0
    noise = {"relative_std": 0.2, "f_min_hz": 0.1, "f_max_hz": 10.0}
    quiet = hw.PCMLikeNoiseModel(read_noise_scale=0.0)
    chip = hw.Hardware(
        noise_model=hw.FlickerNoiseModel(noise_model=quiet, **noise),
        converter=hw.SinglePairConductanceConverter(g_max=25.0),
    )
    analog = hw.analogize(nn.Dense(6), chip)
    variables = analog.init(jax.random.key(0), X)
    times = (0.0, year, year + 1)
    short = run(analog, variables, times_s=times[:2]).values
    with jax.enable_x64(True):
        found = run(analog, variables, times_s=times).values
    # Where float32 has the time, it gives the same.
    np.testing.assert_allclose(found[:, :2], short, rtol=1e-5)
    assert (np.abs(found[:, 2] / found[:, 1] - 1) > 1e-3).all()


def test_times_that_change_nothing_or_are_none_are_errors(pcm):
    with pytest.raises(ValueError, match="at least one, none negative"):
        run(*pcm, times_s=(-1.0,))
    with pytest.raises(ValueError, match="at least one, none negative"):
        run(*pcm, times_s=())
    for t_s in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at least one, none negative"):
            run(*pcm, times_s=(t_s,))
    plain = hw.analogize(nn.Dense(6), hw.Hardware())
    with pytest.raises(ValueError, match="no weight of the plan has a noise model"):
        run(plain, pcm[1], times_s=(0.0,))


def test_one_chip_has_no_interval():
    one = Population(values=np.ones((1, 3)), seeds=(0,), times_s=(0.0, 1.0, 2.0))
    assert np.isnan(one.interval[0]).all()
    np.testing.assert_array_equal(one.std, np.zeros(3))


def test_converters_keep_the_scale_of_the_nominal_weights():
    # An ADC with a bound: scaled by the drifted weights, it would clip what it does
    # not, as its range would shrink with them.
    hardware = dataclasses.replace(
        hw.presets.pcm(),
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
        forward=hw.IOParameters(out_bound=0.5),
    )
    analog = hw.analogize(nn.Dense(6), hardware)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    scale = np.abs(np.asarray(variables["params"]["kernel"])).max()
    bias = np.asarray(variables["params"]["bias"])
    plan = hw.plan(analog, variables, X)
    options = {"chips": [3], "key": jax.random.key(0), "times_s": (3e7,)}
    read = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 3)
    time = int(np.float32(3e7).view(np.uint32))
    read = jax.random.fold_in(draw_key(read, "", "read"), time)

    @jax.jit
    def at(params, read):
        return hw.program_chip(params, plan, hw.chip_key(3)).at(3e7, read)

    y = np.asarray(X) @ np.asarray(at(variables["params"], read)["kernel"])
    assert 0.05 < np.mean(np.abs(y) > 0.5 * scale) < 0.95
    expected = np.abs(np.clip(y, -0.5 * scale, 0.5 * scale) + bias).mean()
    twin = hw.analogize(nnx.Linear(12, 6, rngs=nnx.Rngs(5)), hardware)
    for model, own in ((analog, variables), (twin, variables["params"])):
        found = population(model, own, [(X,)], size, **options)
        np.testing.assert_allclose(found.values[0, 0], expected, rtol=1e-5)


def test_a_time_gives_the_same_numbers_whatever_other_times_are_asked_for(pcm):
    alone = run(*pcm, times_s=(86_400.0,)).values
    for times in ((0.0, 86_400.0), (86_400.0, 60.0), (1.0, 86_400.0, 86_400.0)):
        found = run(*pcm, times_s=times).values
        for place, t_s in enumerate(times):
            if t_s == 86_400.0:
                # XLA may round otherwise for another number of times; another draw
                # would differ in the second digit.
                np.testing.assert_allclose(found[:, place], alone[:, 0], rtol=1e-6)
