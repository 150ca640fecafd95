"""Tables that people read: what is alike stands once, and no line breaks a word."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.tables import WIDTH, as_text, tables_of

CHIP = dataclasses.replace(
    hw.presets.pcm(),
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    input_range=hw.InputRangeParameter(),
    forward=hw.IOParameters(inp_bits=8, out_bits=8, out_bound=12.0),
)
X = jnp.ones((2, 4))


class Model(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            x = nn.Dense(4, name=f"layer_{i}")(x)
        return nn.Dense(3, name="head")(x)


def texts(layers, rules):
    analog = hw.analogize(Model(layers), rules)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    return (
        str(hw.inspect(analog, variables, X)),
        str(hw.plan(analog, variables, X)),
    )


@pytest.mark.parametrize(
    ("layers", "rules"),
    [
        (0, CHIP),
        (1, CHIP),
        (6, [hw.Rule("head", hw.presets.hermes()), hw.Rule(".*", CHIP)]),
    ],
    ids=str,
)
def test_what_is_alike_stands_once_and_no_word_is_broken(layers, rules):
    for text in texts(layers, rules):
        assert max(map(len, text.splitlines())) <= WIDTH
        assert text.count("pcm_like") == 1 and "head/kernel" in text
        assert text.count("hermes") == isinstance(rules, list)


def test_rows_that_differ_in_few_ways_are_told_together():
    rows = [
        {"weight": f"w{i}", "shape": f"{i}x4", "noise": "much " * 30, "clip": "none"}
        for i in range(6)
    ]
    rows.append({"weight": "last", "shape": "4x9", "noise": "none", "clip": "none"})
    text = as_text(tables_of(rows, "Analog"))
    assert "Analog: w0, w1, w2, w3, w4, w5" in text and "Analog: last" in text
    assert text.count("much") == 30  # in one cell
    for row in rows:
        assert sum(row["shape"] in line for line in text.splitlines()) == 1


def test_where_a_dac_cuts_inputs_that_no_range_fits_to_it_is_told():
    for io, expected in (
        (hw.IOParameters(inp_bits=8), "none: inputs are cut at 1"),
        (hw.IOParameters(inp_bits=8, inp_bound=0.5), "none: inputs are cut at 0.5"),
        (hw.IOParameters(inp_bits=8, noise_management="abs_max"), "none"),
        (hw.IOParameters(out_noise=0.1), "none"),
    ):
        analog = hw.analogize(nn.Dense(3), hw.Hardware(forward=io))
        variables = jax.jit(analog.init)(jax.random.key(0), X)
        row = hw.inspect(analog, variables, X).rows[0]
        assert row["input range"] == expected
