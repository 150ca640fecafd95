"""The measurements that the parts around a tile ask for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain._flax import weight_side
from hwtrain.periphery import IOParameters
from hwtrain.periphery import input_range as range_stage

MEASURED = {
    "inp_bits": ({"inp_bits": 4}, {"DAC", "DAC levels"}),
    "inp_res": ({"inp_res": 1 / 14}, {"DAC", "DAC levels"}),
    "inp_bound": ({"inp_bound": 1.5}, {"DAC"}),
    "inp_sto_round": (
        {"inp_bits": 4, "inp_sto_round": True},
        {"DAC", "DAC levels", "inp_sto_round"},
    ),
    "inp_noise": ({"inp_noise": 0.1}, {"inp_noise"}),
    "inp_asymmetry": ({"inp_asymmetry": 0.1}, {"inp_asymmetry"}),
    "out_bits": ({"out_bits": 4, "out_bound": 2.0}, {"ADC rounding", "out_bound"}),
    "out_res": ({"out_res": 1 / 14, "out_bound": 2.0}, {"ADC rounding", "out_bound"}),
    "out_bound": ({"out_bound": 2.0}, {"out_bound"}),
    "out_sto_round": (
        {"out_bits": 4, "out_bound": 2.0, "out_sto_round": True},
        {"ADC rounding", "out_bound", "out_sto_round"},
    ),
    "out_noise": ({"out_noise": 0.1}, {"out_noise"}),
    "out_noise_per_channel": (
        {"out_noise": 0.1, "out_noise_per_channel": True},
        {"out_noise"},
    ),
    "out_noise_std": (
        {"out_noise": 0.1, "out_noise_std": 0.1},
        {"out_noise", "out_noise_std"},
    ),
    "out_asymmetry": ({"out_asymmetry": 0.1}, {"out_asymmetry"}),
    "out_scale": ({"out_scale": 2.0}, {"out_scale"}),
    "noise_management": ({"noise_management": "abs_max"}, {"noise_management"}),
    "bound_management": (
        {"bound_management": "iterative", "out_bound": 2.0},
        {"bound_management", "out_bound"},
    ),
    "shift": (
        {"bound_management": "shift", "out_bound": 2.0},
        {"bound_management", "out_bound"},
    ),
    "w_noise": ({"w_noise": 0.1, "w_noise_type": "pcm_read"}, {"w_noise"}),
    "w_noise_type": (
        {"w_noise": 0.1, "w_noise_type": "additive_constant"},
        {"w_noise"},
    ),
    "mv_type": ({"mv_type": "pos_neg_separate_digital_sum"}, {"mv_type"}),
    "split_mode_bit_shift": (
        {"mv_type": "split_mode", "inp_bits": 6, "split_mode_bit_shift": 2},
        {"DAC", "DAC levels", "mv_type"},
    ),
    "w_read_asymmetry_dtod": (
        {"mv_type": "pos_neg_separate", "w_read_asymmetry_dtod": 0.1},
        {"mv_type", "w_read_asymmetry_dtod"},
    ),
    "ir_drop": ({"ir_drop": 1.0}, {"ir_drop"}),
    "out_nonlinearity": (
        {"out_nonlinearity": 0.5, "out_bound": 2.0},
        {"out_nonlinearity", "out_bound"},
    ),
    "out_nonlinearity_std": (
        {"out_nonlinearity": 0.5, "out_bound": 2.0, "out_nonlinearity_std": 0.1},
        {"out_nonlinearity", "out_bound", "out_nonlinearity_std"},
    ),
    "slope_calibration": (
        {"r_series": 0.1, "out_bound": 2.0, "slope_calibration": 0.5},
        {"r_series", "out_bound", "slope_calibration"},
    ),
    "r_series": ({"r_series": 0.1}, {"r_series"}),
    "v_offset_std": ({"v_offset_std": 0.1}, {"v_offset_std"}),
}
OF_ANOTHER = {
    "nm_thres": "noise_management",
    "nm_decay": "noise_management",
    "nm_assumed_wmax": "noise_management",
    "max_bm_factor": "bound_management",
    "max_bm_res": "bound_management",
    "ir_drop_g_ratio": "ir_drop",
    "v_offset_w_min": "r_series",
}
"""What is a number of an effect that is measured as a whole."""


class Recorder:
    """Records the requested measurements instead of making them."""

    row_sizes, leaves = (4, 4), {}
    w = jnp.ones((2, 4, 1, 3))

    def __init__(self):
        self.effects = set()

    def differs(self, effect, without=None):
        self.effects.add(effect)

    def differs_beyond(self, bound, effect, *stages, without=()):
        self.effects.add(effect)

    def deviates(self, deviation, effect, **options):
        self.effects.add(effect)

    def rounds(self, step, effect, *, of):
        self.effects.add(effect)

    def responds(self, expected, effect, *stages, **options):
        self.effects.add(effect)

    def clips(self, bound, effect, *, of):
        self.effects.add(effect)

    def varies(self, sigma, spread, effect):
        self.effects.add(effect)

    def spreads(self, deviation, effect, *, of, alike=None):
        self.effects.add(effect)


@pytest.mark.parametrize("name", MEASURED)
def test_every_option_of_the_periphery_is_measured_by_a_stage_of_its_own(name):
    options, effects = MEASURED[name]
    recorder = Recorder()
    for stage in IOParameters(**options).parts:
        stage.proof(recorder)
    assert recorder.effects == effects


def test_no_option_of_the_periphery_is_left_out():
    names = {field.name for field in dataclasses.fields(IOParameters)} - {"stages"}
    assert names == (MEASURED.keys() - {"shift"}) | OF_ANOTHER.keys()


def test_a_range_of_each_vector_is_measured_by_its_name():
    dynamic = hw.InputRangeParameter(dynamic=True, learn_input_range=False)
    chip = hw.Hardware(input_range=dynamic, forward=hw.IOParameters(inp_bits=8))
    recorder = Recorder()
    for stage in chip.stages:
        stage.proof(recorder)
    assert recorder.effects == {"input_range", "DAC", "DAC levels"}


AVERAGE = hw.IOParameters(noise_management="average_abs_max", inp_bits=5)


@pytest.mark.parametrize("off", [False, True])
def test_an_average_is_measured_before_it_was_set(off, retraced):
    model = dense(hw.Hardware(forward=AVERAGE))
    if not off:
        assert "noise_management" in str(hw.assert_active(*model))
        return
    around = range_stage.Range.around

    def ignored(self, inner, x, ctx):
        ones = {"input_range": jnp.ones_like(ctx.leaves["input_range"])}
        return around(self, inner, x, dataclasses.replace(ctx, leaves=ones))

    retraced.setattr(range_stage.Range, "around", ignored)
    with pytest.raises(ValueError, match="noise_management: the outputs are the same"):
        hw.assert_active(*model)


def dense(chip, rows=3):
    analog = hw.analogize(nn.Dense(40), chip)
    x = jnp.ones((2, rows))
    return analog, analog.init(jax.random.key(0), x), x


NORMAL = {
    "add_normal": {"type": "add_normal", "std_dev": 0.1},
    "of a fixed size": {
        "type": "add_normal",
        "std_dev": 0.1,
        "rel_to_actual_wmax": False,
        "assumed_wmax": 0.7,
    },
    "mult_normal": {"type": "mult_normal", "std_dev": 0.1},
    "poly": {"type": "poly", "std_dev": 0.5},
    "a bias left alone": {
        "type": "add_normal",
        "std_dev": 0.1,
        "copy_last_column": True,
    },
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", NORMAL)
def test_normal_noise_of_weights_has_its_strength(name, half, retraced):
    chip = hw.Hardware(modifier=hw.WeightModifierParameter(**NORMAL[name]))
    model = dense(chip)
    if half:
        modified = weight_side._modified
        retraced.setattr(
            weight_side,
            "_modified",
            lambda w, kernel, *rest: (kernel + modified(w, kernel, *rest)) / 2,
        )
        with pytest.raises(ValueError, match=r"modifier: the noise has 0\.[45]"):
            hw.assert_active(*model)
        return
    (row,) = hw.assert_active(*model).rows
    # 8 steps of 2 or 3 rows, with 40 columns.
    assert abs(float(row[2].split()[0]) - 1) < 5 / np.sqrt(2 * 8 * 2 * 40)
