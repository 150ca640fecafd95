"""Printed tables state shared entries once and break no words."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

import hwtrain as hw
from hwtrain._plan.tables import WIDTH, as_text, tables_of
from hwtrain.evaluate import Population, Sensitivity

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
    for forward, expected in (
        (hw.IOParameters(inp_bits=8), "none: inputs are cut at 1"),
        (hw.IOParameters(inp_bits=8, inp_bound=0.5), "none: inputs are cut at 0.5"),
        (hw.IOParameters(inp_bits=8, noise_management="abs_max"), "none"),
        (hw.IOParameters(out_noise=0.1), "none"),
    ):
        analog = hw.analogize(nn.Dense(3), hw.Hardware(forward=forward))
        variables = jax.jit(analog.init)(jax.random.key(0), X)
        row = hw.inspect(analog, variables, X).rows[0]
        assert row["input range"] == expected


VALUES = np.array([[0.5, 0.25], [0.75, 0.5], [0.625, 0.375]])


@pytest.mark.parametrize("times_s", [None, (0.0, 86_400.0)])
def test_a_population_is_printed_as_a_table(times_s):
    values = VALUES if times_s else VALUES[:, 0]
    found = Population(values=values, seeds=(0, 1, 2), times_s=times_s)
    text = str(found)
    assert text.startswith("3 chips, chip_mode\n")
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith("│")
    ]
    # The spread of three equal steps is one of them; t of 2 degrees is 4.303.
    half = 4.302653 * 0.125 / np.sqrt(3)
    expected = [
        [f"{mean:g}", "0.125", f"{mean - half:.4g} to {mean + half:.4g}", low, high]
        for mean, low, high in ((0.625, "0.5", "0.75"), (0.375, "0.25", "0.5"))
    ]
    if times_s:
        expected = [["0", *expected[0]], ["1 d", *expected[1]]]
    else:
        expected = expected[:1]
    assert cells == expected


def test_equal_chips_have_no_spread():
    found = Population(values=np.full((3, 2), 0.8), seeds=(0, 1, 2), times_s=(0.0, 1.0))
    assert (found.std == 0).all() and "e-" not in str(found)


def test_a_sensitivity_is_printed_as_a_table():
    found = Sensitivity(
        layers=("a/b", "c"),
        nominal=np.full(3, 0.9),
        whole=np.array([0.2, 0.4, 0.6]),
        alone=np.array([[0.5, 0.6, 0.7], [0.8, 0.8, 0.8]]),
        others=np.array([[0.7, 0.8, 0.9], [0.3, 0.5, 0.7]]),
        seeds=(0, 1, 2),
        t_s=60.0,
    )
    text = str(found)
    assert text.startswith("2 layers on 3 chips, chip_mode, 1 min old\n")
    for cells in (
        # t(2) = 4.3027: 4.3027 * 0.1 / sqrt(3) = 0.2484 for differences 0.4, 0.3, 0.2
        # and for 0.5, 0.4, 0.3; those of "c" are 0.1 each time.
        ("a/b", "0.6", "0.3 ± 0.2484", "0.8", "0.4 ± 0.2484"),
        ("c", "0.8", "0.1 ± 0", "0.5", "0.1 ± 0"),
    ):
        line = next(line for line in text.splitlines() if f" {cells[0]} " in line)
        assert [cell.strip() for cell in line.strip("│").split("│")] == [*cells]
    said = " ".join(text.split())
    assert "no layer on the chip: 0.9; all: 0.4; means over 3 chips, 1 min old" in said
    assert "higher is better" in said and "± half the width of the 95 %" in said
    assert "costliest='a/b'" in repr(found)


@pytest.mark.parametrize("times", [None, 50])
@pytest.mark.parametrize("chips", [1, 1000])
def test_what_a_study_found_is_one_short_line(times, chips):
    shape = (chips,) if times is None else (chips, times)
    times_s = None if times is None else tuple(map(float, range(times)))
    values, seeds = np.random.default_rng(0).random(shape), tuple(range(chips))
    layers = tuple(f"layer_{i}" for i in range(100))
    of_layers = np.random.default_rng(1).random((100, chips))
    whole = of_layers[0]
    for found in (
        Population(values=values, seeds=seeds, times_s=times_s),
        Sensitivity(
            layers=layers,
            nominal=whole,
            whole=whole,
            alone=of_layers,
            others=of_layers,
            seeds=seeds,
        ),
    ):
        assert f"chips={chips}" in repr(found)
        assert len(repr(found)) < WIDTH + 40 and "array" not in repr(found)


@pytest.mark.parametrize("width", [70, 80, 120])
def test_a_narrow_terminal_breaks_no_name(width):
    rows = [
        {
            "weight": name,
            "layer": layer,
            "shape": shape,
            "tiles": f"1x1 of {shape}, 0% of the limit of 128x128",
            "input range": ranged,
            "leaves": f"adc_gain {ranged} to 4 (1)",
        }
        for name, layer, shape, ranged in (
            ("Dense_0/kernel", "Dense", "32x10", "2.26"),
            ("LowRank_0/down", "LowRank", "64x16", "2.99"),
            ("LowRank_0/up", "LowRank", "16x32", "3.33"),
        )
    ]
    console = Console(file=io.StringIO(), width=width)
    for found in tables_of(rows, "Analog"):
        console.print(found)
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for row in rows:
        assert all(word in shown for cell in row.values() for word in cell.split())
    assert max(map(len, shown.splitlines())) <= width
