"""`hwtrain doctor`."""

import importlib.metadata
import subprocess
import sys

import pytest

from hwtrain.cli import _doctor, _self_test, main

REAL = importlib.metadata.version


def test_a_sound_installation_passes(capsys):
    assert main(["doctor", "--quick"]) == 0
    said = capsys.readouterr().out
    for name in ("Python", "jax", "orbax-checkpoint", "extra nir", "backend"):
        assert name in said
    assert REAL("flax") in said and "All is well" in said
    assert "Self-test" not in said


def test_packages_that_do_not_fit_are_named_with_the_way_out(capsys, monkeypatch):
    def version(name):
        if name == "nir":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"flax": "0.1.0"}.get(name) or REAL(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor", "--quick"]) == 1
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "0.1.0 (needs <0.13" in said and "pip install 'flax" in said
    # A missing extra is no fault.
    assert "without nir: pip install 'hwtrain[nir]'" in said
    assert "1 to mend" in said


def test_a_missing_package_is_named(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = {name: (found, fault) for name, found, fault in _doctor.packages()}
    assert rows["optax"] == ("missing", "pip install 'optax>=0.2.8'")


def test_a_part_that_fails_does_not_hide_the_others(capsys, monkeypatch):
    def nothing(*args):
        raise ValueError("configured effects that do [nothing]")

    monkeypatch.setattr(_self_test.evaluate, "assert_active", nothing)
    for name in ("_trains", "_agrees", "_exports"):
        monkeypatch.setattr(_self_test, name, lambda: "done")
    monkeypatch.setattr(_self_test, "_small", lambda: ())
    assert main(["doctor"]) == 1
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "failed: ValueError: configured effects that do [nothing]" in said
    assert said.count("done") == 3


@pytest.mark.nightly
def test_the_small_model_passes(capsys):
    assert main(["doctor"]) == 0
    assert "verified" in capsys.readouterr().out


def test_a_package_that_does_not_import_is_named(capsys, monkeypatch):
    real = importlib.import_module

    def imported(name, *args):
        if name == "scipy":
            raise ImportError("libopenblas.so: no such file")
        return real(name, *args)

    monkeypatch.setattr(_doctor.importlib, "import_module", imported)
    rows = {name: fault for name, _, fault in _doctor.packages()}
    assert "ImportError: libopenblas.so: no such file: pip install" in rows["scipy"]
    assert not rows["numpy"] and not rows["orbax-checkpoint"]


@pytest.mark.nightly
def test_a_file_that_hides_a_package_is_named(tmp_path):
    (tmp_path / "flax.py").write_text("")
    command = [sys.executable, "-m", "hwtrain", "doctor", "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "no import: ImportError: cannot import name" in said
    assert "flax.py" in said.replace(" ", "") and "may hide one" in said
    assert done.returncode == 1 and not done.stderr


def test_a_backend_that_is_not_there_is_a_row(capsys, monkeypatch):
    def devices():
        raise RuntimeError("no such\nbackend")

    monkeypatch.setattr(_self_test.jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    assert main(["doctor", "--quick"]) == 1
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "failed: RuntimeError: no such backend (JAX_PLATFORMS=foo: unset" in said
    assert "1 to mend" in said
