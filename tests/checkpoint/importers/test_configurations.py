"""What of a configuration is translated, refused or lost."""

import pytest

from hwtrain import Hardware
from hwtrain._parts.fields import from_dict
from hwtrain.checkpoint.importers._aihwkit_config import of_aihwkit
from hwtrain.checkpoint.importers._lightning_config import levels_of, of_lightning
from hwtrain.checkpoint.importers._records import require
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
        ("AverageAbsMax", "average_abs_max"),
        ("ABS_MAX", "abs_max"),
    ):
        given = {"noise_management": kind(theirs)}
        found, lost = of_aihwkit(aihwkit(given), "InferenceTile")
        assert found["forward"]["noise_management"] == ours and not lost
        from_dict(Hardware, found)


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
        ({"noise_management": kind("Unheard")}, None, "forward: expected"),
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


def test_noise_of_lightning_is_listed():
    _, lost = of_lightning(lightning(out_noise=0.04))
    assert "square root of the number of row tiles" in lost[0]
    config = lightning()
    config.get("forward").fields.update(out_bound=2.0, out_res=1 / 255)
    with pytest.raises(ValueError, match="no even number of steps"):
        of_lightning(config)


def test_a_part_that_results_need_is_an_error_not_a_loss():
    with pytest.raises(ValueError, match="^input_range: it cannot be"):
        require({}, "input_range", ["remap: lost", "input_range: it cannot be"])
    require({"input_range": {}}, "input_range", [])
