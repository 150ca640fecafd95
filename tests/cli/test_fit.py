"""`hwtrain fit`: measurements in, coefficients with intervals out."""

import tomllib

import numpy as np
import pytest

import hwtrain as hw
from hwtrain._parts.fields import from_dict
from hwtrain.cli import _fit, main


@pytest.fixture
def measurements(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "devices.csv"
    lines = ["g_target_us,t_s,g_us,repeat"]
    for target in (60.0, 120.0, 200.0):
        g = target + (5 - 0.015 * target) * rng.normal(size=80)
        lines += [f"{target},{t},{x},{n}" for n, x in enumerate(g) for t in (0.0, 60.0)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_fit_is_printed_and_written(measurements, tmp_path, capsys):
    out = tmp_path / "fit.toml"
    words = ["fit", str(measurements), "reram_milo", "--set", "g_max=200"]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "240 devices" in printed and "95% from" in printed
    assert "prog_coeff[0]" in printed and "prog_coeff[1]" in printed
    part = tomllib.loads(out.read_text())["hardware"]["noise_model"]
    assert part.pop("type") == "reram_milo"
    model = from_dict(hw.ReRamMiloNoiseModel, part)
    assert model.g_max == 200.0
    assert model.prog_coeff[0] == pytest.approx(5.0, abs=1.0)
    assert main([*words, "--out", str(out)]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_the_agreement_is_printed_and_a_folder_is_made(measurements, tmp_path, capsys):
    out = tmp_path / "new" / "deep" / "fit.toml"
    assert main(["fit", str(measurements), "reram_milo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "µS / µS^n" in printed and "mean: differs most at" in printed
    assert tomllib.loads(out.read_text())["hardware"]["noise_model"]


@pytest.mark.parametrize("where", ["/proc/fit.toml", "file/fit.toml", "devices.csv"])
def test_where_nothing_can_be_written_nothing_is_fitted(
    measurements, where, capsys, monkeypatch
):
    def fitted(*args, **kwargs):
        raise AssertionError("it was fitted first")

    monkeypatch.setattr(_fit, "fit_noise_model", fitted)
    monkeypatch.chdir(measurements.parent)
    (measurements.parent / "file").write_text("")
    words = ["fit", str(measurements), "reram_milo", "--out", where]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert where in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reram_mlo"], "did you mean 'reram_milo'? (docs/devices.md)\n"),
        (["reram_milo", "--set", "g_max"], "expected FIELD=VALUE"),
        (
            ["reram_milo", "--set", "g_max=-1"],
            "--set: g_max: expected a number greater than 0, got -1",
        ),
        (
            ["reram_milo", "--set", "g_mx=9"],
            "--set: unknown key g_mx; did you mean g_max?",
        ),
        (["reram_milo", "--names", "t_0"], "no number 't_0'"),
        (["measured"], "read at three times or more"),
    ],
)
def test_bad_input_is_one_line(measurements, words, message, capsys):
    assert main(["fit", str(measurements), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
