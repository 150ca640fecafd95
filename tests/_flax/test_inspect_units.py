"""Bits, microsiemens and devices in the table of `inspect`."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from flax import nnx

import hwtrain as hw
from hwtrain._parts.registry import named, names
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.dac import Dac
from hwtrain.periphery.input_noise import InputNoise
from hwtrain.periphery.input_range import Range
from hwtrain.periphery.management import Management
from hwtrain.periphery.output_noise import OutputNoise
from hwtrain.periphery.weight_noise import WeightNoise
from hwtrain.periphery.weight_slices import WeightSlices


def row_of(chip):
    analog = hw.analogize(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), chip)
    found = hw.inspect(analog)
    return found.rows[0], found.totals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "none"),
        ({"inp_bits": 8}, "DAC 8"),
        ({"inp_res": 254.0}, "DAC 8"),
        ({"out_bits": 6, "out_bound": 3.0}, "ADC 6"),
        ({"inp_noise": 0.1}, "none"),
    ],
)
def test_bits_are_those_of_any_resolution(options, said):
    assert row_of(hw.Hardware(forward=hw.IOParameters(**options)))[0]["bits"] == said


def test_noise_is_in_microsiemens_at_the_largest_conductance():
    # sigma(25 µS) = 0.26348 + 1.9650 - 1.1731 = 1.05538 µS; 0.1 of 25 µS = 2.5 µS.
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    mismatch = hw.MismatchParameter(type="mult_normal", std_dev=0.02)
    chip = dataclasses.replace(hw.presets.pcm(), modifier=noise, mismatch=mismatch)
    said = "weights 2.5 µS, mismatch 0.5 µS, programming 1.06 µS"
    assert row_of(chip)[0]["noise at g_max"] == said
    assert row_of(hw.Hardware(modifier=noise))[0]["noise at g_max"] == "none"


@pytest.mark.parametrize(
    ("high", "wide", "said"),
    [
        (None, None, "1x1 of 6x4"),
        (128, 128, "1x1 of 6x4, 0% of the limit of 128x128"),
        (8, 8, "1x1 of 6x4, 38% of the limit of 8x8"),
        (8, None, "1x1 of 6x4, 75% of the limit of 8 rows"),
        (None, 5, "1x1 of 6x4, 80% of the limit of 5 columns"),
        (3, 2, "2x2 of 3x2, 100% of the limit of 3x2"),
        (4, 3, "2x2 of 3x2, 50% of the limit of 4x3"),
    ],
)
def test_tiles_say_what_their_share_is_of(high, wide, said):
    mapping = hw.MappingParameter(max_input_size=high, max_output_size=wide)
    assert row_of(hw.Hardware(mapping=mapping))[0]["tiles"] == said


def test_tiles_without_a_mapping_have_no_limit():
    assert row_of(hw.Hardware())[0]["tiles"] == "1x1 of 6x4"


CURVES = ((0.0, 0.0, 20.0), (20.0, 0.0, 0.0), (5.0, 5.0, 10.0), (10.0, 5.0, 5.0))
SEVERAL = {
    # The converter, and of each device that the largest weight turns on: factor, µS.
    "equal": (hw.NPairConductanceConverter(f_lst=(1, 1)), [(1, 25), (1, 25)]),
    "slices": (
        hw.NPairConductanceConverter(f_lst=(4, 2, 1)),
        [(4, 25), (2, 25), (1, 25)],
    ),
    "off": (hw.DualPairConductanceConverter(f_lst=(1, 3), g_min=5), [(1, 25), (3, 25)]),
    "bits": (
        hw.BitSlicedConductanceConverter(bits=(1, 2)),
        [(1, 25), (6, 25)],
    ),
    "curves": (
        hw.CustomPairConductanceConverter(f_lst=(1, 2), g_lst=CURVES),
        [(1, 20), (2, 10), (2, 5)],
    ),
}
LARGEST = {"equal": 50, "slices": 175, "off": 80, "bits": 175, "curves": 20 + 2 * 5}
"""The weight in µS where all of its pairs are full."""


@pytest.mark.parametrize("name", SEVERAL)
def test_noise_of_several_pairs_is_that_of_their_sum(name):
    converter, on = SEVERAL[name]
    factors, g = np.array(on, np.float64).T
    sigma = 0.26348 + 1.9650 * g / 25 - 1.1731 * (g / 25) ** 2
    programming = np.sqrt(np.sum((factors * sigma) ** 2))
    chip = dataclasses.replace(
        hw.presets.pcm(),
        converter=converter,
        modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.08),
        mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.02),
    )
    largest = LARGEST[name]
    of = f"µS of {largest:g} µS"
    said = (
        f"weights {0.08 * largest:.3g} {of}, mismatch {0.02 * largest:.3g} {of}, "
        f"programming {programming:.3g} {of}"
    )
    assert row_of(chip)[0]["noise at g_max"] == said


@pytest.mark.parametrize("name", SEVERAL)
def test_the_full_scale_is_that_of_the_conductances(name):
    converter, _ = SEVERAL[name]
    g, params = converter.convert_to_conductances(np.array([[-1.0, 0.5, 1.0]]))
    assert float(params["scale_ratio"]) == pytest.approx(LARGEST[name])
    on = [float(x[0, 2]) for x in g if x[0, 2] > converter.g_min]
    assert on == [conductance for _, conductance in converter.full_devices]


def test_slices_are_shown_in_the_order_of_their_field():
    bits = (2, 2, 3)
    chip = hw.Hardware(
        converter=hw.BitSlicedConductanceConverter(bits=bits),
        forward=hw.IOParameters(stages=(WeightSlices(bits=bits),)),
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    )
    row = row_of(chip)[0]
    assert any("bit_sliced 2+2+3 bits" in cell for cell in row.values())
    assert any("weight slices 2+2+3" in cell for cell in row.values())


def test_devices_are_counted_with_their_converter():
    pair = hw.Hardware(converter=hw.SinglePairConductanceConverter(g_max=25.0))
    assert row_of(pair)[1]["devices"] == 2 * 24
    single = hw.Hardware(converter=hw.SingleDeviceConductanceConverter())
    assert row_of(single)[1]["devices"] == 24
    assert "devices" not in row_of(hw.Hardware())[1]


GIVEN = {
    Dac(bound=1.0, res=1 / 14): "DAC to 1, 4 bits",
    Adc(bound=2.5): "ADC to 2.5",
    InputNoise(sigma=0.1): "input noise 0.1",
    OutputNoise(sigma=0.1, spread=0.2): "output noise 0.1",
    Management(noise="abs_max"): "management abs_max",
}


@pytest.mark.parametrize("stage", GIVEN)
def test_a_built_in_stage_is_described_where_it_is_given_as_a_stage(stage):
    io = hw.IOParameters(out_scale=2.0, stages=(stage,))
    said = row_of(hw.Hardware(forward=io))[0]["periphery"]
    assert said == f"out_scale 2, {GIVEN[stage]}"


def test_every_built_in_stage_describes_itself():
    own = {named("stage", name) for name in names("stage")}
    stages = [s for s in own if s.__module__.startswith("hwtrain.periphery")]
    stages = [s for s in stages if s not in (Range, WeightNoise)]
    assert len(stages) == 23
    assert all(stage.describe is not hw.Part.describe for stage in stages)


def test_the_page_explains_every_column():
    text = (pathlib.Path(__file__).parents[2] / "docs/physics.md").read_text("utf-8")
    section = text.split("## Is it on?")[1].split("\n## ")[0]
    explained = {*re.findall(r"`([^`]+)`", section)}
    missing = {*row_of(hw.Hardware())[0]} - explained - {"weight"}
    assert not missing
