"""Tests of `hwtrain config`."""

import json
import tomllib
from pathlib import Path

import pytest

from hwtrain import cli
from hwtrain.train import read_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_what_it_shows_is_the_whole_configuration(path, tmp_path, capsys):
    words = ["--set", "training.steps=7"]
    assert cli.main(["config", "show", str(path), *words]) == 0
    shown = capsys.readouterr().out
    data = tomllib.loads(shown)
    assert data["training"]["steps"] == 7 and data["training"]["devices"] == 1
    # Beside the recipes, whose parts are named relative to the file.
    (tmp_path / "recipes").symlink_to(CONFIGS.parent / "recipes")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shown.toml").write_text(shown)
    expected = read_config(path, words[1:])
    assert read_config(tmp_path / "configs" / "shown.toml") == expected


def test_it_checks_as_a_training_does(capsys):
    path = str(CONFIGS / "digits_mlp.toml")
    assert cli.main(["config", "check", path]) == 0
    assert "is right: 2,000 updates for 3 seeds, 3 analog arrays" in (
        capsys.readouterr().out.replace("2000", "2,000")
    )
    assert cli.main(["config", "check", path, "--set", "hardware.outputs.bits=8"]) == 0
    assert "3 modules with results in few bits" in capsys.readouterr().out
    wrong = ["--set", "training.batch_size=9999"]
    assert cli.main(["config", "check", path, *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hwtrain: error: --set training.batch_size=9999: ")
    assert error.count("\n") == 1


def test_it_prints_the_schema(capsys):
    assert cli.main(["config", "schema"]) == 0
    assert "$defs" in json.loads(capsys.readouterr().out)
