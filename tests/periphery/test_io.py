import dataclasses

import pytest

import hwtrain as hw
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._plan.hardware import Hardware
from hwtrain.periphery import IOParameters


def test_the_default_is_ideal():
    assert IOParameters().parts == ()
    assert not IOParameters().draws
    assert not Hardware(forward=IOParameters()).converts


@pytest.mark.parametrize("side", ["inp", "out"])
def test_bits_steps_and_resolution_say_the_same(side):
    converters = []
    for given in ({"bits": 8}, {"res": 254.0}, {"res": 1 / 254}):
        options = {f"{side}_{name}": value for name, value in given.items()}
        io = IOParameters(**options, out_bound=10.0)
        converters.append(io.dac if side == "inp" else io.adc)
    assert converters[0].res == pytest.approx(1 / 254)
    assert converters[1].res == converters[2].res == pytest.approx(1 / 254)


def test_a_dac_with_levels_has_a_full_scale_of_one():
    assert IOParameters(inp_bits=8).dac.bound == 1
    assert IOParameters(inp_bits=8, inp_bound=2.0).dac.bound == 2
    assert IOParameters(inp_bound=2.0).dac.res is None


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"out_bits": 8},
            r"an ADC needs a full scale: write out_bound=10.0 .*out_bits",
        ),
        ({"out_res": 254.0}, "write out_bound=10.0 beside out_res"),
        ({"inp_bits": 8, "inp_res": 0.1}, "inp_res=0.1 and inp_bits=8 both"),
        ({"inp_sto_round": True}, "inp_sto_round=True does nothing without levels"),
        ({"out_sto_round": True}, "out_sto_round=True does nothing without levels"),
        ({"bound_management": "iterative"}, "bound_management='iterative' refers to"),
        ({"noise_management": "abs_max_np_sum"}, "refers to the full scale"),
        ({"out_nonlinearity": 1.0}, "out_nonlinearity=1.0 refers to"),
        ({"nm_thres": 1.0}, "nm_thres=1.0 does nothing without noise_management"),
        ({"w_noise": 0.1}, "w_noise=0.1 does nothing without w_noise_type"),
        ({"v_offset_w_min": 0.0}, "v_offset_w_min=0.0 does nothing without v_offset"),
        (
            {"slope_calibration": 0.5, "out_bound": 10.0},
            "slope_calibration=0.5 does nothing",
        ),
        ({"nm_assumed_wmax": 0.5}, "nm_assumed_wmax=0.5 does nothing without noise"),
        ({"ir_drop_g_ratio": 100.0}, "ir_drop_g_ratio=100.0 does nothing without ir_"),
        (
            {"max_bm_factor": 8.0, "out_bound": 1.0, "bound_management": "shift"},
            "max_bm_factor=8.0 does nothing without bound_management",
        ),
        (
            {"max_bm_res": 0.5, "out_bound": 1.0, "bound_management": "iterative"},
            "max_bm_res=0.5 does nothing without .*levels of the DAC",
        ),
        ({"out_noise_std": 0.1}, "out_noise_std=0.1 does nothing without out_noise"),
        ({"out_nonlinearity_std": 0.1}, "out_nonlinearity_std=0.1 does nothing"),
        ({"inp_bits": 1}, "inp_bits"),
        ({"inp_noise": -0.1}, "inp_noise"),
        ({"out_asymmetry": 2.0}, "out_asymmetry"),
        ({"noise_management": "mean"}, "noise_management"),
        ({"is_perfect": True}, "is_perfect"),
    ],
)
def test_what_cannot_work_is_an_error_that_says_so(options, message):
    with pytest.raises(ValueError, match=message):
        IOParameters(**options)


def test_an_input_range_excludes_scaling_each_vector():
    ranged = hw.InputRangeParameter()
    io = IOParameters(noise_management="abs_max")
    with pytest.raises(ValueError, match="noise_management='abs_max'.*input range"):
        Hardware(input_range=ranged, forward=io)
    Hardware(input_range=dataclasses.replace(ranged, enable=False), forward=io)
    Hardware(input_range=ranged, forward=IOParameters(noise_management="constant"))


@pytest.mark.parametrize(
    "io",
    [
        None,
        IOParameters(),
        IOParameters(out_bound=1.0, bound_management="iterative"),
        IOParameters(out_bound=1.0, noise_management="constant"),
    ],
)
def test_managing_output_clipping_needs_a_bound_and_no_management(io):
    ranged = hw.InputRangeParameter(manage_output_clipping=True)
    with pytest.raises(ValueError, match="manage_output_clipping=True .*out_bound"):
        Hardware(input_range=ranged, forward=io)
    Hardware(input_range=ranged, forward=IOParameters(out_bound=1.0))


def test_modes_that_draw():
    reads = Hardware(forward=IOParameters(out_noise=0.1))
    assert [reads.draws(m) for m in ("train", "chip", "eval")] == [True, True, False]
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    both = dataclasses.replace(reads, modifier=noise)
    assert [both.modifies(m) for m in ("train", "chip", "eval")] == [True, False, False]
    assert not Hardware(forward=IOParameters(inp_bits=8)).draws("train")


def test_it_survives_plain_data():
    chip = Hardware(
        forward=IOParameters(
            inp_bits=8,
            out_bits=8,
            out_bound=10.0,
            w_noise=0.0175,
            w_noise_type="pcm_read",
            ir_drop=1.0,
        )
    )
    assert from_dict(Hardware, to_dict(chip)) == chip
    assert hash(from_dict(Hardware, to_dict(chip))) == hash(chip)
