"""`StuckParameter`: values that it refuses, and its serialisation."""

import pytest

from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._plan.hardware import Hardware
from hwtrain.devices import SinglePairConductanceConverter, StuckParameter


def test_shares_are_at_most_all_devices():
    with pytest.raises(ValueError, match="together they must be at most 1"):
        StuckParameter(at_g_min=0.6, at_g_max=0.5)
    with pytest.raises(ValueError, match="at_g_min"):
        StuckParameter(at_g_min=-0.1)


def test_it_needs_a_converter():
    with pytest.raises(ValueError, match="stuck needs a converter"):
        Hardware(stuck=StuckParameter(at_g_min=0.1))


def test_zero_turns_it_off():
    chip = Hardware(stuck=StuckParameter(), converter=SinglePairConductanceConverter())
    assert not chip.frozen and not chip.programs and not chip.sticks


def test_it_is_written_down_and_read():
    chip = Hardware(
        stuck=StuckParameter(at_g_min=0.01, at_g_max=0.002),
        converter=SinglePairConductanceConverter(),
    )
    assert chip.frozen
    assert from_dict(Hardware, to_dict(chip)) == chip
