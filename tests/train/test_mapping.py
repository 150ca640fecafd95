"""Advice on a trained model's mapping, against all mappings within the budget."""

import dataclasses
import itertools
import tomllib
from pathlib import Path

import numpy as np
import pytest

import hwtrain as hw
from hwtrain import cli
from hwtrain.cli._options import open_model
from hwtrain.cli._parser import make_parser
from hwtrain.train._mapping import (
    DEVICES,
    DIGITAL,
    TWICE,
    WEIGHTS,
    advise,
    as_rules,
    choices_of,
    shadowed,
)
from hwtrain.train._reading import read_config
from hwtrain.train._toml import as_toml

ROOT = Path(__file__).parents[2]
CONFIG = """
model = "{root}/recipes/digits.py:{model}"
data = "{root}/recipes/digits.py:data"

[training]
steps = 150
learning_rate = 2e-3

[hardware]
preset = "pcm"
noise_model = {{ prog_noise_scale = 6.0 }}
input_range = {{}}

[evaluation]
chips = 12
"""

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module", params=["mlp", "mlp_nnx"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapping")
    config = folder / "small.toml"
    config.write_text(CONFIG.format(root=ROOT, model=request.param))
    out = folder / "run"
    assert cli.main(["train", str(config), "--out", str(out)]) == 0
    return open_model(make_parser().parse_args(["advise", str(out)]))


def by_hand(model, mapped):
    """The metric with the rules of a mapping, from plain parameters."""
    run = model.run
    chip = run.config.hardware
    two = hw.NPairConductanceConverter(f_lst=(1.0, 1.0), g_max=25.0)
    kinds = {DIGITAL: None, TWICE: dataclasses.replace(chip, converter=two)}
    rules = [hw.Rule(layer, kinds[kind]) for layer, kind in mapped]
    drop = {layer for layer, kind in mapped if kind == DIGITAL}
    params = {
        layer: {
            name: leaf
            for name, leaf in its.items()
            if name in ("kernel", "bias") or layer not in drop
        }
        for layer, its in model.variables["params"].items()
    }
    variables = {**model.variables, "params": params}
    return run.population(variables, chips=12, hardware=[*rules, chip]).values


def test_greedy_gains_nearly_what_all_mappings_can(model):
    run = model.run
    budgets = {WEIGHTS: 9000.0, DEVICES: 17000.0}
    steps = advise(run, model.variables, budgets, chips=12)
    choices = choices_of(run)
    assert {(c.layer, c.kind, c.amount) for c in choices} >= {
        ("head", DIGITAL, 640),
        ("hidden_0", TWICE, 16384),
    }
    layers = sorted({choice.layer for choice in choices})
    best = -np.inf
    for some in itertools.product(
        *([None, *(c for c in choices if c.layer == x)] for x in layers)
    ):
        chosen = [c for c in some if c is not None]
        used = {
            name: sum(c.amount for c in chosen if c.budget == name) for name in budgets
        }
        if all(used[name] <= budgets[name] for name in budgets):
            mapped = frozenset((c.layer, c.kind) for c in chosen)
            best = max(best, by_hand(model, mapped).mean())
    first, last = steps[0].values.mean(), steps[-1].values.mean()
    mapped = frozenset((s.choice.layer, s.choice.kind) for s in steps[1:])
    np.testing.assert_allclose(steps[-1].values, by_hand(model, mapped), atol=1e-4)
    assert last - first >= 0.75 * (best - first) > 0


def test_the_advised_rules_are_a_configuration(model, tmp_path, capsys):
    words = ["advise", str(model.run.folder), "--digital", "0.05", "--chips", "12"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    text = said.partition("before other rules:")[2]
    rules = tomllib.loads(text)["rules"]
    assert rules == [{"pattern": "head", "digital": True}]
    both = as_rules(model.run, frozenset({("head", TWICE), ("hidden_1", DIGITAL)}))
    written = f"{(model.run.folder.parent / 'small.toml').read_text()}\n"
    for rule in both:
        entries = [f"{k} = {as_toml(v)}" for k, v in rule.items()]
        written += "\n".join(["", "[[rules]]", *entries, ""])
    (tmp_path / "advised.toml").write_text(written)
    config = read_config(tmp_path / "advised.toml")
    head, hidden = config.rules
    assert head.hardware.converter == hw.NPairConductanceConverter(
        f_lst=(1.0, 1.0), g_max=25.0
    )
    assert head.hardware.noise_model == config.hardware.noise_model
    assert hidden.digital


def test_rules_of_the_layers_own_are_kept_or_deleted(tmp_path, capsys):
    """What is advised, read back, is the hardware that was evaluated."""
    more = """
[[rules]]
pattern = "head"
forward = { out_noise = 0.02 }
noise_model = { prog_noise_scale = 8.0 }
frozen = true

[[rules]]
pattern = "hidden_0"
input_range = "none"
"""
    text = CONFIG.format(root=ROOT, model="mlp")
    (tmp_path / "ruled.toml").write_text(text + more)
    out = tmp_path / "run"
    quick = ["--set", "training.steps=20", "--set", "evaluation.chips=4"]
    words = ["train", str(tmp_path / "ruled.toml"), *quick, "--out", str(out)]
    assert cli.main(words) == 0
    opened = open_model(make_parser().parse_args(["advise", str(out)]))
    run, both = opened.run, frozenset({("head", TWICE), ("hidden_0", TWICE)})
    assert [rule.expression for rule in shadowed(run, both)] == ["head", "hidden_0"]
    assert not shadowed(run, frozenset({("hidden_1", DIGITAL)}))
    written = text
    for rule in as_rules(run, both):
        entries = [f"{name} = {as_toml(value)}" for name, value in rule.items()]
        written += "\n".join(["", "[[rules]]", *entries, ""])
    (tmp_path / "advised.toml").write_text(written)
    config = read_config(tmp_path / "advised.toml")
    two = hw.NPairConductanceConverter(f_lst=(1.0, 1.0), g_max=25.0)
    for advised, before in zip(config.rules, run.config.rules, strict=True):
        expected = dataclasses.replace(before.hardware, converter=two)
        assert advised.hardware == expected
        assert (advised.pattern, advised.frozen) == (before.pattern, before.frozen)
    capsys.readouterr()
    budget = ["--digital", "0.04", "--chips", "4"]
    assert cli.main(["advise", str(out), *budget]) == 0
    said = capsys.readouterr().out
    assert "head" not in said or "Delete the rule 'head'" in said
    assert cli.main(["advise", str(out), "--digital", "0.04", "--chips", "1"]) == 2
    assert "at least two chips" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], "expected a budget"),
        (["--digital", "0.0001"], "the smallest would take 640"),
        (["--digital", "2"], "a share from 0 to 1"),
        (["--devices", "3"], "a factor from 1 to 2"),
        (["--digital", "0.1", "--times", "0", "1"], "expected one time"),
    ],
)
def test_a_budget_that_allows_nothing_is_one_line(model, words, expected, capsys):
    assert cli.main(["advise", str(model.run.folder), *words]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
