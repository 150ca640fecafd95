"""`hwtrain new`."""

import errno
import importlib.resources
import subprocess
import sys

import pytest

from hwtrain.cli import main


@pytest.mark.parametrize("options", [[], ["--nnx"]], ids=["linen", "nnx"])
def test_a_new_project_is_one_that_hwtrain_accepts(options, tmp_path, capsys):
    folder = tmp_path / "my project"
    assert main(["new", str(folder), *options]) == 0
    assert f"cd '{folder}' && python -m pytest" in capsys.readouterr().out
    found = {path.name for path in folder.iterdir()}
    assert found == {"README.md", "project.py", "project.toml", "test_project.py"}
    assert (folder / "README.md").read_text("utf-8").startswith("# my project\n")
    assert ("nnx.Module" in (folder / "project.py").read_text("utf-8")) == bool(options)
    assert main(["config", "check", str(folder / "project.toml")]) == 0
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.nightly
@pytest.mark.parametrize("options", [[], ["--nnx"]], ids=["linen", "nnx"])
def test_a_new_project_passes_its_own_test(options, tmp_path):
    assert main(["new", str(tmp_path / "mine"), *options]) == 0
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "mine",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout


def test_a_folder_that_exists_is_left_alone(tmp_path, capsys):
    kept = tmp_path / "mine" / "project.py"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert main(["new", str(kept.parent)]) == 2
    assert "exists already; name a new folder" in capsys.readouterr().err
    assert [*tmp_path.rglob("*.*")] == [kept] and kept.read_text() == "mine"


def test_a_folder_in_none_is_refused(tmp_path, capsys):
    assert main(["new", str(tmp_path / "none" / "mine")]) == 2
    assert "is not a folder; make it first" in capsys.readouterr().err


def test_a_failure_leaves_nothing(tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("pathlib.Path.write_text", broken)
    assert main(["new", str(tmp_path / "mine")]) == 2
    assert f"{tmp_path / 'mine'} could not be written: " in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_name_with_a_dash_is_no_option_of_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "--", "-x"]) == 0
    assert "  cd ./-x && python -m pytest" in capsys.readouterr().out


def test_every_template_is_in_the_package():
    found = importlib.resources.files("hwtrain.cli") / "_project"
    names = {path.name for path in found.iterdir()}
    expected = {"README.md", "linen.py", "nnx.py", "project.toml", "test_project.py"}
    assert names == {f"{name}.txt" for name in expected}
