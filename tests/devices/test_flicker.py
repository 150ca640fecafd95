"""1/f noise with a memory: covariance, spectrum, moments, chips, exports, proof."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.checkpoint import verify
from hwtrain.devices import flicker
from hwtrain.devices.flicker import flicker_noise

N = 20_000
NUMBER = jax.random.normal(jax.random.key(0), (N,))
BAND = {"f_min_hz": 1e-3, "f_max_hz": 10.0}


def noise(t_s, number=NUMBER, components=32, **band):
    return np.asarray(
        flicker_noise(number, t_s, components=components, **{**BAND, **band}),
        np.float64,
    )


def covariance(lag, f_min_hz, f_max_hz):
    """The integral of the cosine over the logarithm of the frequency, by NumPy."""
    u = (np.arange(200_000) + 0.5) / 200_000
    f = f_min_hz * (f_max_hz / f_min_hz) ** u
    return np.mean(np.cos(2 * np.pi * f * lag))


@pytest.mark.parametrize("components", [4, 32])
@pytest.mark.parametrize("start", [0.0, 1e4])
@pytest.mark.parametrize("lag", [0.0, 0.02, 0.3, 5.0, 100.0])
def test_reads_are_correlated_as_a_spectrum_of_one_over_f(components, start, lag):
    # At 1e4 s, float32 has steps of 1 ms.
    now, later = (noise(t, components=components) for t in (start, start + lag))
    lag = float(np.float32(start + lag)) - start
    found = np.mean(now * later)
    expected = covariance(lag, **BAND)
    # A product of two numbers of variance 1 varies by at most that of a square: 2.
    assert abs(found - expected) < 4.5 * np.sqrt(2 / N)
    for each in (now, later):
        assert abs(each.mean()) < 4.5 / np.sqrt(N)
        # Of K cosines, the square varies by 2 - 3 / (2 K).
        assert abs(np.mean(each**2) - 1) < 4.5 * np.sqrt((2 - 1.5 / components) / N)


def test_the_spectrum_falls_as_one_over_f():
    # 4 Hz for 1,024 s, of a band that is wider on both sides.
    n, rate = 4096, 4.0
    t = jnp.arange(n) / rate
    number = jax.random.normal(jax.random.key(1), (400,))
    found = jax.jit(
        jax.vmap(
            lambda t: flicker_noise(
                number, t, f_min_hz=1e-4, f_max_hz=2.0, components=64
            )
        )
    )(t)
    window = np.hanning(n)[:, None]
    power = np.mean(np.abs(np.fft.rfft(np.asarray(found) * window, axis=0)) ** 2, 1)
    f = np.fft.rfftfreq(n, 1 / rate)
    edges = np.geomspace(0.01, 1.0, 13)
    places = np.digitize(f, edges)
    of = [places == k for k in range(1, len(edges))]
    x = [np.mean(np.log(f[here])) for here in of]
    y = [np.log(np.mean(power[here] * f[here]) / np.exp(a)) for here, a in zip(of, x)]
    slope, _ = np.polyfit(x, y, 1)
    assert abs(slope + 1) < 0.05
    # The density itself: 1 / (f ln(f_max / f_min)) on one side.
    density = power / (rate * np.sum(window**2) / 2)
    inside = (f > 0.01) & (f < 1.0)
    ratio = np.mean(density[inside] * f[inside]) * np.log(2.0 / 1e-4)
    assert abs(ratio - 1) < 0.05


def test_it_becomes_normal_with_more_components():
    for components in (4, 64):
        fourth = np.mean(noise(7.0, components=components) ** 4)
        spread = np.sqrt(96 / N)  # of the fourth power of a normal number
        assert abs(fourth - (3 - 1.5 / components)) < 4.5 * spread


@pytest.mark.parametrize("t_s", [1e2, 1e5, 1e8, 1e12])
def test_steps_of_time_of_many_cycles_are_independent(t_s):
    band = {"f_min_hz": 1e-6, "f_max_hz": 1e3}
    times = [np.float32(t_s), np.nextafter(np.float32(t_s), np.float32(np.inf))]
    found = [noise(t, components=8, **band) for t in times]
    # The components that are slower than the step are related.
    lag = float(times[1]) - float(times[0])
    expected = covariance(lag, **band)
    assert abs(np.mean(found[0] * found[1]) - expected) < 4.5 * np.sqrt(2 / N)


@pytest.mark.parametrize("components", [4, 32])
@pytest.mark.parametrize("decades", [1, 4, 15])
def test_lines_between_frequencies_change_the_covariance_within_the_bound(
    components, decades
):
    # Over frequencies that are as dense as lines between powers make them.
    cells = 64 * components
    ends = 10.0 ** (decades * (np.arange(cells + 1) / cells - 1))
    inside = (np.arange(200) + 0.5) / 200
    f = (ends[:-1, None] + np.diff(ends)[:, None] * inside).ravel()
    h = decades * np.log(10) / cells
    for lag in (0.1, 1.0, 30.0):
        found = np.mean(np.cos(2 * np.pi * f * lag))
        expected = covariance(lag, f_min_hz=10.0**-decades, f_max_hz=1.0)
        assert abs(found - expected) < h / 2 + h**2 / 12


def test_frequencies_are_uniform_in_their_logarithm():
    # Far below one turn of all components but one, cosines show that frequency.
    place = jax.random.bits(jax.random.key(4), (200_000,), jnp.uint32)
    highest, *shares = flicker._shares(1e-3, 10.0, 4)
    share = np.asarray(flicker._share(place, *shares), np.float64) / 2**32
    u = np.sort(1 + np.log(share) / np.log(10.0))
    # The Kolmogorov-Smirnov distance, at a level of 1e-4.
    assert np.max(np.abs(u - np.arange(u.size) / u.size)) < 2.23 / np.sqrt(u.size)
    np.testing.assert_allclose(
        (highest[:, 1] * 2.0**32 + highest[:, 0]) / 2.0**63,
        10.0 ** np.arange(-3, 1),
        rtol=1e-15,
    )


def model(**fields):
    quiet = hw.StateIndependentNoiseModel(
        read_noise_scale=0.0, prog_noise_scale=0.0, drift_scale=0.0
    )
    return hw.FlickerNoiseModel(
        **{"noise_model": quiet, "relative_std": 0.05, **BAND, **fields}
    )


def test_reads_of_a_chip_share_it_and_other_chips_have_their_own():
    devices = model()
    g = jnp.full((4000,), 20.0)
    one, other = (devices.program(jax.random.key(k), g) for k in (0, 1))
    keys = jax.random.split(jax.random.key(2))
    first = devices.at(keys[0], one, 50.0)
    np.testing.assert_array_equal(first, devices.at(keys[1], one, 50.0))
    assert abs(jnp.std(first) - 1.0) < 4.5 / np.sqrt(2 * 4000)
    soon, late = (devices.at(keys[1], one, t) for t in (50.01, 5e4))
    chip = devices.at(keys[0], other, 50.0)
    related = [np.corrcoef(first, each)[0, 1] for each in (soon, late, chip)]
    assert related[0] > 0.9
    assert max(map(abs, related[1:])) < 4.5 / np.sqrt(4000)
    np.testing.assert_array_equal(devices.mean_at(one, 50.0), g)


def test_noise_that_is_new_at_each_read_adds_to_it():
    white = hw.PCMLikeNoiseModel(prog_noise_scale=0.0, drift_scale=0.0)
    devices = model(noise_model=white)
    one = devices.program(jax.random.key(0), jnp.full((N,), 20.0))
    read = devices.at(jax.random.key(1), one, 50.0)
    expected = np.hypot(white.read_sigma(one, 50.0)[0], 1.0)
    np.testing.assert_allclose(devices.read_sigma(one, 50.0)[0], expected, rtol=1e-6)
    assert abs(jnp.std(read) / expected - 1) < 4.5 / np.sqrt(2 * N)


def hardware(devices):
    converter = hw.SinglePairConductanceConverter(g_max=devices.g_max)
    return hw.Hardware(noise_model=devices, converter=converter)


X = jax.random.normal(jax.random.key(3), (5, 12))


def test_an_export_holds_the_numbers_and_reads_as_the_chip(tmp_path):
    analog = hw.analogize(nn.Dense(7), hardware(model()))
    variables = analog.init(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)
    path = hw.export(tmp_path / "model", variables, plan, chip_seed=3)
    assert verify(path)["passed"]
    stored = hw.load(path)
    ((tile,),) = stored.conductances("kernel", 3)
    assert tile.programmed["g_pos"].flicker.shape == (12, 7)
    chip = hw.program_chip(variables["params"], plan, hw.chip_key(3))
    for t_s in (60.0, 1e4):
        key = jax.random.key(1)
        ours, theirs = chip.at(t_s, key=key), stored.chip(3, t_s=t_s, key=key)
        np.testing.assert_allclose(
            ours["kernel"], theirs["kernel"], rtol=1e-5, atol=1e-6
        )
        quiet = chip.at(t_s)["kernel"]
        assert np.abs(ours["kernel"] - quiet).max() > 0.01 * np.abs(quiet).max()


WRITTEN = hw.PCMLikeNoiseModel(read_noise_scale=0.0)


def test_it_is_on_in_nnx():
    module = nnx.Linear(12, 7, rngs=nnx.Rngs(0))
    analog = hw.analogize(module, hardware(model(noise_model=WRITTEN)))
    params = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
    chip = hw.program_chip(params, hw.plan(analog), hw.chip_key(0))
    read, quiet = (chip.at(1.0, key=key)["kernel"] for key in (jax.random.key(0), None))
    assert jnp.abs(read - quiet).max() > 0.01 * jnp.abs(quiet).max()
    hw.assert_active(analog, None, X)


def test_its_strength_is_proved(monkeypatch):
    analog = hw.analogize(nn.Dense(20), hardware(model(noise_model=WRITTEN)))
    variables = analog.init(jax.random.key(0), X)
    assert "read noise" in str(hw.assert_active(analog, variables, X))
    assert "1/f noise 0.05" in str(hw.inspect(analog, variables, X))
    half = flicker_noise
    monkeypatch.setattr(flicker, "flicker_noise", lambda *a, **k: 0.5 * half(*a, **k))
    jax.clear_caches()
    with pytest.raises(ValueError, match="read noise"):
        hw.assert_active(analog, variables, X)
    jax.clear_caches()


def test_times_may_be_traced_and_mapped():
    devices = model()
    one = devices.program(jax.random.key(0), jnp.full((100,), 20.0))
    times = jnp.asarray([1.0, 2.0, 300.0])
    read = jax.jit(jax.vmap(lambda t: devices.at(jax.random.key(0), one, t)))
    for t, found in zip(times, read(times)):
        expected = devices.at(jax.random.key(0), one, t)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"f_min_hz": 10.0}, "f_min_hz must be below f_max_hz"),
        ({"relative_std": 0.0}, "greater than 0"),
        ({"components": 2}, "greater than or equal to 4"),
        ({"f_min_hz": 1e-12, "f_max_hz": 1e4}, "at most 1e[+]15 f_min_hz"),
    ],
)
def test_noise_that_cannot_be_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        model(**fields)


def test_devices_of_another_model_are_refused():
    quiet = hw.PCMLikeNoiseModel()
    devices = quiet.program(jax.random.key(0), jnp.ones(3))
    with pytest.raises(ValueError, match="no 1/f noise"):
        model(noise_model=quiet).at(jax.random.key(0), devices, 1.0)
