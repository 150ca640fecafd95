"""Fits of every family to measurements that NumPy made from known coefficients."""

import dataclasses

import numpy as np
import pytest

import hwtrain as hw
from hwtrain.devices import Measurements, fit_measurements, fit_noise_model

# A correct estimator leaves 4.5 standard errors once in 150,000 keys.
Z = 4.5
TIMES_S = np.array([1.0, 30.0, 600.0, 1e4, 1e5])


def read_out(rng, targets, n, now):
    """Returns measurements of n devices of each target, by `now(rng, targets, n)`."""
    rows = [
        (target, t_s, g, repeat)
        for target in targets
        for repeat, reads in enumerate(now(rng, target, n))
        for t_s, g in zip(TIMES_S, reads)
    ]
    target, t_s, g, repeat = map(np.array, zip(*rows))
    return Measurements(g_target_us=target, t_s=t_s, g_us=g, repeat=repeat)


def growth(t_s, t_read):
    return np.sqrt(np.log((t_s + t_read) / (2 * t_read)))


def power_law(rng, g, n, sigma, mean, std, level, t_0=20.0, signed=False):
    g_prog = np.maximum(g + sigma * rng.normal(size=(n, 1)), 0)
    nu = mean + std * rng.normal(size=(n, 1))
    nu = nu if signed else np.abs(nu)
    now = g_prog * ((TIMES_S + t_0) / t_0) ** -nu
    return np.maximum(now + now * level * rng.normal(size=now.shape), 0)


def pcm(rng, g, n):
    a = g / 25
    sigma = 0.3 + 1.5 * a - 0.9 * a**2
    mean, std = -0.02 * np.log(a) + 0.05, -0.01 * np.log(a) + 0.01
    level = 0.01 / np.sqrt(a) * growth(TIMES_S + 20, 250e-9)
    return power_law(rng, g, n, sigma, mean, std, level)


def custom(rng, g, n):
    a = g / 25
    mean, std = np.interp(g, [0, 25], [0.12, 0.06]), np.interp(g, [0, 25], [0.03, 0.01])
    level = 0.01 / np.sqrt(a) * growth(TIMES_S + 20, 250e-9)
    return power_law(rng, g, n, 0.3 + 1.5 * a - 0.9 * a**2, mean, std, level)


def hermes(rng, g, n):
    a = g / 20.7
    level = (0.02 - 0.01 * a) * growth(TIMES_S + 300, 512e-9)
    return power_law(
        rng, g, n, 0.2 + 2 * a - a**2, 0.08 - 0.05 * a, 0.02 - 0.01 * a, level, 300.0
    )


def constant(rng, g, n):
    level = 0.03 / 25 * growth(TIMES_S + 20, 250e-9)
    return power_law(rng, g, n, 0.3 + 0.1 * g / 25, 0.12, 0.02, level)


def measured(rng, g, n):
    sigma, mean = np.interp(g, [5, 25], [0.3, 0.8]), np.interp(g, [5, 25], [0.1, -0.02])
    return power_law(rng, g, n, sigma, mean, 0.01, 0.02, signed=True)


def cmo(rng, g, n):
    log_t, (one, two) = np.log(TIMES_S), rng.normal(size=(2, n, 1))
    now = g + (0.2 + 0.01 * g) * one - 0.2 * log_t + (0.3 + 0.05 * log_t) * two
    read = 0.05 * np.log10(now) * growth(TIMES_S, 1e-6)
    return now + read * rng.normal(size=now.shape)


def wan(rng, g, n):
    a, log_t = g / 40, np.log(TIMES_S) / np.log(1e5)
    first, last = 0.5 + 2 * a, 1 + 4 * a
    return g + (first + log_t * (last - first)) * rng.normal(size=(n, 1))


def milo(rng, g, n):
    return g + (5 - 0.015 * g) * rng.normal(size=(n, 1)) * np.ones(len(TIMES_S))


def sonos(rng, g, n):
    current, days = 100 * g, TIMES_S / 1e5
    mean = current + days * (5 - 0.05 * current)
    spread = (20 + 10 * days) * (1 - np.exp(-mean / 150.0))
    now = mean + spread * rng.normal(size=(n, 1))
    read = 15 * (1 - np.exp(-now / 200))
    return (now + read * rng.normal(size=now.shape)) / 100


LOW, ANY = -1e3, 1e3
CASES = {
    "pcm_like": (
        pcm,
        (2.0, 5.0, 10.0, 17.0, 25.0),
        hw.PCMLikeNoiseModel(
            drift_mean_coeff=(-0.0155, 0.04, 0.0, 1.0),
            drift_std_coeff=(-0.0125, 0.02, 0.0, 1.0),
        ),
        {
            "prog_coeff": (0.3, 1.5, -0.9),
            "drift_mean_coeff": (-0.02, 0.05, None, None),
            "drift_std_coeff": (-0.01, 0.01, None, None),
            "read_coeff": (0.01, 0.5, None),
        },
    ),
    "custom_drift_pcm_like": (
        custom,
        (2.0, 5.0, 10.0, 17.0, 25.0),
        hw.CustomDriftPCMLikeNoiseModel(
            g_lst=(0.0, 25.0), nu_mean_lst=(0.1, 0.05), nu_std_lst=(0.02, 0.02)
        ),
        {"nu_mean_lst": (0.12, 0.06), "nu_std_lst": (0.03, 0.01)},
    ),
    "hermes": (
        hermes,
        (4.0, 8.0, 14.0, 20.7),
        dataclasses.replace(
            hw.HermesNoiseModel(drift_std_coeff=(0.02, 0.0), read_coeff=(0.02, 0.0)),
            **{"drift_mean_coeff": (0.07, 0.0), "prog_coeff": (0.2, 1.0, 0.0)},
            **{"drift_std_start": 0.1, "read_start": 0.1},
        ),
        {
            "prog_coeff": (0.2, 2.0, -1.0),
            "drift_mean_log": (None,) * 4,
            "drift_mean_coeff": (0.08, -0.05),
            "drift_std_coeff": (0.02, -0.01),
            "read_coeff": (0.02, -0.01),
        },
    ),
    "state_independent": (
        constant,
        (5.0, 10.0, 25.0),
        hw.StateIndependentNoiseModel(prog_coeff=(0.2, 0.0), read_noise_scale=0.1),
        {
            "prog_coeff": (0.3, 0.1),
            "drift_nu_mean": 0.12,
            "drift_nu_std": 0.02,
            "read_noise_scale": 0.03,
        },
    ),
    "reram_cmo": (
        cmo,
        (25.0, 40.0, 60.0),
        hw.ReRamCMONoiseModel(acceptance_range=2.0),
        {
            "prog_coeff": (0.2, 0.01),
            "drift_mean_coeff": -0.2,
            "drift_std_coeff": (0.3, 0.05),
            "read_coeff": 0.05,
        },
    ),
    "reram_wan2022": (
        wan,
        (10.0, 20.0, 40.0),
        hw.ReRamWan2022NoiseModel(
            times_s=(1.0, 1e5), spread_coeff=((1.0, 1.0), (1.0, 1.0))
        ),
        {"spread_coeff": ((0.5, 2.0), (1.0, 4.0))},
    ),
    "reram_milo": (
        milo,
        (60.0, 120.0, 200.0),
        hw.ReRamMiloNoiseModel(),
        {"prog_coeff": (5.0, -0.015)},
    ),
    "sonos": (
        sonos,
        (2.0, 6.0, 14.0),
        hw.SonosNoiseModel(
            times_s=(0.0, 1e5),
            drift_mean_coeff=((0.0, 0.0), (1.0, 0.0)),
            spread_coeff=((25.0, 180.0), (25.0, 180.0)),
        ),
        {
            "drift_mean_coeff": (None, None, 5.0, -0.05),
            "spread_coeff": ((20.0, 150.0), (30.0, 150.0)),
            "read_coeff": (15.0, 200.0),
        },
    ),
}


def true_numbers(numbers):
    """Returns the known numbers of a field in order, `None` for those not compared."""
    flat = [numbers]
    while any(isinstance(x, tuple) for x in flat):
        flat = [y for x in flat for y in (x if isinstance(x, tuple) else (x,))]
    return flat


@pytest.mark.parametrize("name", CASES)
def test_a_fit_recovers_the_coefficients_of_every_family(name):
    now, targets, model, true = CASES[name]
    found = fit_noise_model(
        model, read_out(np.random.default_rng(3), targets, 400, now)
    )
    assert type(found.model) is type(model) and found.devices == 400 * len(targets)
    assert set(true) <= set(found.intervals) == set(model.to_fit)
    rows = {label: numbers for label, *numbers in found.rows()}
    compared = 0
    for field, numbers in true.items():
        labels = [x for x in rows if x.partition("[")[0] == field]
        for label, number in zip(labels, true_numbers(numbers), strict=True):
            value, low, high = rows[label]
            if number is None:
                continue
            assert low < value < high, label
            error = (high - low) / (2 * 1.96)
            assert abs(value - number) < Z * error, label
            # An interval that covers everything proves nothing.
            assert error < 0.5 * max(abs(number), 0.02), label
            compared += 1
    assert compared


def covered(name, sets, n):
    """Returns the share of known coefficients that intervals of 95 % cover."""
    now, targets, model, true = CASES[name]
    hits = []
    for seed in range(sets):
        reads = read_out(np.random.default_rng(1000 + seed), targets, n, now)
        fit = fit_noise_model(model, reads)
        rows = {label: numbers for label, *numbers in fit.rows()}
        for field, numbers in true.items():
            labels = [x for x in rows if x.partition("[")[0] == field]
            for label, number in zip(labels, true_numbers(numbers), strict=True):
                if number is not None:
                    _, low, high = rows[label]
                    hits.append((label, low < number < high))
    return {
        label: np.mean([hit for other, hit in hits if other == label])
        for label in dict(hits)
    }


def test_intervals_of_95_percent_cover_the_truth_that_often():
    sets = 150
    shares = covered("reram_milo", sets, 100)
    assert len(shares) == 2
    for label, share in shares.items():
        assert abs(share - 0.95) < Z * np.sqrt(0.95 * 0.05 / sets), label


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["pcm_like", "reram_cmo", "reram_wan2022"])
def test_intervals_of_every_kind_of_family_cover_the_truth(name):
    sets = 150
    for label, share in covered(name, sets, 100).items():
        assert abs(share - 0.95) < Z * np.sqrt(0.95 * 0.05 / sets), label


def test_a_measured_model_gets_intervals_of_its_points():
    reads = read_out(np.random.default_rng(5), (5.0, 12.0, 25.0), 150, measured)
    start = fit_measurements(reads)
    fit = fit_noise_model(start, reads)
    truth = {
        "sigma_lst": np.interp((5, 12, 25), [5, 25], [0.3, 0.8]),
        "nu_mean_lst": np.interp((5, 12, 25), [5, 25], [0.1, -0.02]),
        "nu_std_lst": np.full(3, 0.01),
        "read_level_lst": np.full(3, 0.02),
    }
    for field, numbers in truth.items():
        bounds = fit.intervals[field]
        error = (bounds[:, 1] - bounds[:, 0]) / (2 * 1.96)
        value = np.asarray(getattr(fit.model, field))
        assert (abs(value - numbers) < Z * error).all(), field
        # Both estimators see the same devices.
        assert (abs(value - getattr(start, field)) < 3 * error).all(), field


def test_what_the_measurements_do_not_determine_has_no_bounds():
    now, _, model, _ = CASES["pcm_like"]
    reads = read_out(np.random.default_rng(3), (5.0, 15.0), 60, now)
    fit = fit_noise_model(model, reads, names=("drift_mean_coeff",))
    bounds = fit.intervals["drift_mean_coeff"]
    assert np.isfinite(bounds[:2]).all() and np.isinf(bounds[2:]).all()
    assert fit.model.drift_mean_coeff[2:] == (0.0, 1.0)
    assert set(fit.intervals) == {"drift_mean_coeff"}
    assert fit.model.read_coeff == model.read_coeff


def test_coefficients_are_those_at_the_largest_conductance_of_the_data():
    rng, target = np.random.default_rng(3), np.repeat([5.0, 20.0, 50.0], 400)
    sigma = 0.4 + 2.0 * target / 50 - (target / 50) ** 2
    reads = Measurements(
        g_target_us=target,
        t_s=np.zeros(1200),
        g_us=target + sigma * rng.normal(size=1200),
        repeat=np.arange(1200),
    )
    model = hw.PCMLikeNoiseModel(g_max=50.0, read_noise_scale=0.0)
    fit = fit_noise_model(model, reads, names=("prog_coeff",))
    # Not those at 25 µS, where the published ones were measured.
    assert fit.model.prog_coeff_g_max_reference == 50.0
    bounds = fit.intervals["prog_coeff"]
    error = (bounds[:, 1] - bounds[:, 0]) / (2 * 1.96)
    assert (abs(fit.model.prog_coeff - np.array([0.4, 2.0, -1.0])) < Z * error).all()
    g = np.unique(target)
    found = fit.model.programming_sigma(g)
    np.testing.assert_allclose(found, sigma[[0, 400, 800]], rtol=0.15)


@pytest.mark.parametrize(
    "model",
    [
        hw.PCMLikeNoiseModel(g_max=50.0),
        hw.PCMLikeNoiseModel(g_max=50.0, prog_coeff=(0.3, 1.0)),
        hw.PCMLikeNoiseModel(g_max=50.0, prog_coeff_g_max_reference=10.0),
        hw.HermesNoiseModel(g_max=10.0),
        hw.ReRamWan2022NoiseModel(g_max=80.0),
    ],
)
def test_a_change_of_units_changes_no_noise(model):
    same = model.with_fixed_units()
    g = np.linspace(1.0, model.g_max, 20)
    expected = model.programming_sigma(g)
    np.testing.assert_allclose(same.programming_sigma(g), expected, rtol=1e-5)
    names = ("prog_coeff_g_max_reference", "coeff_g_max_reference")
    (name,) = [n for n in names if hasattr(same, n)]
    assert getattr(same, name) == model.g_max


def test_a_fit_is_printed_with_units_and_intervals():
    now, targets, model, _ = CASES["pcm_like"]
    reads = read_out(np.random.default_rng(3), targets, 60, now)
    fit = fit_noise_model(model, reads, names=("prog_coeff", "read_coeff"))
    text = str(fit)
    assert "pcm_like, 300 devices" in text and "95% from" in text
    lines = {line.split()[1]: line for line in text.splitlines() if "coeff[" in line}
    assert set(lines) == {label for label, *_ in fit.rows()}
    for label, value, low, high in fit.rows():
        shown = [f"{x:.5g}" for x in (value, low, high) if np.isfinite(x)]
        assert all(x in lines[label] for x in shown)
        assert ("µS" in lines[label]) == label.startswith("prog_coeff")
    assert "mean: differs most at" in text and "spread: differs most at" in text
    assert repr(fit) == "NoiseModelFit(pcm_like, 300 devices)"


FEW_TARGETS = np.linspace(40.0, 220.0, 12)


def of_milo(rng, n, curved=0.0, off=0.0, draw=None):
    """Returns measurements at one time, and their means and spreads by hand."""
    target = np.repeat(FEW_TARGETS, n)
    xi = rng.normal(size=target.size) if draw is None else draw(target.size)
    sigma = 5 - 0.015 * target + curved * np.abs(target - 130) / 90
    g = target + off * np.sin(target) + sigma * xi
    repeat = np.arange(target.size)
    return Measurements(
        g_target_us=target, t_s=np.zeros(target.size), g_us=g, repeat=repeat
    )


def probabilities(sets, **options):
    """Returns the probabilities of the agreement of many fits, `[sets, 2]`."""
    found = []
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        fit = fit_noise_model(hw.ReRamMiloNoiseModel(), of_milo(rng, **options))
        assert [each.quantity for each in fit.agreement] == ["mean", "spread"]
        found.append([each.probability for each in fit.agreement])
    return np.array(found)


@pytest.mark.parametrize(
    ("n", "sets"), [(100, 80), pytest.param(12, 400, marks=pytest.mark.nightly)]
)
def test_the_right_family_is_doubted_as_rarely_as_it_says(n, sets):
    found = probabilities(sets, n=n)
    for share in (0.1, 0.5):
        rates = (found < share).mean(0)
        # Bonferroni's bound from above; a measure that is always 1 fails below.
        assert (rates < share + Z * np.sqrt(share * (1 - share) / sets)).all()
        assert (rates > 0.3 * share).all()


@pytest.mark.nightly
def test_devices_that_are_not_normal_are_not_taken_for_a_wrong_family():
    rng = np.random.default_rng(7)

    def uniform(size):
        return rng.uniform(-np.sqrt(3), np.sqrt(3), size)

    def heavy(size):
        return rng.laplace(scale=np.sqrt(0.5), size=size)

    for draw in (uniform, heavy):
        rates = (probabilities(100, n=60, draw=draw) < 0.1).mean(0)
        assert (rates < 0.1 + Z * np.sqrt(0.1 * 0.9 / 100)).all()


def test_a_wrong_family_is_told_by_the_quantity_in_which_it_is_wrong():
    wrong = probabilities(10, n=200, off=1.5)
    assert (wrong[:, 0] < 1e-3).all() and (wrong[:, 1] > 1e-3).all()
    wrong = probabilities(10, n=200, curved=2.5)
    assert (wrong[:, 0] > 1e-3).all() and (wrong[:, 1] < 1e-3).all()


@pytest.mark.parametrize("name", CASES)
def test_no_family_is_doubted_by_its_own_devices(name):
    now, targets, model, _ = CASES[name]
    reads = read_out(np.random.default_rng(3), targets, 400, now)
    found = fit_noise_model(model, reads).agreement
    assert all(each.probability > 1e-3 for each in found), found
    assert all(each.comparisons == len(targets) * len(TIMES_S) for each in found)


def test_drift_that_a_family_has_not_is_seen_in_its_means():
    now, targets, _, _ = CASES["pcm_like"]
    reads = read_out(np.random.default_rng(3), targets, 100, now)
    start = hw.ReRamMiloNoiseModel(g_max=25.0, prog_coeff=(1.0, 0.0))
    fit = fit_noise_model(start, reads)
    mean = fit.agreement[0]
    assert mean.probability < 1e-9 and mean.t_s == TIMES_S[-1]
    same = (reads.g_target_us == mean.g_target_us) & (reads.t_s == mean.t_s)
    assert mean.measured_us == pytest.approx(reads.g_us[same].mean())
    assert mean.model_us == pytest.approx(mean.g_target_us, rel=1e-3)
    assert "does not describe these devices" in str(fit)


def test_too_few_devices_are_not_compared():
    rng = np.random.default_rng(0)
    fit = fit_noise_model(hw.ReRamMiloNoiseModel(), of_milo(rng, 7))
    assert fit.agreement == () and "no target has eight devices" in str(fit)


def test_every_number_that_is_fitted_has_a_unit_or_none():
    for _, _, model, _ in CASES.values():
        assert set(model.units) <= set(model.to_fit)
        of_noise = [name for name in model.to_fit if name.startswith("prog_coeff")]
        assert all(model.units[name].startswith("µS") for name in of_noise)


def test_devices_may_be_read_at_times_of_their_own():
    rng = np.random.default_rng(0)
    rows = []
    for target in (60.0, 120.0, 200.0):
        for repeat in range(60):
            g = target + (5 - 0.015 * target) * rng.normal()
            for t_s in rng.choice(TIMES_S, size=1 + repeat % 3, replace=False):
                rows.append((target, t_s, g, repeat))
    target, t_s, g, repeat = map(np.array, zip(*rows))
    reads = Measurements(g_target_us=target, t_s=t_s, g_us=g, repeat=repeat)
    fit = fit_noise_model(hw.ReRamMiloNoiseModel(), reads)
    assert fit.devices == 180
    for (_, value, low, high), number in zip(fit.rows(), (5.0, -0.015), strict=True):
        assert abs(value - number) < Z * (high - low) / (2 * 1.96)


class Overrides(hw.ReRamMiloNoiseModel):
    type: str = "overrides"

    def program(self, key, g_target):
        return super().program(key, g_target)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (hw.PCMLikeNoiseModel(), {"names": ("t0",)}, "no number 't0'"),
        (hw.PCMLikeNoiseModel(), {"names": ("type",)}, "no number 'type'"),
        (hw.PCMLikeNoiseModel(), {"names": ()}, "what to fit"),
        (hw.PCMLikeNoiseModel(), {"confidence": 95.0}, "between 0 and 1"),
        (hw.ReRamMiloNoiseModel(prog_coeff=(0.0,)), {}, "reads no spread"),
        (Overrides(), {}, "overrides program, but not programmed_from"),
    ],
)
def test_a_fit_that_cannot_be_made_is_an_error(model, options, message):
    reads = read_out(np.random.default_rng(3), (60.0, 120.0), 20, milo)
    with pytest.raises(ValueError, match=message):
        fit_noise_model(model, reads, **options)


def test_too_few_devices_and_a_value_at_a_bound_are_errors():
    few = read_out(np.random.default_rng(3), (60.0, 120.0), 4, milo)
    with pytest.raises(ValueError, match="ten devices or more, got 8"):
        fit_noise_model(hw.ReRamMiloNoiseModel(), few)
    quiet = read_out(
        np.random.default_rng(3),
        (5.0, 25.0),
        60,
        lambda rng, g, n: power_law(rng, g, n, 0.5, 0.1, 0.0, 0.05),
    )
    model = hw.StateIndependentNoiseModel(prog_coeff=(0.5,), read_noise_scale=0.1)
    with pytest.raises(ValueError, match="did not converge.*fewer names"):
        fit_noise_model(model, quiet, names=("drift_nu_std", "drift_nu_mean"))
