"""Built-in parts keep the contract of users' parts, through the same interface."""

import inspect
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._parts.registry import KINDS, named, names
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.adc_thresholds import AdcThresholds
from hwtrain.periphery.asymmetry import InputAsymmetry, OutputAsymmetry
from hwtrain.periphery.column_errors import ColumnErrors
from hwtrain.periphery.column_wires import ColumnWires
from hwtrain.periphery.comparator_offsets import ComparatorOffsets
from hwtrain.periphery.dac import Dac
from hwtrain.periphery.device_nonlinearity import DeviceNonlinearity
from hwtrain.periphery.input_bits import InputBits
from hwtrain.periphery.input_noise import InputNoise
from hwtrain.periphery.ir_drop import IrDrop
from hwtrain.periphery.management import Management
from hwtrain.periphery.output_factor import OutputFactor
from hwtrain.periphery.output_noise import OutputNoise
from hwtrain.periphery.read_noise import ReadNoise
from hwtrain.periphery.saturation import Saturation
from hwtrain.periphery.separate_signs import SeparateSigns, SeparateSignsDigitally
from hwtrain.periphery.shift import Shift
from hwtrain.periphery.voltage_offset import VoltageOffset
from hwtrain.periphery.weight_slices import WeightSlices
from hwtrain.periphery.wire_resistance import WireResistance

from . import devices

FIRST = """
import hwtrain
class Mine(hwtrain.{base}):
    pass

if "{base}" == "Part":
    hwtrain.register("stage", "mine", inside="adc", outside="saturation")(Mine)
try:
    hwtrain.register("{kind}", "{name}")(Mine)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "base", "name"),
    [
        ("stage", "Part", "adc"),
        ("noise_model", "NoiseModel", "pcm_like"),
        ("converter", "ConductanceConverter", "n_pair"),
        ("drift_compensation", "DriftCompensation", "global"),
        ("modifier", "WeightModifier", "add_normal"),
        ("clip", "WeightClip", "layer_gaussian"),
        ("mismatch", "Mismatch", "mult_normal"),
        ("output_format", "OutputFormat", "integer"),
        ("objective", "objectives.Objective", "gaussian"),
    ],
)
def test_built_in_names_are_known_to_the_first_part_of_a_process(kind, base, name):
    code = FIRST.format(kind=kind, base=base, name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"the {kind} {name!r} is hwtrain." in done.stdout


ADC, COARSE = Adc(bound=0.5, res=1 / 14), {"out_bits": 4, "out_bound": 0.5}

# A stage, and the fields of IOParameters that make the same one.
STAGES = {
    "output_factor": ((OutputFactor(factor=1.5),), {"out_scale": 1.5}),
    "management": ((Management(noise="abs_max"),), {"noise_management": "abs_max"}),
    "dac": ((Dac(bound=1.0, res=1 / 14),), {"inp_bits": 4}),
    "a dac at random": (
        (Dac(bound=1.0, res=1 / 14, stochastic=True),),
        {"inp_bits": 4, "inp_sto_round": True},
    ),
    "input_noise": ((InputNoise(sigma=0.1),), {"inp_noise": 0.1}),
    "input_asymmetry": ((InputAsymmetry(share=0.2),), {"inp_asymmetry": 0.2}),
    "adc": ((Adc(bound=0.5, res=1 / 14),), {"out_bits": 4, "out_bound": 0.5}),
    "shift": (
        (Shift(bound=0.5), Adc(bound=0.5)),
        {"bound_management": "shift", "out_bound": 0.5},
    ),
    "output_noise per channel": (
        (OutputNoise(sigma=0.1, per_channel=True),),
        {"out_noise": 0.1, "out_noise_per_channel": True},
    ),
    "output_noise": (
        (OutputNoise(sigma=0.1, spread=0.2),),
        {"out_noise": 0.1, "out_noise_std": 0.2},
    ),
    "output_asymmetry": ((OutputAsymmetry(share=0.2),), {"out_asymmetry": 0.2}),
    "saturation": (
        (Saturation(strength=0.5, bound=1.0), Adc(bound=1.0)),
        {"out_nonlinearity": 0.5, "out_bound": 1.0},
    ),
    "read_noise": (
        (ReadNoise(sigma=0.1, kind="pcm_read"),),
        {"w_noise": 0.1, "w_noise_type": "pcm_read"},
    ),
    "voltage_offset": ((VoltageOffset(spread=0.1),), {"v_offset_std": 0.1}),
    "ir_drop": ((IrDrop(strength=1.0, g_ratio=500.0),), None),
    "input_bits": (
        (Dac(bound=1.0, res=1 / 14), InputBits(step=1 / 7, groups=(2, 1)), ADC),
        {"inp_bits": 4, "mv_type": "split_mode", "split_mode_bit_shift": 2, **COARSE},
    ),
    "every bit": (
        (Dac(bound=1.0, res=1 / 14), InputBits(step=1 / 7, groups=(1, 1, 1)), ADC),
        {"inp_bits": 4, "mv_type": "bit_wise", **COARSE},
    ),
    "separate_signs": (
        (SeparateSigns(read_asymmetry=0.1),),
        {"mv_type": "pos_neg_separate", "w_read_asymmetry_dtod": 0.1},
    ),
    "separate_signs_digitally": (
        (SeparateSignsDigitally(), ADC),
        {"mv_type": "pos_neg_separate_digital_sum", **COARSE},
    ),
    "adc_thresholds": (
        (ADC, AdcThresholds(bound=0.5, dnl_lsb=(0.3, -0.6) * 7)),
        None,
    ),
    "comparator_offsets": (
        (ADC, ComparatorOffsets(bound=0.5, steps=14, offset_std=0.02)),
        None,
    ),
    "column_errors": ((ColumnErrors(gain_std=0.1, offset_std=0.05),), None),
    "device_nonlinearity": ((DeviceNonlinearity(kappa=1.0),), None),
    "column_wires": (
        (ColumnWires(r_wire_ohm=90.0, segments=4, rows=16, v_offset=0.01),),
        None,
    ),
    "wire_resistance": ((WireResistance(r_wire_ohm=30.0),), None),
    "weight_slices": ((WeightSlices(bits=(1, 2), largest=0.7), ADC), None),
}
OWN = {
    "telegraph": (devices.Telegraph(sigma=0.1),),
    "input_offset": (devices.InputOffset(),),
    "split_reads": (devices.SplitReads(), OutputNoise(sigma=0.1)),
}
ALL = {**{name: stages for name, (stages, _) in STAGES.items()}, **OWN}
WHOLE = [name for name, stages in ALL.items() if all(s.runs_whole() for s in stages)]
LAYERS = {
    "dense": (nn.Dense(5), (3, 8)),
    "conv": (nn.Conv(6, (3,), feature_group_count=2), (2, 7, 4)),
}


def outputs(io, layer, mode="train"):
    module, shape = LAYERS[layer]
    analog = hw.analogize(module, hw.Hardware(forward=io))
    x = jax.random.normal(jax.random.key(1), shape)
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    analog = {"train": analog, "eval": hw.eval_mode(analog)}[mode]

    @jax.jit
    def value_and_gradients(variables, x, key):
        call = lambda v, x: analog.apply(v, x, rngs={"mismatch": key})  # noqa: E731
        y, pull = jax.vjp(call, variables, x)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return [value_and_gradients(variables, x, jax.random.key(k)) for k in (2, 3)]


def test_every_stage_stands_here():
    built_in = set(names("stage")) - {"range", "weight_noise"}
    here = {stage.type for stages in ALL.values() for stage in stages}
    assert {
        name
        for name in built_in
        if named("stage", name).__module__.startswith("hwtrain.")
    } <= here


@pytest.mark.sampled(7)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", [n for n, (_, io) in STAGES.items() if io is not None])
def test_a_stage_is_what_the_fields_of_the_reference_make(name, layer):
    stages, fields = STAGES[name]
    own = outputs(hw.IOParameters(stages=stages), layer)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        own,
        outputs(hw.IOParameters(**fields), layer),
    )
    if name == "management":  # which alone changes nothing
        return
    without = outputs(hw.IOParameters(), layer)
    assert not np.allclose(own[0][0], without[0][0], atol=1e-6)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ALL)
def test_a_stage_draws_what_it_says(name, layer):
    io = hw.IOParameters(stages=ALL[name])
    says = any(s.draws_at("read") or s.draws_at("chip") for s in ALL[name])
    (first, _), (second, _) = outputs(io, layer)
    assert (np.asarray(first) != np.asarray(second)).any() == says
    assert io.draws == says
    (first, _), (second, _) = outputs(io, layer, "eval")
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_a_stage_goes_to_data_and_back(name):
    hardware = hw.Hardware(forward=hw.IOParameters(stages=ALL[name]))
    data = json.loads(json.dumps(to_dict(hardware)))
    assert from_dict(hw.Hardware, data) == hardware
    assert hash(from_dict(hw.Hardware, data)) == hash(hardware)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", WHOLE)
def test_a_stage_that_runs_whole_does_the_same_to_windows(name, monkeypatch):
    io = hw.IOParameters(stages=ALL[name])
    whole = outputs(io, "conv", "eval")[0]
    monkeypatch.setattr("hwtrain._flax.convolutions.runs_whole", lambda _: False)
    jax.clear_caches()
    windows = outputs(io, "conv", "eval")[0]
    jax.clear_caches()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        whole,
        windows,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_a_kind_says_what_it_is(kind):
    assert names(kind)
    for name in names(kind):
        assert inspect.getdoc(named(kind, name)), name
