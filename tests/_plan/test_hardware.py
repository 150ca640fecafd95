"""Configurations: round trips, validation, values that turn effects off."""

import dataclasses
import json
import tomllib

import pytest
import tomli_w

import hwtrain as hw
from hwtrain._parts import registry
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.periphery import ColumnWires, WeightSlices, WireResistance

FULL = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
    input_range=hw.InputRangeParameter(decay=0.0),
    mapping=hw.MappingParameter(max_input_size=None, weight_scaling_omega=1.0),
    mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.2, per_column=True),
    converter=hw.SinglePairConductanceConverter(g_min=1.0),
    remap=hw.WeightRemapParameter(type="channelwise_symmetric", max_scale_range=4.0),
    noise_model=hw.PCMLikeNoiseModel(drift_scale=0.5),
    drift_compensation=hw.PerColumnDriftCompensation(),
)


@pytest.mark.parametrize("chip", [hw.Hardware(), FULL])
def test_round_trip_through_json(chip):
    assert from_dict(hw.Hardware, json.loads(json.dumps(to_dict(chip)))) == chip


@pytest.mark.parametrize("chip", [hw.Hardware(), FULL])
def test_round_trip_through_toml(chip):
    assert from_dict(hw.Hardware, tomllib.loads(tomli_w.dumps(to_dict(chip)))) == chip


@pytest.mark.parametrize(
    "model",
    [
        hw.HermesNoiseModel(num_devices=1, g_max=25.0),
        hw.StateIndependentNoiseModel(),
        hw.ReRamWan2022NoiseModel(g_max=25.0),
        hw.CustomDriftPCMLikeNoiseModel(
            g_lst=(0.0, 25.0), nu_mean_lst=(0.1, 0.05), nu_std_lst=(0.0, 0.0)
        ),
    ],
    ids=lambda model: model.type,
)
def test_every_noise_model_is_known_by_its_type(model):
    chip = hw.Hardware(converter=hw.SinglePairConductanceConverter(), noise_model=model)
    assert from_dict(hw.Hardware, json.loads(json.dumps(to_dict(chip)))) == chip


def test_equal_configurations_are_equal_hashable_and_frozen():
    again = from_dict(hw.Hardware, to_dict(FULL))
    assert hash(again) == hash(FULL)
    assert again != hw.Hardware()
    with pytest.raises(AttributeError):
        FULL.clip = None


def test_hardware_is_ideal_unless_told():
    assert all(part is None for part in vars(hw.Hardware()).values())
    assert not hw.Hardware().draws("train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hw.Hardware(modifer=None), "modifer"),
        (lambda: hw.WeightModifierParameter(std_dev=-0.1), "greater than or equal"),
        (
            lambda: hw.WeightModifierParameter(std_dev="0.1"),
            "expected a number, got '0.1'",
        ),
        (lambda: hw.WeightModifierParameter(std_dev=float("nan")), "finite"),
        (lambda: hw.WeightModifierParameter(type="AddNormal"), "add_normal"),
        (lambda: hw.WeightClipParameter(type="fixed_value"), "write fixed_value=1.0"),
        (
            lambda: hw.WeightClipParameter(type="fixed_value", fixed_value=-1.0),
            "greater than 0",
        ),
        (
            lambda: hw.MappingParameter(max_input_size=0),
            "(?s)max_input_size.*write None for no limit",
        ),
        (
            lambda: hw.InputRangeParameter(input_min_percentage=1.5),
            "less than or equal",
        ),
        (
            lambda: hw.InputRangeParameter(init_from_data=0.5),
            "expected a whole number, got 0.5",
        ),
        (lambda: hw.SinglePairConductanceConverter(g_min=30.0), "g_min"),
        (lambda: from_dict(hw.Hardware, {"clip": {"sigm": 2.0}}), "clip.sigm"),
    ],
)
def test_bad_input_is_an_error_that_names_the_field(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hw.WeightClipParameter(fixed_value=1.0), 'with type="none"'),
        (
            lambda: hw.WeightClipParameter(
                type="fixed_value", fixed_value=1.0, sigma=2.0
            ),
            'sigma=2.0 does nothing with type="fixed_value"',
        ),
        (
            lambda: hw.WeightClipParameter(type="average_channel_max", sigma=2.0),
            'write type="layer_gaussian"',
        ),
        (lambda: hw.WeightClipParameter(sigma=2.0), 'with type="none"'),
        (
            lambda: hw.MismatchParameter(
                type="mult_normal", std_dev=0.1, rel_to_actual_wmax=False
            ),
            'rel_to_actual_wmax=False does nothing with type="mult_normal"',
        ),
        (
            lambda: hw.MismatchParameter(
                type="add_normal",
                std_dev=0.1,
                per_column=True,
                rel_to_actual_wmax=False,
            ),
            "rel_to_actual_wmax=False does nothing with per_column=True",
        ),
        (
            lambda: hw.MismatchParameter(
                type="mult_normal", std_dev=0.1, per_column=True
            ),
            "per_column=True does nothing",
        ),
        (
            lambda: hw.MappingParameter(weight_scaling_columnwise=True),
            "write weight_scaling_omega=1.0",
        ),
        (
            lambda: hw.InputRangeParameter(enable=False, decay=0.1),
            "decay=0.1: no effect with enable=False",
        ),
        (
            lambda: hw.InputRangeParameter(
                learn_input_range=False, decay=0.1, gradient_scale=2.0
            ),
            "decay=0.1, gradient_scale=2.0: no effect .* learn_input_range=False",
        ),
    ],
)
def test_an_option_that_does_nothing_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def sliced(held, read, largest=1.0, converter=None, **chip):
    stages = (WeightSlices(bits=read, largest=largest),)
    return hw.Hardware(
        converter=converter or hw.BitSlicedConductanceConverter(bits=held),
        forward=hw.IOParameters(stages=stages),
        **{"mapping": SCALED, **chip},
    )


SCALED = hw.MappingParameter(weight_scaling_omega=1.0)
EACH = hw.MappingParameter(weight_scaling_omega=1.0, weight_scaling_columnwise=True)
BOUNDED = hw.WeightClipParameter(type="fixed_value", fixed_value=1.0)
LEARNED = hw.WeightClipParameter(type="learnable_per_channel")
PAIR = {"g_max": 20.0, "g_min": 1.0}
PAIRS = hw.SinglePairConductanceConverter(**PAIR)
COLUMNS = hw.SinglePairConductanceConverter(**PAIR, per_column=True)
REMAPPED = hw.WeightRemapParameter(type="layerwise_symmetric")


def wired(omega=1.0, kind=WireResistance, chip=None, **stage):
    stage = {"r_wire_ohm": 1.0, **stage}
    mapping = hw.MappingParameter(weight_scaling_omega=omega)
    forward = hw.IOParameters(stages=(kind(**stage),))
    return hw.Hardware(
        **{"converter": PAIRS, "mapping": mapping, "forward": forward, **(chip or {})}
    )


def fits(kind, **chip):
    return wired(kind=kind, g_max_us=20.0, g_min_us=1.0, chip=chip)


def written(g_min, inside=False, **fields):
    model = hw.PCMLikeNoiseModel(prog_noise_scale=0.0)
    model = hw.WriteVerifyNoiseModel(noise_model=model, **fields)
    if inside:
        model = hw.RetentionFailures(
            noise_model=model, law="weibull", scale_s=1e6, shape=1.0
        )
    converter = hw.SinglePairConductanceConverter(g_max=25.0, g_min=g_min)
    return hw.Hardware(noise_model=model, converter=converter)


def nested(chip_k, reads_k, inside):
    model = hw.PCMLikeNoiseModel()
    reads = {"read_voltage_v": 0.2, "read_time_s": 1e-7, "reads_per_s": 1e3}
    hot = {"temperature_k": chip_k, "retention_ev": 1.0}
    if inside:
        model = hw.ReadDisturb(noise_model=model, **reads, temperature_k=reads_k)
        model = hw.AtTemperature(noise_model=model, **hot)
    else:
        model = hw.AtTemperature(noise_model=model, **hot)
        model = hw.ReadDisturb(noise_model=model, **reads, temperature_k=reads_k)
    # One more around both, so that the question has to be passed on.
    model = hw.RetentionFailures(
        noise_model=model, law="weibull", scale_s=1e6, shape=1.0
    )
    converter = hw.SinglePairConductanceConverter(g_max=25.0)
    return hw.Hardware(noise_model=model, converter=converter)


@hw.register("stage", "hardware_test_gain")
class Gain(hw.Part):
    """A user's stage that asks for a range of inputs."""

    def check_hardware(self, hardware):
        if hardware.input_range is None:
            raise ValueError("gain needs input_range=InputRangeParameter()")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sliced((2, 2, 3), (3, 2, 2)), r"bits=\(3, 2, 2\).*bits=\(2, 2, 3\)"),
        (lambda: wired(), "g_max_us=25.*1 to 20 µS.*g_max_us=20"),
        (lambda: wired(g_max_us=20.0), "g_min_us=0.*g_min_us=1"),
        (lambda: wired(0.5, g_max_us=20.0, g_min_us=1.0), "omega=0.5.*g_max_us=39"),
        (lambda: wired(kind=ColumnWires), "column_wires.*g_max_us=25.*g_max_us=20"),
        (lambda: sliced((2, 2), (2, 2), 0.5), "largest=0.5.*write largest=1"),
        (lambda: sliced((2, 2), (2, 2), mapping=None), "Parameter.weight_scaling_ome"),
        (lambda: sliced((2, 2), (2, 2), converter=PAIRS), "holds none.*bits=.2, 2.*"),
        (lambda: written(0.0, g_low=3.0), "g_min=0 µS.*g_low=3 .*write g_min=3 "),
        (lambda: written(0.0, True, g_low=3.0), "g_min=0 µS.*g_low=3 .*or g_low=0"),
        (lambda: nested(350.0, 300.0, True), "temperature_k=300 .*temperature_k=350"),
        (lambda: nested(350.0, 300.0, False), "temperature_k=300 .*temperature_k=350"),
        (
            lambda: hw.Hardware(forward=hw.IOParameters(stages=(Gain(),))),
            "gain needs input_range",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def half(columnwise):
    return hw.MappingParameter(
        weight_scaling_omega=0.5, weight_scaling_columnwise=columnwise
    )


@pytest.mark.parametrize("kind", [WireResistance, ColumnWires])
@pytest.mark.parametrize(
    ("chip", "message"),
    [
        ({"mapping": None}, "write mapping=MappingParameter.weight_scaling_omega=1.0"),
        ({"mapping": hw.MappingParameter()}, "nothing fixes without weight_scaling_om"),
        ({"converter": COLUMNS}, "each column.*write weight_scaling_columnwise=True"),
        ({"clip": BOUNDED}, "clip='fixed_value' lets change in training"),
        ({"clip": LEARNED}, "clip='learnable_per_channel' lets change in training"),
        ({"remap": REMAPPED, "mapping": half(False)}, "write remapped_wmax=0.5"),
        (
            {"remap": REMAPPED, "mapping": EACH, "converter": COLUMNS},
            "each column.*remap of type='layerwise_symmetric' lets change",
        ),
        (
            {"converter": hw.NPairConductanceConverter(f_lst=[1.0, 1.0], **PAIR)},
            "'n_pair' writes other devices: write converter=SinglePair",
        ),
        ({"converter": hw.SingleDeviceConductanceConverter(**PAIR)}, "'single_device'"),
        (
            {"converter": hw.BitSlicedConductanceConverter(bits=(2, 2), **PAIR)},
            "'bit_sliced' writes other",
        ),
    ],
)
def test_wires_of_other_devices_than_a_converter_writes_are_refused(
    kind, chip, message
):
    with pytest.raises(ValueError, match=message):
        fits(kind, **chip)


@pytest.mark.parametrize("kind", [WireResistance, ColumnWires])
def test_wires_of_the_devices_that_a_converter_writes_are_allowed(kind):
    assert fits(kind) and fits(kind, mapping=EACH)
    assert fits(kind, mapping=EACH, converter=COLUMNS)
    assert fits(kind, remap=REMAPPED, clip=BOUNDED)
    channels = hw.WeightRemapParameter(type="channelwise_symmetric")
    assert fits(kind, remap=channels, mapping=EACH, converter=COLUMNS)
    assert fits(kind, clip=hw.WeightClipParameter(type="layer_gaussian"))
    assert fits(kind, mapping=None, converter=None)


def test_parts_that_agree_are_allowed():
    assert sliced((2, 2, 3), (2, 2, 3))
    assert wired(g_max_us=20.0, g_min_us=1.0)
    assert sliced((2, 2), (2, 2), 0.5, mapping=half(False))
    assert written(3.0, g_low=3.0) and written(3.0, g_low=0.0, states=9)
    assert written(0.0, g_low=0.5, tolerance_us=0.5)
    assert wired(0.5, g_max_us=39.0, g_min_us=1.0)
    assert nested(350.0, 350.0, True) and nested(350.0, 350.0, False)
    stages = (WireResistance(r_wire_ohm=1.0, g_max_us=90.0), Gain())
    io = hw.IOParameters(stages=stages)
    assert hw.Hardware(forward=io, input_range=hw.InputRangeParameter())


def test_what_has_an_effect_beside_a_range_that_is_not_learned_is_allowed():
    hw.InputRangeParameter(
        learn_input_range=False, init_from_data=3, straight_through=True
    )
    assert not hw.InputRangeParameter(enable=False).enable


PARTS = {
    "modifier": hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    "clip": hw.WeightClipParameter(type="layer_gaussian"),
    "remap": hw.WeightRemapParameter(type="layerwise_symmetric"),
    "input_range": hw.InputRangeParameter(),
    "forward": hw.IOParameters(out_noise=0.1),
    "mapping": hw.MappingParameter(max_input_size=4),
    "mismatch": hw.MismatchParameter(type="mult_normal", std_dev=0.1),
    "drift": hw.SimpleDriftParameter(nu=0.1),
    "converter": hw.NPairConductanceConverter(f_lst=(1.0,)),
    "noise_model": hw.PCMLikeNoiseModel(),
    "drift_compensation": hw.GlobalDriftCompensation(),
    "stuck": hw.StuckParameter(at_g_min=0.1),
    "noise_current": hw.NoiseCurrentParameter(density=1e-15),
    "outputs": hw.DigitalFormat(),
}


def test_every_part_has_a_case():
    fields = {field.name for field in dataclasses.fields(hw.Hardware)}
    assert fields == PARTS.keys()


def test_tuples_are_lists_in_data_of_every_part():
    chip = hw.Hardware(
        modifier=hw.WeightModifierParameter(
            type="poly", std_dev=0.1, coeffs=(1.0, 2.0)
        ),
        converter=hw.SinglePairConductanceConverter(g_max=25.0),
        noise_model=hw.PCMLikeNoiseModel(prog_coeff=(0.1, 0.2)),
    )
    data = json.loads(json.dumps(to_dict(chip)))
    assert data["modifier"]["coeffs"] == [1.0, 2.0]
    assert from_dict(hw.Hardware, data) == chip


@pytest.mark.parametrize("name", PARTS)
def test_a_subclass_is_not_taken_for_its_parent(name):
    parent = type(PARTS[name])
    child = type("Mine", (parent,), {})
    names = [f.name for f in dataclasses.fields(child)]  # a part's has no type
    values = {name_: getattr(PARTS[name], name_) for name_ in names}
    message = f"{name} should be a {parent.__name__} itself; got the subclass Mine"
    if issubclass(parent, hw.Part):
        kind = "output_format" if name == "outputs" else name
        message = f"expected a registered {kind}; got .*Mine"
    with pytest.raises(ValueError, match=message):
        hw.Hardware(**{name: child(**values)})


@pytest.mark.parametrize("kind", [WireResistance, ColumnWires])
def test_wires_work_with_a_pair_of_a_users_own(kind, monkeypatch):
    @hw.register("converter", "my_pair")
    class Pair(hw.SinglePairConductanceConverter):
        """A pair."""

    try:
        own = Pair(**PAIR)
        assert fits(kind, converter=own)
        monkeypatch.setattr(Pair, "linear_pair", False)
        with pytest.raises(ValueError, match="'my_pair' writes other devices"):
            fits(kind, converter=own)
    finally:
        registry.forget("converter", "my_pair")
