"""What of a configuration is translated, refused or lost."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain
from hwtrain import Hardware
from hwtrain._parts.fields import from_dict
from hwtrain.checkpoint.importers._aihwkit_config import of_aihwkit
from hwtrain.checkpoint.importers._lightning_config import levels_of, of_lightning
from hwtrain.checkpoint.importers._records import hardware_of, require
from hwtrain.checkpoint.importers._torch_file import Record


def record(name="", *args, **fields):
    """Returns a record as the file's reader makes it."""
    made = type("Record", (Record,), {"name": name})(*args)
    made.fields = fields
    return made


def kind(value):
    return record("Enum", value)


def aihwkit(forward=(), pre_post=None, **parts):
    given = {
        "inp_bound": 1.0,
        "inp_res": 1 / 254,
        "out_bound": 10.0,
        "out_res": 1 / 254,
    }
    given |= {"mv_type": kind("OnePass"), "noise_management": kind("None")}
    given |= {"bound_management": kind("None"), "bm_test_negative_bound": True}
    parts = {"mapping": record(max_input_size=512, max_output_size=0), **parts}
    if pre_post:
        parts["pre_post"] = record(input_range=record(enable=True, **pre_post))
    return record("Config", forward=record("IO", **(given | dict(forward))), **parts)


def test_every_kind_of_management():
    for theirs, ours in (
        ("AbsMax", "abs_max"),
        ("AbsMaxNPSum", "abs_max_np_sum"),
        ("Constant", "constant"),
        ("ABS_MAX", "abs_max"),
    ):
        given = {"noise_management": kind(theirs)}
        found, lost = of_aihwkit(aihwkit(given), "InferenceTile")
        assert found["forward"]["noise_management"] == ours and not lost
        from_dict(Hardware, found)


def of_forward(tile="InferenceTile", rows=1, **fields):
    fields = {x: kind(v) if isinstance(v, str) else v for x, v in fields.items()}
    return of_aihwkit(aihwkit(fields), tile, rows)[0]["forward"]


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"noise_management": "Max", "nm_thres": 1.0},
            "='max': its C\\+\\+ tiles give",
        ),
        ({"noise_management": "AverageAbsMax"}, "depend on what was read before"),
        (
            {"noise_management": "AbsMaxNPSum", "nm_thres": 1.0},
            "nm_thres=1.0 limits the scale of noise_management='abs_max_np_sum'",
        ),
    ],
)
def test_management_that_hwtrain_computes_otherwise(fields, message):
    with pytest.raises(ValueError, match=message):
        of_forward(**fields)


def test_the_maximum_of_inputs_is_that_of_the_torch_tile():
    found = of_forward("TorchInferenceTile", noise_management="Max")
    assert found["noise_management"] == "max"
    with pytest.raises(ValueError, match="nm_thres=0.5 limits the scale of .*'max'"):
        of_forward("TorchInferenceTile", noise_management="Max", nm_thres=0.5)


def test_the_limit_of_the_scale_from_sums():
    # 0.25 * 254 / 2 = 31.75 times the largest input, and 0.6 / 0.5 of it per row.
    given = {"noise_management": "AbsMaxNPSum", "out_bound": 0.5, "max_bm_res": 0.25}
    assert of_forward(rows=26, **given)["noise_management"] == "abs_max_np_sum"
    with pytest.raises(ValueError, match="to 31.75 times the .* which 27 inputs may"):
        of_forward(rows=27, **given)
    given = {"noise_management": "AbsMax", "out_bound": 0.5, "max_bm_res": 0.25}
    assert of_forward(rows=27, **given)
    worst = {**given, "bound_management": "IterativeWorstCase"}
    with pytest.raises(ValueError, match="'iterative_worst_case' to 31.75"):
        of_forward(rows=27, **worst)
    with pytest.raises(ValueError, match="nm_thres=2 limits .*'iterative_worst_case'"):
        of_forward(nm_thres=2, **worst)


# aihwkit 1.1.0, InferenceTile, out_bound 0.5 and 254 steps, without noise: weights,
# inputs, and the outputs by noise management. Without any, those of ITERATIVE.
WEIGHTS = [[0.5, -0.25, 0.75], [-0.5, 1.0, 0.25]]
INPUTS = [[0.9, -0.3, 0.6], [0.2, 0.8, -0.7], [-0.4, 0.1, 0.3]]
OUTPUTS = {
    "None": [[0.976378, -0.598425], [-0.614173, 0.527559], [0.0, 0.377953]],
    "AbsMax": [[0.977953, -0.623622], [-0.623622, 0.510236], [0.0, 0.374173]],
}


@pytest.mark.parametrize("noise, bound", [("None", ""), ("AbsMax", "_worst_case")])
def test_the_worst_case_needs_a_scale_of_inputs(noise, bound):
    given = {"bound_management": "IterativeWorstCase", "noise_management": noise}
    forward = of_forward(out_bound=0.5, max_bm_factor=1000, max_bm_res=0.25, **given)
    assert forward["bound_management"] == f"iterative{bound}"
    mapping = {"weight_scaling_omega": 0.0}
    chip = from_dict(Hardware, {"forward": forward, "mapping": mapping})
    model = hwtrain.eval_mode(hwtrain.analogize(nn.Dense(2, use_bias=False), chip))
    variables = {"params": {"kernel": jnp.asarray(WEIGHTS).T}}
    found = model.apply(variables, jnp.asarray(INPUTS))
    np.testing.assert_allclose(found, OUTPUTS[noise], rtol=0, atol=2e-6)


def test_the_torch_tile_has_no_worst_case():
    given = {"bound_management": "IterativeWorstCase", "noise_management": "AbsMax"}
    found = of_forward("TorchInferenceTile", **given)
    assert found["bound_management"] == "iterative"


@pytest.mark.parametrize("side", ["inp", "out"])
def test_an_infinite_bound_is_refused(side):
    # aihwkit 1.1.0 gives NaN with it in its C++ tiles.
    with pytest.raises(ValueError, match=f"{side}_bound=inf gives NaN in aihwkit"):
        of_forward(**{f"{side}_bound": math.inf, f"{side}_res": -1})


def test_without_a_bound_nothing_is_managed():
    found = of_forward(out_bound=0.0, out_res=-1, bound_management="Iterative")
    assert found["bound_management"] == "none" and "out_bound" not in found


def test_a_bias_on_the_crossbar():
    mapping = record(max_input_size=512, digital_bias=False)
    with pytest.raises(ValueError, match="digital_bias=False keeps a bias as one more"):
        of_aihwkit(aihwkit(mapping=mapping), "InferenceTile")
    assert of_aihwkit(aihwkit(mapping=mapping), "TorchInferenceTile")


def test_a_modifier_in_evaluation_is_listed():
    modifier = record(type=kind("Discretize"), res=0.1, enable_during_test=True)
    _, lost = of_aihwkit(aihwkit(modifier=modifier), "InferenceTile")
    assert "modifier.enable_during_test: it changes aihwkit's outputs" in lost[0]


@pytest.mark.parametrize("tile", ["InferenceTile", "TorchInferenceTile"])
def test_a_perfect_tile_has_no_periphery(tile):
    found, _ = of_aihwkit(aihwkit({"is_perfect": True}), tile)
    assert "forward" not in found
    assert found["mapping"]["max_output_size"] == "none"
    # Without it, the same file has one.
    assert "forward" in of_aihwkit(aihwkit(), tile)[0]


@pytest.mark.parametrize(
    "forward, pre_post, message",
    [
        (
            {"noise_management": kind("AbsMax")},
            {"init_value": 3.0},
            "scales inputs twice",
        ),
        ({"inp_bound": -1.0}, None, r"inp_res=0\.0039\d+ has no inp_bound"),
        ({"out_bound": 0.0}, None, "has no out_bound that is positive"),
        (
            {"bound_management": kind("Iterative"), "bm_test_negative_bound": False},
            None,
            "tests one side of the ADC alone",
        ),
        ({"noise_management": kind("Unheard")}, None, "noise_management: expected"),
        ({"inp_asymmetry": -0.2}, None, "forward.inp_asymmetry: expected a number gr"),
    ],
)
def test_what_changes_results_is_refused(forward, pre_post, message):
    with pytest.raises(ValueError, match=message):
        of_aihwkit(aihwkit(forward, pre_post), "InferenceTile")


@pytest.mark.parametrize(
    "tile", ["QuantizedTorchInferenceTile", "TorchInferenceTileIRDropT", "CustomTile"]
)
def test_other_tiles_are_refused(tile):
    with pytest.raises(ValueError, match=f"of the class {tile}, which computes"):
        of_aihwkit(aihwkit(), tile)


def test_pulsed_devices_are_lost():
    parts = {
        "device": record("ConstantStepDevice"),
        "update": record("UpdateParameters"),
    }
    found, lost = of_aihwkit(aihwkit(**parts), "AnalogTile")
    assert lost[0].startswith("device: ConstantStepDevice")
    assert found["forward"]["out_bound"] == 10.0


def test_batches_of_the_torch_tile_are_lost():
    given = {"bound_management": kind("Iterative"), "noise_management": kind("AbsMax")}
    _, lost = of_aihwkit(aihwkit(given), "TorchInferenceTile")
    assert "halves the inputs of all vectors of a batch together" in lost[0]
    assert not of_aihwkit(aihwkit(given), "InferenceTile")[1]


def test_training_and_devices():
    converter = record("SinglePairConductanceConverter", g_max=20.0, g_min=0.0)
    config = aihwkit(
        pre_post={"init_value": 2.0, "decay": 0.01, "learn_input_range": True},
        modifier=record(type=kind("AddNormal"), std_dev=0.1, pdrop=0.0, g_max=25.0),
        clip=record(type=kind("LayerGaussian"), sigma=2.0, fixed_value=-1.0),
        remap=record(type=kind("ChannelwiseSymmetric"), remapped_wmax=1.0),
        noise_model=record(
            "ReRamWan2022NoiseModel", g_converter=converter, noise_scale=0.5
        ),
        drift_compensation=record("GlobalDriftCompensation"),
    )
    found, lost = of_aihwkit(config, "InferenceTile")
    chip = from_dict(Hardware, found)
    assert (chip.modifier.type, chip.modifier.std_dev) == ("add_normal", 0.1)
    assert (chip.clip.type, chip.clip.sigma) == ("layer_gaussian", 2.0)
    assert chip.remap.type == "channelwise_symmetric"
    assert (chip.input_range.init_value, chip.input_range.decay) == (2.0, 0.01)
    assert chip.converter.g_max == 20.0
    assert (chip.noise_model.type, chip.noise_model.noise_scale) == (
        "reram_wan2022",
        0.5,
    )
    assert chip.drift_compensation.type == "global"
    assert not lost


def test_fields_that_hwtrain_does_not_take_are_lost():
    modifier = record(type=kind("AddNormal"), std_dev=0.1, pdrop=2.0, res=0.1)
    config = aihwkit(pre_post={"init_value": -3.0}, modifier=modifier)
    found, lost = of_aihwkit(config, "InferenceTile")
    assert found["modifier"] == {"type": "add_normal", "std_dev": 0.1}
    # Not the resolution, which does nothing in this modifier.
    assert [text.partition(":")[0] for text in lost] == [
        "input_range.init_value=-3.0",
        "modifier.pdrop=2.0",
    ]


def test_devices_that_hwtrain_does_not_have_are_lost():
    model = record("MyNoise", g_converter=record("SinglePairConductanceConverter"))
    _, lost = of_aihwkit(aihwkit(noise_model=model), "InferenceTile")
    assert lost == ["noise_model: MyNoise"]
    model = record("PCMLikeNoiseModel", g_converter=record("MyConverter"))
    _, lost = of_aihwkit(aihwkit(noise_model=model), "InferenceTile")
    assert lost[0] == "converter: MyConverter" and len(lost) == 2


def lightning(clip="None", noise="None", levels="None", **forward):
    return record(
        "Config",
        forward=record(inp_res=-1, out_bound=0.0, out_res=-1, **forward),
        clip=record(type=kind(clip), sigma=2.5),
        modifier=record(
            noise_type=kind(noise), quantization_type=kind(levels), std_dev=0.1, res=30
        ),
        pre_post=record(input_range=record(enable=True, init_value=3.0)),
        mapping=record(max_input_size=-1),
    )


@pytest.mark.parametrize(
    "noise, levels, type_",
    [
        ("AddNormal", "None", "add_normal"),
        ("None", "Discretize", "discretize"),
        ("AddNormalPerChannel", "DiscretizePerChannel", "discretize_add_normal"),
    ],
)
def test_modifiers_of_lightning(noise, levels, type_):
    config = lightning(noise=noise, levels=levels)
    found, lost = of_lightning(config)
    chip = from_dict(Hardware, found)
    assert chip.modifier.type == type_
    assert chip.modifier.per_column == noise.endswith("PerChannel")
    assert (levels_of(config) is None) == (levels == "None") and not lost


def test_clips_of_lightning():
    found, _ = of_lightning(lightning(clip="LayerGaussianPerChannel"))
    assert found["clip"] == {"type": "layer_gaussian", "sigma": 2.5, "per_column": True}
    assert found["mapping"]["weight_scaling_columnwise"]
    found, _ = of_lightning(lightning(clip="LearnablePerChannel"))
    assert from_dict(Hardware, found).learns_clip


@pytest.mark.parametrize(
    "type_, noise, levels",
    [
        ("None", "none", None),
        ("AddNormal", "add_normal", False),
        ("DiscretizePerChannel", "discretize", True),
        ("DiscretizeAddNormalPerChannel", "discretize_add_normal", True),
    ],
)
def test_modifiers_of_lightning_before_version_2(type_, noise, levels):
    config = lightning()
    fields = {"type": kind(type_), "std_dev": 0.1, "res": 31}
    config.fields["modifier"] = record(**fields)
    found, lost = of_lightning(config)
    assert found.get("modifier", {"type": "none"})["type"] == noise and not lost
    assert found.get("modifier", {}).get("per_column") == levels
    # In evaluation, lightning 1.0.1 does not round.
    assert levels_of(config) is None
    config.fields["modifier"] = record(**fields, enable_during_test=True)
    if levels is None:
        assert of_lightning(config)
    else:
        with pytest.raises(
            ValueError, match="modifier.enable_during_test=True changes"
        ):
            of_lightning(config)


def bounded(clip, levels, res, **forward):
    config = lightning(clip=clip, levels=levels)
    config.get("modifier").fields["res"] = res
    config.get("forward").fields.update(forward)
    return config


def test_levels_of_weights_that_move_the_bounds_of_outputs():
    # Without a bound, the maximum of the weights does not matter.
    assert of_lightning(bounded("None", "Discretize", 15))
    assert of_lightning(bounded("LayerGaussianPerChannel", "Discretize", 14))
    for config in (
        bounded("None", "Discretize", 15, out_bound=2.0),
        bounded("None", "DiscretizePerChannel", 1 / 15, out_bound=2.0),
        bounded("LearnablePerChannel", "DiscretizePerChannel", 15),
    ):
        with pytest.raises(ValueError, match="modifier.res=.* no even number of steps"):
            of_lightning(config)
    with pytest.raises(ValueError, match="=DISCRETIZE beside a clip of each channel"):
        of_lightning(
            bounded("LayerGaussianPerChannel", "Discretize", 14, out_bound=2.0)
        )
    for config in (
        bounded("LayerGaussianPerChannel", "DiscretizePerChannel", 14, out_bound=2.0),
        bounded("LayerGaussian", "Discretize", 14, out_bound=2.0),
    ):
        assert of_lightning(config)
    with pytest.raises(ValueError, match="modifier.res=0.0: expected a number above 0"):
        of_lightning(bounded("None", "Discretize", 0.0))


def test_a_clip_of_training_alone_is_listed():
    config = lightning(clip="LayerGaussianPerChannel")
    config.get("clip").fields["sigma"] = -1.0  # lightning's default
    found, lost = of_lightning(config)
    assert lost == ["clip.sigma: expected a number greater than 0, got -1.0"]
    assert "clip" not in found and found["mapping"]["weight_scaling_columnwise"]


def test_tensors_of_a_configuration():
    config = lightning()
    config.get("forward").fields.update(
        out_bound=np.asarray(2.5, np.float32), out_noise=np.asarray([0.1, 0.1])
    )
    with pytest.raises(
        ValueError, match=r"forward.out_noise: expected a number, .* \(2,\)"
    ):
        of_lightning(config)
    config.get("forward").fields["out_noise"] = np.asarray(0.0)
    found, _ = of_lightning(config)
    assert found["forward"] == {"out_bound": 2.5}

    # aihwkit multiplies tensors of steps in every call of its torch tile.
    found = of_forward(out_bound=np.asarray(2.5), inp_bound=np.asarray(1.5))
    assert (found["out_bound"], found["inp_bound"]) == (2.5, 1.5)
    for name in ("inp_res", "out_res"):
        with pytest.raises(ValueError, match=f"forward.{name}: .* in every call"):
            of_forward(**{name: np.asarray(0.01)})

    # Of several numbers, what hwtrain has as such.
    converter = record("SinglePairConductanceConverter", g_max=np.asarray(20.0))
    model = record(
        "PCMLikeNoiseModel",
        g_converter=converter,
        prog_coeff=np.asarray([0.2, 1.5, -1.0]),
    )
    found, lost = of_aihwkit(aihwkit(noise_model=model), "InferenceTile")
    assert found["noise_model"]["prog_coeff"] == [0.2, 1.5, -1.0] and not lost
    assert found["converter"]["g_max"] == 20.0


def test_a_factor_that_scales_nothing():
    mapping = record(weight_scaling_omega=-1.0, max_input_size=512)
    found, _ = of_aihwkit(aihwkit(mapping=mapping), "InferenceTile")
    assert found["mapping"]["weight_scaling_omega"] == 0
    mapping = record(max_input_size=2.5)
    with pytest.raises(
        ValueError, match="^mapping.max_input_size: expected a whole nu"
    ):
        of_aihwkit(aihwkit(mapping=mapping), "InferenceTile")
    with pytest.raises(ValueError, match="^0: mapping.max_input_size: expected a whol"):
        hardware_of({"mapping": {"max_input_size": 2.5}}, "0: ")


def test_noise_of_lightning_is_listed():
    _, lost = of_lightning(lightning(out_noise=0.04))
    assert "square root of the number of row tiles" in lost[0]
    config = lightning()
    config.get("forward").fields.update(out_bound=2.0, out_res=1 / 255)
    with pytest.raises(ValueError, match="no even number of steps"):
        of_lightning(config)


def test_odd_steps_of_lightning():
    # lightning reads 10 at 31 steps of a range of 1 as 16 steps of 2 / 31.
    for res in (31, 255, 1 / 31):
        config = lightning()
        config.get("forward").fields["inp_res"] = res
        with pytest.raises(
            ValueError, match=f"inp_res={res} is no even number .* clips"
        ):
            of_lightning(config)
    config.get("forward").fields.update(inp_res=30, out_bound=math.inf)
    assert of_lightning(config)[0]["forward"] == {"inp_res": 30}


def test_a_part_that_results_need_is_an_error_not_a_loss():
    with pytest.raises(ValueError, match="^input_range: it cannot be"):
        require({}, "input_range", ["remap: lost", "input_range: it cannot be"])
    require({"input_range": {}}, "input_range", [])
