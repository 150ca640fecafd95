import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.devices import (
    MeasuredNoiseModel,
    Measurements,
    fit_measurements,
    plot_fit,
    read_measurements,
)
from hwtrain.devices._programmed import Programmed

HEADER = "g_target_us,t_s,g_us,repeat\n"
# A correct estimator leaves 4.5 standard errors once in 150,000 keys.
Z = 4.5
TRUE = MeasuredNoiseModel(
    g_max=20.0,
    g_lst=(5.0, 10.0, 20.0),
    sigma_lst=(0.4, 0.6, 0.8),
    nu_mean_lst=(0.08, 0.05, -0.02),
    nu_std_lst=(0.02, 0.01, 0.005),
    read_level_lst=(0.03, 0.02, 0.01),
)
TIMES_S = np.geomspace(1.0, 1e5, 8)


def measure(model, repeats, seed=0):
    """Reads devices of a model: the independent way from a model to measurements."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, target in enumerate(model.g_lst):
        for repeat in range(repeats):
            g_prog = target + model.sigma_lst[index] * rng.standard_normal()
            nu = model.nu_mean_lst[index]
            nu += model.nu_std_lst[index] * rng.standard_normal()
            g = g_prog * ((TIMES_S + model.t_0) / model.t_0) ** -nu
            level = model.read_level_lst[index]
            g = g * (1 + level * rng.standard_normal(len(TIMES_S)))
            rows += [(target, t, x, repeat) for t, x in zip(TIMES_S, g)]
    return rows


def write(path, rows):
    lines = [f"{target},{t!r},{g!r},{repeat}\n" for target, t, g, repeat in rows]
    path.write_text(HEADER + "".join(lines).replace("np.float64(", "").replace(")", ""))
    return path


def as_measurements(rows):
    target, t_s, g, repeat = (np.asarray(column) for column in zip(*rows))
    return Measurements(g_target_us=target, t_s=t_s, g_us=g, repeat=repeat)


def test_the_fit_finds_the_model_that_was_measured(tmp_path):
    n = 400
    path = write(tmp_path / "devices.csv", measure(TRUE, n))
    model = fit_measurements(read_measurements(path))
    assert model.g_lst == TRUE.g_lst and model.g_max == 20.0
    x = np.log((TIMES_S + 20) / 20)
    square = np.sum((x - x.mean()) ** 2)
    for index in range(3):
        level = TRUE.read_level_lst[index]
        nu_std, sigma = TRUE.nu_std_lst[index], TRUE.sigma_lst[index]
        # What the fit of one device sees: its own spread and that of its reads.
        seen_nu = np.hypot(nu_std, level / np.sqrt(square))
        intercept = level * np.sqrt(1 / len(x) + x.mean() ** 2 / square)
        seen_g = np.hypot(sigma, TRUE.g_lst[index] * intercept)
        error = abs(model.nu_mean_lst[index] - TRUE.nu_mean_lst[index])
        assert error < Z * seen_nu / np.sqrt(n)
        error = abs(model.nu_std_lst[index] - nu_std)
        assert error < Z * seen_nu**2 / nu_std / np.sqrt(2 * n)
        error = abs(model.sigma_lst[index] - sigma)
        assert error < Z * seen_g**2 / sigma / np.sqrt(2 * n)
        error = abs(model.read_level_lst[index] - level)
        # 6 residual degrees of freedom for each device.
        assert error < Z * level / np.sqrt(2 * 6 * n)


def test_exact_reads_are_fitted_exactly():
    rows = []
    for target, nu in ((5.0, 0.1), (10.0, 0.03)):
        for repeat, error in enumerate((1.0, -1.0)):
            g = (target + error) * ((TIMES_S + 7) / 7) ** -nu
            rows += [(target, t, x, repeat) for t, x in zip(TIMES_S, g)]
    model = fit_measurements(as_measurements(rows), t_0=7.0)
    assert model.t_0 == 7.0
    np.testing.assert_allclose(model.sigma_lst, [1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(model.nu_mean_lst, [0.1, 0.03], rtol=1e-6)
    np.testing.assert_allclose(model.nu_std_lst, [0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(model.read_level_lst, [0.0, 0.0], atol=1e-6)


def test_curves_are_linear_between_points_and_constant_outside():
    g = jnp.float32([0.0, 5.0, 7.5, 20.0, 30.0])
    np.testing.assert_allclose(
        TRUE.programming_sigma(g), [0.4, 0.4, 0.5, 0.8, 0.8], rtol=1e-6
    )
    np.testing.assert_allclose(
        TRUE.drift_mean(g), [0.08, 0.08, 0.065, -0.02, -0.02], rtol=1e-6
    )
    np.testing.assert_allclose(
        TRUE.drift_std(g), [0.02, 0.02, 0.015, 0.005, 0.005], rtol=1e-6
    )
    devices = Programmed(g_target=g, g_prog=2 * g, nu=jnp.zeros(5))
    level = np.float32([0.03, 0.03, 0.025, 0.01, 0.01])
    np.testing.assert_allclose(TRUE.read_sigma(devices, 9.0), level * 2 * g, rtol=1e-6)


def test_a_conductance_may_grow():
    n = 20_000
    devices = TRUE.program(jax.random.key(0), jnp.full(n, 20.0))
    assert abs(devices.nu.mean() + 0.02) < Z * 0.005 / np.sqrt(n)
    assert abs(devices.nu.std() - 0.005) < Z * 0.005 / np.sqrt(2 * n)
    error = devices.g_prog - 20
    assert abs(error.std() - 0.8) < Z * 0.8 / np.sqrt(2 * n)
    assert abs(np.corrcoef(error, devices.nu)[0, 1]) < Z / np.sqrt(n)
    assert TRUE.mean_at(devices, 1e5).mean() > 20


def test_round_trip():
    assert from_dict(MeasuredNoiseModel, to_dict(TRUE)) == TRUE
    hash(TRUE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header must be g_target_us,t_s,g_us,repeat; got ''"),
        ("target,time,g,n\n", "line 1: .*got 'target,time,g,n'"),
        (HEADER, "line 2: expected measurements"),
        (HEADER + "5,1,5.1,0\n5,2,5.0\n", r"line 3: expected 4 columns .*got 3"),
        (HEADER + "5,1,x,0\n", "line 2: g_us must be a finite number, got 'x'"),
        (HEADER + "5,1,nan,0\n", "line 2: g_us must be a finite number, got 'nan'"),
        (HEADER + "\n5,-1,5,0\n", "line 3: t_s must not be negative, got -1"),
        (HEADER + "-5,1,5,0\n", "line 2: g_target_us must not be negative"),
        (HEADER + "5,1,5,0.5\n", "line 2: repeat must be a whole number, got '0.5'"),
        (
            HEADER + "5,1,5,0\n5,2,5,0\n5,1,4,0\n",
            "line 4: repeat 0 of target 5 µS was already read at 1 s, on line 2",
        ),
    ],
)
def test_a_malformed_file_is_an_error_with_its_line(tmp_path, text, message):
    path = tmp_path / "devices.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"devices.csv, {message}"):
        read_measurements(path)


def test_too_few_measurements_are_an_error():
    rows = measure(TRUE, 3)
    with pytest.raises(ValueError, match="all measurements have the target 5 µS"):
        fit_measurements(as_measurements([row for row in rows if row[0] == 5.0]))
    with pytest.raises(ValueError, match="repeat 0 of target 5 µS was read at 2"):
        fit_measurements(as_measurements([row for row in rows if row[1] < 10]))
    with pytest.raises(ValueError, match="target 5 µS has 1 of 1"):
        fit_measurements(as_measurements([row for row in rows if row[3] == 0]))


def test_a_device_read_below_zero_takes_no_part():
    rows = measure(TRUE, 4)
    clean = fit_measurements(as_measurements(rows))
    broken = [(5.0, t, -0.1, 9) for t in TIMES_S]
    assert fit_measurements(as_measurements(rows + broken)) == clean


def test_the_plot_shows_reads_and_model(tmp_path):
    measurements = as_measurements(measure(TRUE, 4))
    figure = plot_fit(TRUE, measurements)
    (axes,) = figure.axes
    lines = axes.get_lines()
    assert len(lines) == 6
    at = measurements.g_target_us == 10.0
    np.testing.assert_array_equal(lines[2].get_ydata(), measurements.g_us[at])
    mean = 10.0 * ((lines[3].get_xdata() + 20) / 20) ** -0.05
    np.testing.assert_allclose(lines[3].get_ydata(), mean, rtol=1e-5)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "5 µS",
        "10 µS",
        "20 µS",
    ]
    figure.savefig(tmp_path / "fit.png")


def test_the_plot_s_band_holds_the_reads():
    measurements = as_measurements(measure(TRUE, 200))
    (axes,) = plot_fit(TRUE, measurements).axes
    # 95 % of the reads of 200 devices; those of one device move together.
    for index, target in enumerate(TRUE.g_lst):
        at = measurements.g_target_us == target
        t_s, g = measurements.t_s[at], measurements.g_us[at]
        path = axes.collections[index].get_paths()[0].vertices
        half = len(path) // 2
        low = np.interp(t_s, *path[1 : half - 1].T)
        high = np.interp(t_s, *path[half + 1 : -1][::-1].T)
        low, high = np.minimum(low, high), np.maximum(low, high)
        share = np.mean((g > low) & (g < high))
        assert abs(share - 0.9545) < Z * np.sqrt(0.9545 * 0.0455 / 200)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'hwtrain\[recipes\]'"):
        plot_fit(TRUE, as_measurements(measure(TRUE, 2)))
