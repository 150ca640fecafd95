"""Tests of the command line's arguments; each command has its own tests."""

import importlib
import subprocess
import sys

import pytest

from hwtrain import cli
from hwtrain.checkpoint.adapters import ADAPTERS
from hwtrain.cli._parser import TECHNOLOGIES, make_parser
from hwtrain.evaluate import technologies
from hwtrain.periphery._calibration import METHODS
from hwtrain.train._hardware import preset_names

COMMANDS = [
    "train",
    "evaluate",
    "calibrate",
    "export",
    "inspect",
    "verify",
    "convert",
    "completion",
    "doctor",
    "fit",
    "new",
]


@pytest.mark.parametrize("words", [[], ["train"], ["convert"]], ids=" ".join)
def test_help_loads_nothing_that_is_slow(words):
    code = """
import sys
from hwtrain.cli import main
try:
    main()
finally:
    print("loaded:", *sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    said, _, loaded = run.stdout.partition("loaded:")
    assert said.startswith(f"usage: {' '.join(['hwtrain', *words])} ")
    slow = {"jax", "numpy", "flax", "optax", "orbax", "pydantic", "rich", "scipy"}
    assert not slow & {*loaded.split()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_listed_and_has_its_module(command):
    assert command in make_parser().format_help().split()
    assert callable(importlib.import_module(f"hwtrain.cli._{command}").main)


@pytest.mark.parametrize("target", ADAPTERS)
def test_every_adapter_is_taken(target):
    options = make_parser().parse_args(["convert", "checkpoint", "--to", target])
    assert (options.command, options.to) == ("convert", target)


def test_every_technology_is_in_the_help():
    assert TECHNOLOGIES == tuple(preset_names(technologies))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_taken(method):
    words = ["calibrate", "run", "out", "--method", method]
    assert make_parser().parse_args(words).method == method


@pytest.mark.parametrize(
    "words", [["0", "3.15e7", "1"], ["0,3.15e7,1"], ["0,3.15e7", "1"]]
)
def test_times_are_words_or_have_commas(words):
    options = make_parser().parse_args(["evaluate", "run", "--times", *words])
    assert options.times == [0.0, 3.15e7, 1.0]


@pytest.mark.parametrize("words", [["1h"], ["0,"], ["0;1"]])
def test_what_is_no_time_says_how_times_are_written(words, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["evaluate", "run", "--times", *words])
    said = f"expected seconds, such as 0 3600 or 0,3600, got {words[-1]!r}"
    assert said in capsys.readouterr().err


def test_no_other_method_is_taken(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["calibrate", "a", "b", "--method=x"])
    error = capsys.readouterr().err.replace("'", "")
    assert f"(choose from {', '.join(METHODS)})" in error


def test_the_help_names_every_adapter(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["convert", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(ADAPTERS)}, or one of your own" in said


def test_no_other_adapter_is_taken(capsys):
    assert cli.main(["convert", "checkpoint", "--to", "x"]) == 2
    assert "expected the adapter to be one of aihwkit," in capsys.readouterr().err
