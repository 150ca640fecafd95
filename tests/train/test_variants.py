"""Other hardware for a trained model: values, where they go, and refusals."""

import dataclasses

import pytest

import hwtrain as hw
from hwtrain.train._config import Config, RuleParameter, TrainingParameter
from hwtrain.train._variants import (
    combinations,
    parse_varied,
    require_effect,
    with_entries,
)


def config(**options):
    chip = dataclasses.replace(
        hw.presets.pcm(), forward=hw.IOParameters(out_noise=0.1, out_bound=10.0)
    )
    return Config(
        **{
            "model": "a.py:model",
            "data": "a.py:data",
            "training": TrainingParameter(steps=1),
            "hardware": chip,
            **options,
        }
    )


@pytest.mark.parametrize(
    "text, key, values",
    [
        ("forward.out_bits=4,6, 8", "forward.out_bits", (4, 6, 8)),
        ("a.b=0.1,1e-3", "a.b", (0.1, 1e-3)),
        ("a=none,global", "a", ("none", "global")),
        ('a="x,y",z', "a", ('"x', 'y"', "z")),
        ('a={type="x", b=1},{type="y"}', "a", ({"type": "x", "b": 1}, {"type": "y"})),
        ("a=true,false", "a", (True, False)),
        ("a=1,none", "a", (1, "none")),
        ("a=[1,2],[3,4]", "a", ([1, 2], [3, 4])),
    ],
)
def test_values_are_read_as_toml_or_as_words(text, key, values):
    assert parse_varied([text], "--vary") == {key: values}


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a= "])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="--grid .*expected KEY=VALUE"):
        parse_varied([text], "--grid")


def test_a_key_given_twice_is_refused():
    with pytest.raises(ValueError, match="given twice"):
        parse_varied(["a=1", "a=2"], "--vary")


def test_combinations_are_all_in_order():
    assert combinations({}) == [{}]
    found = combinations({"a": (1, 2), "b": ("x", "y")})
    expected = [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert [tuple(one.values()) for one in found] == expected


def test_entries_reach_every_layer_that_has_their_table():
    quiet = dataclasses.replace(hw.presets.pcm(), forward=None)
    loud = dataclasses.replace(hw.presets.pcm(), forward=hw.IOParameters(out_noise=0.3))
    rules = (
        RuleParameter(pattern="a", hardware=quiet),
        RuleParameter(pattern="b", hardware=loud),
        RuleParameter(pattern="c", digital=True),
    )
    found = with_entries(config(rules=rules), {"forward.inp_bits": 7}, "--vary")
    assert found.hardware.forward.inp_bits == 7
    assert found.hardware.forward.out_noise == 0.1
    assert found.rules[0].hardware == quiet
    assert found.rules[1].hardware.forward == dataclasses.replace(
        loud.forward, inp_bits=7
    )
    assert found.rules[2] == rules[2]


def test_tables_are_changed_replaced_left_out_and_added():
    base = config()
    vary = lambda **entries: with_entries(base, entries, "--vary").hardware  # noqa: E731
    same = vary(noise_model={"prog_noise_scale": 2.0})
    assert same.noise_model == hw.PCMLikeNoiseModel(prog_noise_scale=2.0)
    other = vary(noise_model={"type": "hermes", "g_max": 25})
    assert other.noise_model == hw.HermesNoiseModel(g_max=25)
    assert vary(noise_model="none").noise_model is None
    assert vary(drift_compensation="none") == base.hardware
    added = vary(drift_compensation="global").drift_compensation
    assert added == hw.GlobalDriftCompensation()


@pytest.mark.parametrize(
    "entries, expected",
    [
        ({"forwad.out_bits": 4}, "no layer's hardware .*it has converter, forward"),
        ({"clip.sigma": 1.0}, "no layer's hardware has this entry"),
        ({"forward.stages.0.sigma": 1.0}, "no layer's hardware has this entry"),
        ({"forward.out_bit": 4}, "did you mean hardware.forward.out_bits"),
        ({"forward.out_bits": "a"}, 'whole number, got "a"'),
        ({"noise_model": "hermes"}, "must be the same"),
        ({"noise_model": "flash"}, "flash"),
    ],
)
def test_entries_that_do_not_fit_are_one_line(entries, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        with_entries(config(), entries, "--vary")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--vary")


@pytest.mark.parametrize("key", ["modifier.std_dev", "clip.sigma", "input_range.decay"])
def test_what_acts_in_training_only_is_refused(key):
    modifier = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    quiet = config(hardware=hw.Hardware(modifier=modifier))
    with pytest.raises(ValueError, match="in training only.*hwtrain sweep"):
        require_effect(quiet, key, "--vary")
    loud = dataclasses.replace(modifier, enable_during_test=True)
    require_effect(config(hardware=hw.Hardware(modifier=loud)), "modifier.std_dev", "")
    require_effect(quiet, "forward.out_bits", "--vary")
