"""Bits, microsiemens and devices in the table of `inspect`."""

import dataclasses

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
    assert len(stages) == 13
    assert all(stage.describe is not hw.Part.describe for stage in stages)
