"""Constants of technologies in files, and costs in the results of a run."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

import hwtrain as hw
from hwtrain.cli import main
from hwtrain.evaluate import technologies
from hwtrain.train import prepare, read_config
from hwtrain.train._cost import cost_of
from hwtrain.train._hardware import preset_names
from hwtrain.train._schema import schema

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = [
    "training.seeds=[0]",
    "training.steps=2",
    "evaluation.chips=1",
    "evaluation.mismatch_std=[0.0]",
]


def read(*overrides):
    return read_config(CONFIGS / "digits_mlp.toml", [*QUICK, *overrides])


@pytest.mark.parametrize("name", preset_names(technologies))
def test_a_technology_is_what_its_function_returns(name):
    assert read(f'cost.preset="{name}"').cost == getattr(technologies, name)()


def test_entries_change_a_technology_and_the_source_says_so():
    found = read('cost.preset="hermes_core"', "cost.digital_mac_energy_fj=230.0").cost
    base = technologies.hermes_core()
    source = f"{base.source}; changed: digital_mac_energy_fj"
    assert found == dataclasses.replace(
        base, digital_mac_energy_fj=230.0, source=source
    )
    ours = read('cost.preset="hermes"', "cost.read_time_ns=1.0", 'cost.source="ours"')
    assert ours.cost.source == "ours"


def test_constants_of_ones_own(tmp_path):
    config = read('cost.source="a data sheet"', "cost.row_energy_fj=1.0")
    assert config.cost == hw.CostParameter(source="a data sheet", row_energy_fj=1.0)
    assert read().cost is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (['cost.preset="isac"'], "cost.preset: expected one of hermes, hermes_core, i"),
        (['cost.preset="math:sqrt"'], "cost.preset: math:sqrt raised"),
        (["cost.row_energy_fj=1.0"], "cost.source: expected a value"),
        (['cost.preset="isaac"', "cost.adc_bits=8"], "unknown key cost.adc_bits"),
        (['cost.source="x"', "cost.read_time_ns=-1.0"], "cost.read_time_ns: expected"),
    ],
)
def test_wrong_constants_are_one_line(overrides, said):
    with pytest.raises(ValueError, match=said) as caught:
        read(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["digits_mlp", "digits_mlp_nnx"])
def test_a_run_has_the_costs_of_its_model(config):
    path = CONFIGS / f"{config}.toml"
    config = read_config(path, [*QUICK, 'cost.preset="hermes_core"'])
    found = cost_of(config, prepare(config, path.parent))
    # Three layers of one tile each: 131,072 operations at 10.5 TOPS/W, 1.008 TOPS and
    # 1.59 TOPS/mm²; a pair of devices for each weight.
    assert found["energy_nj_per_example"] == pytest.approx(3 * 131.072 / 10.5)
    assert found["latency_us_per_example"] == pytest.approx(3 * 0.131072 / 1.008)
    assert found["area_mm2"] == pytest.approx(3 * 1.008 / 1.59)
    assert found["devices"] == 2 * (64 * 128 + 128 * 64 + 64 * 10)
    config = dataclasses.replace(config, cost=None)
    assert cost_of(config, None) is None


def test_a_cost_that_cannot_be_known_is_refused_before_training():
    config = read('cost.preset="isaac"')
    with pytest.raises(ValueError, match="^cost: .*: its hardware has no DAC"):
        prepare(config, CONFIGS)


def test_the_schema_has_technologies():
    check = jsonschema.Draft202012Validator(schema())
    base = {"model": "a:b", "data": "a:b", "training": {"steps": 1}}
    for cost in ({"preset": "isaac"}, {"source": "x"}, {"preset": "a.py:b"}):
        assert check.is_valid({**base, "cost": cost}), cost
    for cost in (
        {"preset": "isac"},
        {"row_energy_fj": 1.0},
        {"preset": "isaac", "x": 1},
    ):
        assert not check.is_valid({**base, "cost": cost}), cost


@pytest.mark.nightly
def test_results_hold_the_totals(tmp_path):
    out = tmp_path / "run"
    words = [word for value in QUICK for word in ("--set", value)]
    words += ["--set", 'cost.preset="hermes_core"', "--out", str(out)]
    assert main(["train", str(CONFIGS / "digits_mlp.toml"), *words]) == 0
    found = json.loads((out / "results.json").read_text())["cost"]
    config = read('cost.preset="hermes_core"')
    assert found == cost_of(config, prepare(config, CONFIGS))
