"""Writing by pulses that reads verify, against aihwkit's device and NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.devices._programmed import Programmed
from hwtrain.evaluate import cost

KEY, N, Z = jax.random.key(5), 20_000, 4.5
QUIET = hw.HermesNoiseModel(g_max=20.0, prog_noise_scale=0.0)


def model(**fields):
    base = {
        "noise_model": QUIET,
        "g_high": 30.0,
        "set_step_us": 2.0,
        "reset_step_us": 3.0,
        "tolerance_us": 0.5,
    }
    return hw.WriteVerifyNoiseModel(**{**base, **fields})


CASES = range(8)


@pytest.mark.parametrize("number", CASES)
def test_pulses_move_devices_as_those_of_aihwkit(number, golden):
    case = golden("aihwkit_pow_step")["cases"][number]
    assert len(golden("aihwkit_pow_step")["cases"]) == len(CASES)
    weights = np.asarray(case["weights"])
    # aihwkit makes one of both directions weaker, and one of both exponents smaller.
    biased, tilted = case["up_down"], case["pow_up_down"]
    up, down = 1 + min(biased, 0), 1 - max(biased, 0)
    up_power, down_power = 1 + min(tilted, 0), 1 - max(tilted, 0)
    # From -1 to 1 in weights is from 0 to 30 µS here.
    devices = model(
        set_step_us=15 * case["dw_min"] * up,
        reset_step_us=15 * case["dw_min"] * down,
        set_exponent=case["pow_gamma"] * up_power,
        reset_exponent=case["pow_gamma"] * down_power,
    )
    g = jnp.asarray((weights[0] + 1) * 15, jnp.float32)
    for expected in weights[1:]:
        g = jnp.clip(g + devices.step(g, up=case["up"]), 0.0, 30.0)
        np.testing.assert_allclose(g, (expected + 1) * 15, rtol=1e-5, atol=2e-5)
    assert np.abs(weights[-1] - weights[0]).max() > 0.3


def by_hand(target, devices):
    """Returns where one device ends, and after how many pulses, without noise."""
    g, pulses = 0.0, 0
    while abs(target - g) > devices.tolerance_us and pulses < devices.most_pulses:
        x, pulses = g / 30, pulses + 1
        g += 2.0 * (1 - x) ** 1.5 if g < target else -3.0 * x**0.7
        g = min(max(g, 0.0), 30.0)
    return g, pulses


def test_exact_reads_stop_at_the_first_conductance_within_the_tolerance():
    devices = model(set_exponent=1.5, reset_exponent=0.7)
    targets = np.linspace(0.0, 20.0, 41)
    written = devices.program(KEY, jnp.asarray(targets, jnp.float32))
    expected = np.array([by_hand(target, devices) for target in targets])
    np.testing.assert_allclose(written.g_prog, expected[:, 0], atol=1e-4)
    np.testing.assert_array_equal(written.pulses, expected[:, 1])
    assert written.pulses[0] == 0 and written.pulses.max() > 10
    np.testing.assert_allclose(written.g_target, targets, rtol=1e-6)


def test_most_pulses_ends_writing_where_devices_are():
    devices = model(most_pulses=3, set_exponent=0.0)
    written = devices.program(KEY, jnp.float32([0.2, 4.1, 19.0]))
    np.testing.assert_allclose(written.g_prog, [0.0, 4.0, 6.0], rtol=1e-6)
    np.testing.assert_array_equal(written.pulses, [0, 2, 3])


def test_targets_are_the_nearest_states():
    devices = model(states=5, tolerance_us=0.01, set_step_us=2.5, set_exponent=0.0)
    g = jnp.linspace(0.0, 20.0, 101)
    states = np.asarray([0.0, 5.0, 10.0, 15.0, 20.0])
    nearest = states[np.abs(np.asarray(g)[:, None] - states).argmin(1)]
    ties = np.isclose(np.asarray(g) % 5, 2.5, atol=1e-3)
    written = devices.program(KEY, g)
    np.testing.assert_allclose(
        np.asarray(written.g_prog)[~ties], nearest[~ties], atol=1e-4
    )
    assert len(np.unique(np.asarray(written.g_prog).round(3))) == 5


def test_steps_spread_from_pulse_to_pulse_and_over_devices():
    one = model(most_pulses=1, cycle_std=0.3).program(KEY, jnp.full(N, 20.0))
    step = np.asarray(one.g_prog)
    # Steps that would go below g_low stay there: 3.3 standard deviations away.
    assert abs(step.mean() - 2.0) < Z * 0.6 / np.sqrt(N) + 1e-3
    assert abs(step.std() - 0.6) < Z * 0.6 / np.sqrt(2 * N) + 1e-3
    many = model(most_pulses=4, cycle_std=0.3, set_exponent=0.0)
    far = np.asarray(many.program(KEY, jnp.full(N, 20.0)).g_prog)
    assert abs(far.std() - 2 * 0.6) < Z * 1.2 / np.sqrt(2 * N) + 4e-3
    own = model(most_pulses=4, device_std=0.2, set_exponent=0.0)
    far = np.asarray(own.program(KEY, jnp.full(N, 20.0)).g_prog)
    assert abs(far.std() - 4 * 0.4) < Z * 1.6 / np.sqrt(2 * N)
    assert abs(far.mean() - 8.0) < Z * 1.6 / np.sqrt(N)


def test_noise_of_verifying_reads_stops_some_devices_too_early():
    exact, noisy = model(cycle_std=0.2), model(cycle_std=0.2, verify_sigma_us=1.0)
    g = jnp.full(N, 10.0)
    errors = [np.asarray(m.program(KEY, g).g_prog) - 10 for m in (exact, noisy)]
    assert np.abs(errors[0]).max() <= 0.5 + 1e-5
    assert np.mean(np.abs(errors[1]) > 0.5) > 0.2
    found = noisy.programming_sigma(10.0)
    rms = np.sqrt(np.mean(errors[1] ** 2))
    assert abs(found / rms - 1) < Z * 1.5 / np.sqrt(2 * 512)


def test_devices_drift_and_are_read_as_the_model_within():
    devices = model(cycle_std=0.2)
    written = devices.program(KEY, jnp.full((3, 4), 10.0))
    same = dataclasses.replace(written, g_target=written.g_prog)
    for t_s in (0.0, 1e5):
        for name in ("mean_at", "read_sigma"):
            found = getattr(devices, name)(written, t_s)
            np.testing.assert_array_equal(found, getattr(QUIET, name)(same, t_s))
    assert (devices.mean_at(written, 1e5) < written.g_prog).all()
    np.testing.assert_array_equal(devices.mean_at(written, 0.0), written.g_prog)


def test_corrections_are_whole_pulses():
    devices = model(set_exponent=0.0, reset_exponent=0.0)
    written = Programmed(g_target=jnp.zeros(4), g_prog=jnp.full(4, 10.0))
    change = jnp.float32([0.9, 1.1, -4.4, -4.6])
    after = devices.adjust(KEY, written, change)
    np.testing.assert_allclose(after.g_prog, [10.0, 12.0, 7.0, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(after.pulses, [0, 1, 1, 2])
    noisy = model(set_exponent=0.0, cycle_std=0.3)
    many = Programmed(g_target=jnp.zeros(N), g_prog=jnp.full(N, 10.0))
    spread = np.std(noisy.adjust(KEY, many, jnp.full(N, 8.0)).g_prog)
    assert abs(spread - 2 * 2.0 * 0.3) < Z * 1.2 / np.sqrt(2 * N)


def pulse_by_pulse(devices, g, change, own, rng=None):
    """Returns where a NumPy loop brings devices, and after how many pulses each."""
    ends, counts = [], []
    for now, wanted, up, down in zip(*np.broadcast_arrays(g, change, *own)):
        x = now / 30
        mean = 2.0 * (1 - x) ** devices.set_exponent
        mean = mean if wanted > 0 else 3.0 * x**devices.reset_exponent
        count = int(np.rint(abs(wanted) / mean)) if mean else 0
        count = min(count, devices.most_pulses)
        for _ in range(count):
            x = now / 30
            step = -3.0 * x**devices.reset_exponent * down
            step = 2.0 * (1 - x) ** devices.set_exponent * up if wanted > 0 else step
            if rng is not None:
                step *= 1 + devices.cycle_std * rng.normal()
            now = min(max(now + step, 0.0), 30.0)
        ends.append(now)
        counts.append(count)
    return np.array(ends), np.array(counts)


def test_corrections_move_pulse_by_pulse_with_the_steps_of_each_device():
    devices = model(
        set_exponent=1.3, reset_exponent=0.6, device_std=0.3, most_pulses=12
    )
    written = devices.program(KEY, jnp.linspace(0.5, 20.0, 60))
    change = jnp.tile(jnp.float32([-25.0, -6.0, -1.0, 1.0, 9.0, 40.0]), 10)
    after = jax.jit(devices.adjust)(KEY, written, change)
    own = [np.asarray(x) for x in (written.set_factor, written.reset_factor)]
    # The spread of the factors themselves: of 60 devices each.
    assert all(abs(x.std() - 0.3) < Z * 0.3 / np.sqrt(120) for x in own)
    g, counts = pulse_by_pulse(
        devices, np.asarray(written.g_prog, np.float64), np.asarray(change), own
    )
    np.testing.assert_allclose(after.g_prog, g, rtol=2e-5, atol=2e-4)
    np.testing.assert_array_equal(after.pulses - written.pulses, counts)
    assert counts.max() == 12  # as many as there are at most
    np.testing.assert_array_equal(after.set_factor, written.set_factor)


def test_a_soft_bound_is_approached_and_not_crossed():
    devices = model(g_high=20.0, set_step_us=1.0, most_pulses=60)
    start = Programmed(g_target=jnp.zeros(1), g_prog=jnp.full(1, 18.0))
    # One step is 0.1 µS there: 50 pulses, which at once would end above 20 µS.
    after = devices.adjust(KEY, start, jnp.full(1, 5.0))
    assert float(after.pulses[0]) == 50
    np.testing.assert_allclose(after.g_prog, 20 - 2 * (1 - 1 / 20) ** 50, rtol=1e-5)


def test_noise_of_many_pulses_has_the_law_of_the_loop():
    n = 4000
    devices = model(cycle_std=0.5, set_exponent=1.0, most_pulses=30)
    start = Programmed(g_target=jnp.zeros(n), g_prog=jnp.full(n, 24.0))
    found = np.asarray(devices.adjust(KEY, start, jnp.full(n, 8.0)).g_prog, np.float64)
    rng = np.random.default_rng(0)
    ones = np.ones(n), np.ones(n)
    expected, _ = pulse_by_pulse(devices, np.full(n, 24.0), np.full(n, 8.0), ones, rng)
    error = np.sqrt(found.var() / n + expected.var() / n)
    assert abs(found.mean() - expected.mean()) < Z * error
    assert abs(found.std() / expected.std() - 1) < Z * np.sqrt(2 / n)


def test_corrections_of_devices_with_unknown_steps_are_refused():
    start = Programmed(g_target=jnp.zeros(4), g_prog=jnp.full(4, 10.0))
    with pytest.raises(ValueError, match="call program again"):
        model(device_std=0.1).adjust(KEY, start, jnp.ones(4))


def test_whole_tiles_are_corrected_by_pulses_of_devices_that_differ():
    devices = model(cycle_std=0.2, device_std=0.2, tolerance_us=1.0)
    corrected = hw.GradientProgrammedNoiseModel(noise_model=devices, iterations=20)
    x = jax.random.normal(jax.random.key(0), (4, 10))
    errors = []
    for noise_model in (devices, corrected):
        chip = dataclasses.replace(CHIP, noise_model=noise_model)
        analog = hw.analogize(nn.Dense(6), chip)
        variables = analog.init(jax.random.key(1), x)
        plan, params = hw.plan(analog, variables, x), variables["params"]
        made = hw.program_chip(params, plan, hw.chip_key(0))
        errors.append(np.asarray(made.at(0.0)["kernel"] - params["kernel"]).std())
        assert (made.weights["kernel"].devices[0].pulses >= 0).all()
    assert errors[1] < errors[0]


class Quarters(hw.WriteVerifyNoiseModel):
    """Targets of its own."""

    def target(self, g):
        return 5 * jnp.round(g / 5)


@hw.register("noise_model", "write_verify_test_sometimes")
class Sometimes(hw.NoiseModel):
    """Programming noise that is zero at g_max."""

    g_max: float = 20.0

    def programming_sigma(self, g):
        return jnp.where(jnp.asarray(g) < 10, 1.0, 0.0)


def test_a_model_with_targets_of_its_own_is_not_measured_by_ours():
    class Context:
        asked = 0

        def behaves(self, sample):
            self.asked += 1

    own, ours = Context(), Context()
    Quarters(noise_model=QUIET).proof(own)
    model().proof(ours)
    assert (own.asked, ours.asked) == (0, 1)


def test_programming_noise_anywhere_in_the_range_is_refused():
    with pytest.raises(ValueError, match="has programming noise"):
        model(noise_model=Sometimes())


CHIP = hw.Hardware(
    noise_model=model(cycle_std=0.2, device_std=0.1, verify_sigma_us=0.1, states=33),
    converter=hw.SinglePairConductanceConverter(g_max=20.0),
    mapping=hw.MappingParameter(weight_scaling_omega=1.0, max_input_size=6),
)
DAY_S = 86_400.0
CONSTANTS = hw.CostParameter(source="ours", row_energy_fj=1.0, inp_bits=8, out_bits=8)


class Convolved(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        return nn.Dense(6, name="head")(x.reshape(len(x), -1))


def test_chips_are_proved_shown_exported_and_alike_in_both_frameworks(tmp_path):
    x = jax.random.normal(jax.random.key(0), (4, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    variables = analog.init(jax.random.key(1), x)
    hw.assert_active(analog, variables, x)
    assert "33 states" in str(hw.inspect(analog, variables, x))
    plan = hw.plan(analog, variables, x)
    hw.export(tmp_path / "chip", variables, plan, chip_seeds=[3])
    loaded = hw.load(tmp_path / "chip")
    assert loaded.plan["kernel"].hardware == CHIP
    hw.checkpoint.verify(tmp_path / "chip")
    chip = hw.program_chip(variables["params"], plan, hw.chip_key(3))
    expected = chip.at(DAY_S)
    found = loaded.chip(3, t_s=DAY_S)["kernel"]
    np.testing.assert_allclose(found, expected["kernel"], rtol=1e-5, atol=1e-6)
    stored = loaded.conductances("kernel", 3)[0][0].programmed["g_pos"].pulses
    np.testing.assert_array_equal(stored, chip.weights["kernel"].devices[0].pulses[:5])

    layer = nnx.Linear(10, 6, rngs=nnx.Rngs(0))
    layer.kernel[...] = variables["params"]["kernel"]
    layer = hw.analogize(layer, CHIP, rngs=nnx.Rngs(mismatch=1))
    params = nnx.state(layer, nnx.Param)
    of_nnx = hw.program_chip(params, hw.plan(layer), hw.chip_key(3)).at(DAY_S)
    np.testing.assert_array_equal(of_nnx["kernel"][...], expected["kernel"])


def test_chips_of_convolutions_are_written_too():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    analog = hw.analogize(Convolved(), CHIP)
    variables = analog.init(jax.random.key(1), x)
    params, plan = variables["params"], hw.plan(analog, variables, x)
    chip = hw.program_chip(params, plan, hw.chip_key(0)).at(0.0)
    for layer in ("conv", "head"):
        w, found = params[layer]["kernel"], chip[layer]["kernel"]
        error = np.asarray(found - w) / float(jnp.abs(w).max())
        # Within the tolerance and half a state on both devices of a pair.
        assert 0.005 < np.sqrt(np.mean(error**2)) < 2 * (0.5 + 0.4 + 0.3) / 20


def test_a_model_that_does_not_write_is_told(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (4, 32))
    analog = hw.analogize(nn.Dense(16), CHIP)
    variables = analog.init(jax.random.key(1), x)
    monkeypatch.setattr(
        hw.WriteVerifyNoiseModel,
        "_written",
        lambda self, key, target, own: (target, jnp.zeros_like(target)),
    )
    jax.clear_caches()
    with pytest.raises(ValueError, match="programming noise"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


def test_what_writing_takes_is_counted_beside_the_cost():
    devices = model(set_exponent=0.0, pulse_energy_fj=100.0, verify_time_ns=10.0)
    chip = dataclasses.replace(CHIP, noise_model=devices)
    x = jnp.ones((1, 10))
    analog = hw.analogize(nn.Dense(6), chip)
    variables = analog.init(jax.random.key(1), x)
    table = cost(analog, variables, x, constants=CONSTANTS)
    (note,) = [each for each in table.notes if "pulses per device" in each]
    pulses = []
    for target in np.linspace(0.0, 20.0, 64):
        g, count = 0.0, 0
        while abs(target - g) > 0.5 and count < 50:
            g, count = g + (2.0 if g < target else -3.0 * g / 30), count + 1
        pulses.append(count)
    assert f"takes {np.mean(pulses):.1f} pulses per device" in note
    total, count = 120 * np.mean(pulses), 120
    assert table.writing_pulses == pytest.approx(total)
    assert table.writing_energy_uj == pytest.approx(total * 100.0 * 1e-9)
    assert table.writing_time_s == pytest.approx((total + count) * 10.0 * 1e-9)
    assert table.totals()["writing_energy_uj"] == table.writing_energy_uj
    assert table.as_data()["layers"][0]["writing_pulses"] == pytest.approx(total)
    text = str(table)
    assert "Cost of writing all devices, once" in text
    assert "writing is not counted" not in text
    # It is none of an example's energy.
    free = dataclasses.replace(devices, pulse_energy_fj=0.0)
    chip = dataclasses.replace(CHIP, noise_model=free)
    other = cost(hw.analogize(nn.Dense(6), chip), variables, x, constants=CONSTANTS)
    assert other.energy_nj == table.energy_nj and other.writing_energy_uj is None


def test_writing_that_no_model_counts_is_said_to_be_left_out():
    chip = dataclasses.replace(CHIP, noise_model=QUIET)
    x = jnp.ones((1, 10))
    analog = hw.analogize(nn.Dense(6), chip)
    variables = analog.init(jax.random.key(1), x)
    table = cost(analog, variables, x, constants=CONSTANTS)
    assert table.writing_pulses is None
    assert "writing is not counted" in str(table)
    assert "Cost of writing" not in str(table)


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="g_low < g_max <= g_high"):
        model(g_high=19.0)
    with pytest.raises(ValueError, match="prog_noise_scale=0.0"):
        model(noise_model=hw.HermesNoiseModel(g_max=20.0))
    with pytest.raises(ValueError, match="states"):
        model(states=1)


def test_constants_that_decide_when_to_stop_have_no_slope():
    x = jnp.ones((1, 10))
    analog = hw.analogize(nn.Dense(6), CHIP)
    variables = analog.init(jax.random.key(1), x)
    plan = hw.plan(analog, variables, x)

    def size(name, value):
        traced = hw.with_constants(plan, {f"noise_model.{name}": value})
        chip = hw.program_chip(variables["params"], traced, hw.chip_key(0))
        return jnp.sum(chip.at(0.0)["kernel"] ** 2)

    with pytest.raises(ValueError, match="no gradient"):
        jax.grad(lambda x: size("tolerance_us", x))(0.5)
    sizes = jax.vmap(lambda x: size("tolerance_us", x))(jnp.array([0.5, 2.0]))
    assert sizes[0] != sizes[1]
    slope = jax.grad(lambda x: size("noise_model.drift_scale", x))(1.0)
    assert slope == 0  # just after writing, nothing has drifted
    with pytest.raises(ValueError, match="changes no conductance"):
        size("pulse_energy_fj", 20.0)
