"""Read disturb: the law of its source in NumPy, chips over reads, exports, proofs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.checkpoint import verify

X = jax.random.normal(jax.random.key(0), (5, 12))
WRITTEN = hw.PCMLikeNoiseModel(drift_scale=0.0)


def model(noise_model=WRITTEN, **fields):
    reads = {"read_voltage_v": 0.3, "read_time_s": 1e-7, "reads_per_s": 1e5}
    return hw.ReadDisturb(noise_model=noise_model, **{**reads, **fields})


def law(stress_s, voltage_v, cycles=0.0):
    """The factor on a conductance of Jiang et al., in NumPy, in their numbers."""
    kt = 1.380649e-23 * 300 / 1.602176634e-19
    p = 0.0068 * np.exp(0.11 * voltage_v / kt)
    tau = 1.55e-8 * (1.43339 * (1 - 0.003 * cycles**0.41)) ** (1 / p)
    return np.where(stress_s < tau, 1.0, (max(stress_s, tau) / tau) ** -p)


@pytest.mark.parametrize("voltage_v", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("cycles", [0.0, 1e4])
def test_conductances_fall_by_the_law_of_the_source(voltage_v, cycles):
    devices = model(read_voltage_v=voltage_v, write_cycles=cycles)
    one = devices.program(jax.random.key(0), jnp.full((3,), 10.0))
    fallen = []
    for reads in (0, 1, 10**3, 10**6, 10**9, 10**12):
        found = devices.mean_at(one, reads / 1e5)
        factor = law(reads * 1e-7, voltage_v, cycles)
        np.testing.assert_allclose(found, one.g_prog * factor, rtol=1e-4)
        fallen.append(factor)
    if voltage_v >= 0.2:
        assert min(fallen) < 0.99
    assert max(fallen) == 1


def test_the_number_of_reads_counts_and_not_the_time():
    rare, often = model(reads_per_s=10.0), model(reads_per_s=1e7)
    one = rare.program(jax.random.key(0), jnp.full((3,), 10.0))
    found = rare.mean_at(one, 1e9), often.mean_at(one, 1e3)
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert found[0][0] < 0.9 * one.g_prog[0]


def test_reads_are_disturbed_with_their_noise():
    devices = model()
    one = devices.program(jax.random.key(0), jnp.full((3,), 10.0))
    factor, key = law(1e3 * 1e5 * 1e-7, 0.3), jax.random.key(1)
    for ours, theirs in (
        (devices.at(key, one, 1e3), WRITTEN.at(key, one, 1e3)),
        (devices.read_sigma(one, 1e3), WRITTEN.read_sigma(one, 1e3)),
    ):
        np.testing.assert_allclose(ours, factor * theirs, rtol=1e-4)
    assert factor < 0.9


def hardware(devices):
    converter = hw.SinglePairConductanceConverter(g_max=devices.g_max)
    return hw.Hardware(noise_model=devices, converter=converter)


def test_an_export_reads_as_the_chip(tmp_path):
    analog = hw.analogize(nn.Dense(7), hardware(model()))
    variables = analog.init(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)
    path = hw.export(tmp_path / "model", variables, plan, chip_seed=3)
    assert verify(path)["passed"]
    fresh, disturbed = (hw.load(path).chip(3, t_s=t)["kernel"] for t in (0.0, 1e3))
    factor = law(1e3 * 1e5 * 1e-7, 0.3)
    np.testing.assert_allclose(disturbed, factor * fresh, rtol=1e-4, atol=1e-7)


def test_it_is_on_in_nnx():
    analog = hw.analogize(nnx.Linear(12, 7, rngs=nnx.Rngs(0)), hardware(model()))
    params = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
    chip = hw.program_chip(params, hw.plan(analog), hw.chip_key(0))
    fresh, disturbed = (chip.at(t)["kernel"] for t in (0.0, 1e3))
    factor = law(1e3 * 1e5 * 1e-7, 0.3)
    np.testing.assert_allclose(disturbed, factor * fresh, rtol=1e-4, atol=1e-7)


def test_it_is_proved(monkeypatch):
    analog = hw.analogize(nn.Dense(20), hardware(model()))
    variables = analog.init(jax.random.key(0), X)
    assert "drift" in str(hw.assert_active(analog, variables, X))
    said = "disturbed by 100000 reads per s at 0.3 V"
    assert said in str(hw.inspect(analog, variables, X))
    monkeypatch.setattr(hw.ReadDisturb, "factor", lambda self, t_s: jnp.float32(1))
    jax.clear_caches()
    with pytest.raises(ValueError, match="drift: the mean change is 0.00 x"):
        hw.assert_active(analog, variables, X)
    jax.clear_caches()


def test_the_slope_to_the_voltage_is_that_of_finite_differences():
    analog = hw.analogize(nn.Dense(7), hardware(model()))
    variables = analog.init(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)

    def size(voltage):
        with_it = hw.with_constants(plan, {"noise_model.read_voltage_v": voltage})
        chip = hw.program_chip(variables["params"], with_it, hw.chip_key(0))
        return jnp.sum(jnp.abs(chip.at(1e3)["kernel"]))

    found = jax.grad(size)(0.3)
    step = 0.01
    expected = (size(0.3 + step) - size(0.3 - step)) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=0.02)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"write_cycles": 1e12}, "worn out"),
        ({"read_voltage_v": 0.0}, "greater than 0"),
        ({"reads_per_s": 0.0}, "greater than 0"),
    ],
)
def test_reads_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        model(**fields)
