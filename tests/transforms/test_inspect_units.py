"""Bits, microsiemens and devices in the table of `inspect`."""

import dataclasses

import pytest
from flax import nnx

import hwtrain as hw


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
