"""`rpu_config.py`, run with stand-ins for aihwkit's classes (1.2.0)."""

import enum
import sys
import types

import pytest

from hwtrain import presets
from hwtrain._plan.hardware import Hardware
from hwtrain.checkpoint.adapters._aihwkit_config import rpu_config
from hwtrain.devices import (
    BitSlicedConductanceConverter,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
    StuckParameter,
)
from hwtrain.periphery import InputRangeParameter, IOParameters
from hwtrain.weights import (
    BinaryWeights,
    MappingParameter,
    MismatchParameter,
    WeightClipParameter,
    WeightModifierParameter,
)

# aihwkit's fields and their defaults: what it does not have is an AttributeError.
FORWARD = {
    "is_perfect": False,
    "inp_bound": 1.0,
    "inp_noise": 0.0,
    "inp_res": 1 / (2**7 - 2),
    "inp_sto_round": False,
    "inp_asymmetry": 0.0,
    "out_bound": 12.0,
    "out_noise": 0.06,
    "out_noise_std": 0.0,
    "out_res": 1 / (2**9 - 2),
    "out_sto_round": False,
    "out_scale": 1.0,
    "out_asymmetry": 0.0,
    "bound_management": "ITERATIVE",
    "noise_management": "ABS_MAX",
    "w_noise": 0.0,
    "w_noise_type": "NONE",
    "ir_drop": 0.0,
    "ir_drop_g_ratio": 1.0 / 0.35 / 5e-6,
    "out_nonlinearity": 0.0,
    "out_nonlinearity_std": 0.0,
    "slope_calibration": 0.0,
    "v_offset_std": 0.0,
    "v_offset_w_min": -1.0,
    "r_series": 0.0,
    "max_bm_factor": 1000,
    "max_bm_res": 0.25,
    "nm_thres": 0.0,
    "mv_type": "ONE_PASS",
    "w_read_asymmetry_dtod": 0.0,
}
MAPPING = {
    "digital_bias": True,
    "weight_scaling_omega": 0.0,
    "weight_scaling_columnwise": False,
    "learn_out_scaling": False,
    "out_scaling_columnwise": False,
    "max_input_size": 512,
    "max_output_size": 512,
}
INPUT_RANGE = {
    "enable": False,
    "learn_input_range": True,
    "init_value": 3.0,
    "init_from_data": 100,
    "init_std_alpha": 3.0,
    "decay": 0.001,
    "input_min_percentage": 0.95,
    "manage_output_clipping": False,
    "output_min_percentage": 0.95,
    "gradient_scale": 1.0,
    "gradient_relative": True,
}
MODIFIER = {
    "std_dev": 0.0,
    "per_batch_sample": False,
    "res": 0.0,
    "sto_round": False,
    "dorefa_clip": 0.6,
    "pdrop": 0.0,
    "enable_during_test": False,
    "rel_to_actual_wmax": True,
    "assumed_wmax": 1.0,
    "copy_last_column": False,
    "coeffs": [0.26348 / 25.0, 0.0768, -0.001877 * 25.0],
    "type": "NONE",
    "g_max": 25.0,
    "pcm_zero_thres": 0.0,
    "pcm_t_inference": 0.0,
    "pcm_prob_at_reset": 0.0,
    "pcm_prob_at_gmax": 0.0,
    "pcm_prob_at_random": 0.0,
    "pcm_t0": 20.0,
}
CLIP = {"fixed_value": -1.0, "sigma": 2.5, "type": "NONE"}
REMAP = {
    "remapped_wmax": 1.0,
    "max_scale_range": 0.0,
    "max_scale_ref": 0.0,
    "type": "NONE",
}
ENUMS = {
    "NoiseManagementType": "NONE ABS_MAX ABS_MAX_NP_SUM MAX CONSTANT AVERAGE_ABS_MAX",
    "BoundManagementType": "NONE ITERATIVE ITERATIVE_WORST_CASE SHIFT",
    "AnalogMVType": "ONE_PASS POS_NEG_SEPARATE POS_NEG_SEPARATE_DIGITAL_SUM",
    "WeightNoiseType": "NONE ADDITIVE_CONSTANT PCM_READ",
    "WeightModifierType": "NONE DISCRETIZE MULT_NORMAL ADD_NORMAL DISCRETIZE_ADD_NORMAL"
    " DOREFA POLY PCM_NOISE PROG_NOISE DROP_CONNECT COPY",
    "WeightClipType": "NONE FIXED_VALUE LAYER_GAUSSIAN AVERAGE_CHANNEL_MAX",
    "WeightRemapType": "NONE LAYERWISE_SYMMETRIC CHANNELWISE_SYMMETRIC",
}
CALLED = {
    "PCMLikeNoiseModel": "prog_coeff g_converter g_max t_read t_0 prog_noise_scale "
    "read_noise_scale drift_scale prog_coeff_g_max_reference",
    "HermesNoiseModel": "prog_coeff g_converter num_devices g_max t_read t_0 "
    "prog_noise_scale read_noise_scale drift_scale prog_coeff_g_max_reference",
    "ReRamWan2022NoiseModel": "coeff_dic g_converter g_max noise_scale "
    "coeff_g_max_reference",
    "ReRamCMONoiseModel": "coeff_dict g_max g_min prog_noise_scale read_noise_scale "
    "drift_scale decay_dict read_dict acceptance_range",
    "SinglePairConductanceConverter": "g_max g_min",
    "SingleDeviceConductanceConverter": "g_max g_min",
    "NPairConductanceConverter": "f_lst g_max g_min",
    "GlobalDriftCompensation": "",
}


def _part(fields):
    def setattr_(self, name, value):
        if name not in fields:
            raise AttributeError(name)
        object.__setattr__(self, name, value.name if hasattr(value, "name") else value)

    return type("Part", (), {**fields, "__setattr__": setattr_})


def _called(name, names):
    def make(**kwargs):
        assert set(kwargs) <= set(names.split()), name
        return {"": name, **kwargs}

    return make


@pytest.fixture
def run(monkeypatch):
    """Returns a function: the configuration of one chip type, and what is lost."""

    def config():
        ranged = types.SimpleNamespace(input_range=_part(INPUT_RANGE)())
        return types.SimpleNamespace(
            forward=_part(FORWARD)(),
            mapping=_part(MAPPING)(),
            pre_post=ranged,
            modifier=_part(MODIFIER)(),
            clip=_part(CLIP)(),
            remap=_part(REMAP)(),
        )

    enums = {name: enum.Enum(name, names) for name, names in ENUMS.items()}
    called = {name: _called(name, names) for name, names in CALLED.items()}
    contents = {
        "aihwkit": {},
        "aihwkit.inference": called,
        "aihwkit.inference.compensation": {},
        "aihwkit.inference.compensation.drift": {},
        "aihwkit.simulator": {},
        "aihwkit.simulator.configs": {"InferenceRPUConfig": config},
        "aihwkit.simulator.parameters": {},
        "aihwkit.simulator.parameters.enums": enums,
    }
    for name, names in contents.items():
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)

    def of(hardware):
        text, lost = rpu_config({"layer": hardware})
        found = {}
        exec(text, found)
        assert found["LOST"] == lost
        return found["RPU_CONFIGS"]["layer"](), lost["layer"]

    return of


def differing(part, fields):
    return {k: getattr(part, k) for k in fields if getattr(part, k) != fields[k]}


def test_the_defaults_of_aihwkit_are_its_defaults(run):
    config, lost = run(presets.aihwkit_default())
    assert differing(config.forward, FORWARD) == {}
    assert differing(config.modifier, MODIFIER) == {}
    assert differing(config.clip, CLIP) == differing(config.remap, REMAP) == {}
    assert config.drift_compensation == {"": "GlobalDriftCompensation"}
    converter = config.noise_model.pop("g_converter")
    assert converter == {"": "SinglePairConductanceConverter", "g_max": 25, "g_min": 0}
    assert lost == []


def test_an_ideal_chip_has_nothing_on(run):
    config, lost = run(Hardware())
    assert config.forward.is_perfect and config.drift_compensation is None
    scales = ("prog_noise_scale", "read_noise_scale", "drift_scale")
    assert [config.noise_model[name] for name in scales] == [0, 0, 0]
    assert (config.mapping.max_input_size, config.mapping.max_output_size) == (0, 0)
    assert lost == []


def test_every_part(run):
    config, lost = run(
        Hardware(
            forward=IOParameters(inp_bits=8, out_bits=6, out_bound=3.0, out_noise=0.1),
            mapping=MappingParameter(max_input_size=4, max_output_size=None),
            input_range=InputRangeParameter(init_value=2.0, decay=0.5),
            modifier=WeightModifierParameter(type="add_normal", std_dev=0.3),
            clip=WeightClipParameter(type="layer_gaussian", sigma=2.0),
            converter=SinglePairConductanceConverter(g_max=20.0, g_min=1.0),
            noise_model=PCMLikeNoiseModel(g_max=20.0, read_noise_scale=0.0),
        )
    )
    assert differing(config.forward, FORWARD) == {
        "inp_res": pytest.approx(1 / 254),
        "out_res": pytest.approx(1 / 62),
        "out_bound": 3.0,
        "out_noise": 0.1,
        "bound_management": "NONE",
        "noise_management": "NONE",
    }
    assert differing(config.mapping, MAPPING) == {
        "max_input_size": 4,
        "max_output_size": 0,
    }
    assert differing(config.pre_post.input_range, INPUT_RANGE) == {
        "enable": True,
        "init_value": 2.0,
        "decay": 0.5,
    }
    assert differing(config.modifier, MODIFIER) == {
        "type": "ADD_NORMAL",
        "std_dev": 0.3,
    }
    assert differing(config.clip, CLIP) == {"type": "LAYER_GAUSSIAN", "sigma": 2.0}
    model = config.noise_model
    assert (model[""], model["read_noise_scale"]) == ("PCMLikeNoiseModel", 0.0)
    assert model["g_converter"]["g_max"] == 20.0 and model["g_converter"]["g_min"] == 1
    assert lost == []


def test_a_converter_without_steps_or_bound(run):
    config, _ = run(Hardware(forward=IOParameters(out_noise=0.1)))
    bounds = ("inp_bound", "inp_res", "out_bound", "out_res")
    # What is not positive is infinite to aihwkit.
    assert [getattr(config.forward, name) for name in bounds] == [-1.0] * 4


@pytest.mark.parametrize("preset", ["pcm", "hermes", "reram_wan2022", "reram_cmo"])
def test_noise_models(run, preset):
    hardware = getattr(presets, preset)()
    config, _ = run(hardware)
    assert config.noise_model[""] == type(hardware.noise_model).__name__


@pytest.mark.parametrize("percent", [0.2, 2.0])
def test_the_acceptance_range_stays_in_percent(run, percent):
    model = ReRamCMONoiseModel(acceptance_range=percent)
    converter = SingleDeviceConductanceConverter()
    config, _ = run(Hardware(noise_model=model, converter=converter))
    assert config.noise_model["acceptance_range"] == percent


@pytest.mark.parametrize(
    "hardware, lost",
    [
        (
            {"mismatch": MismatchParameter(type="mult_normal", std_dev=0.1)},
            "mismatch: type='mult_normal', std_dev=0.1",
        ),
        (
            {
                "stuck": StuckParameter(at_g_min=0.1),
                "converter": SinglePairConductanceConverter(),
            },
            "stuck: at_g_min=0.1",
        ),
        (
            {"converter": SinglePairConductanceConverter(per_column=True)},
            "converter.per_column=True",
        ),
        (
            {"converter": BitSlicedConductanceConverter(bits=(2, 3))},
            "converter.bits=(2, 3)",
        ),
        (
            {
                "input_range": InputRangeParameter(dynamic=True),
                "forward": IOParameters(inp_bits=8),
            },
            "input_range.dynamic=True",
        ),
        (
            {"clip": WeightClipParameter(type="learnable_per_channel")},
            "clip.type='learnable_per_channel'",
        ),
        ({"modifier": BinaryWeights()}, "modifier.type='binary'"),
        (
            {
                "modifier": WeightModifierParameter(
                    type="add_normal", std_dev=0.1, per_column=True
                )
            },
            "modifier.per_column=True",
        ),
    ],
)
def test_what_has_no_equivalent_is_listed(run, hardware, lost):
    _, found = run(Hardware(**hardware))
    (line,) = found
    assert line.startswith(lost)
