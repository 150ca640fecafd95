"""Files whose tiles are not those of their configuration are refused in one line."""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

import hwtrain
from hwtrain.checkpoint import importers
from hwtrain.checkpoint.importers import _aihwkit, _lightning
from hwtrain.checkpoint.importers._modules import state_dict
from hwtrain.checkpoint.importers._torch_file import Record

GOLDEN = Path(__file__).parents[2] / "golden/trained"
FIRST = "0.analog_module.array.0.0."


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(7)(x)))


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Returns a file and its reader, which finds its content changed."""

    def make(package, change):
        file = tmp_path / "model.th"
        case = GOLDEN / f"{package}_mlp.th.gz"
        file.write_bytes(gzip.decompress(case.read_bytes()))
        state = state_dict(file)
        change(state)
        module = {"aihwkit": _aihwkit, "lightning": _lightning}[package]
        monkeypatch.setattr(module, "state_dict", lambda _: state)
        return file, getattr(importers, f"read_{package}")

    return make


def config_of(state):
    return state[f"{FIRST}analog_tile_state"]["rpu_config"]


def without_a_tile(state):
    for name in [name for name in state if name.startswith(FIRST)]:
        del state[name]


def without_a_configuration(state):
    del state[f"{FIRST}analog_tile_state"]["rpu_config"]


def without_scales(state):
    del state[f"{FIRST}mapping_scales"]


def with_other_reads(state):
    kind = type("Record", (Record,), {"name": "Kind"})("Sideways")
    config_of(state).get("forward").fields["mv_type"] = kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_tile, "0 lacks some of its 2 x 2 tiles"),
        (without_a_configuration, "0 has no rpu_config beside its tiles; save the"),
        (with_other_reads, "0: forward.mv_type: expected 'one_pass'"),
        (without_scales, "0: expected mapping_scales beside each tile, as its"),
        (dict.clear, "expected tiles of aihwkit, got a state_dict without any"),
    ],
)
def test_tiles_of_aihwkit(changed, change, message):
    file, read = changed("aihwkit", change)
    with pytest.raises(ValueError, match=message) as error:
        read(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_layer_of_lightning_that_hwtrain_does_not_have(changed):
    def change(state):
        forward = state.metadata["0"]["rpu_config"].get("forward")
        forward.fields.update(out_bound=2.0, out_res=1 / 255)

    file, read = changed("lightning", change)
    with pytest.raises(
        ValueError, match="0: forward.out_res=.* no even number"
    ) as error:
        read(file)
    assert str(error.value).startswith(str(file))


def in_a_block(state):
    """Moves all layers into `net`, with one configuration, as lightning writes it."""
    for name in list(state):
        state[f"net.{name}"] = state.pop(name)
    config = state.metadata["2"]["rpu_config"]
    names = {f"net.{name}": {"version": 1} for name in "012"}
    state.metadata = {"net": {"rpu_config": config}, **names}
    return config


def without_ranges(state, **fields):
    config = in_a_block(state)
    for name in [x for x in state if x.rpartition(".")[2] not in ("weight", "bias")]:
        del state[name]
    config.get("pre_post").get("input_range").fields.update(fields)
    return config


def analog(trained):
    return [module.name for module in trained.modules if module.tiles]


def test_layers_of_lightning_in_a_block(changed):
    file, read = changed("lightning", in_a_block)
    trained = read(file)
    assert analog(trained) == ["net.0", "net.2"]
    assert trained.lost[0] == (
        "net: rpu_configs that differ: lightning keeps one, the last, for all of "
        "net.0, net.2"
    )

    # Without a range of its own, beside one that has, a layer was excluded.
    def excluded(state):
        in_a_block(state)
        del state["net.2.input_range"]

    file, read = changed("lightning", excluded)
    trained = read(file)
    assert analog(trained) == ["net.0"]
    assert set(trained.modules[1].arrays) >= {"weight", "bias", "x_min", "x_max"}


@pytest.mark.parametrize("fields", [{"dynamic": True}, {"enable": False}])
def test_layers_of_lightning_that_may_be_digital(changed, fields):
    file, read = changed("lightning", lambda state: without_ranges(state, **fields))
    with pytest.raises(
        ValueError, match=r"net\.0: the file has one rpu_config .*_meta"
    ):
        read(file)

    # As the message says: each analog layer has its own.
    def named(state):
        config = without_ranges(state, **fields)
        state.metadata["net.0"]["rpu_config"] = config

    file, read = changed("lightning", named)
    trained = read(file)
    assert analog(trained) == ["net.0"]
    assert not any(text.startswith("net: ") for text in trained.lost)

    # Nor does it matter where analog layers compute what digital ones do.
    def ideal(state):
        config = without_ranges(state, enable=False)
        config.get("forward").fields.update(inp_res=-1, out_bound=0.0, out_res=-1)

    file, read = changed("lightning", ideal)
    assert analog(read(file)) == ["net.0", "net.2"]


def with_one_axis(state, *without):
    """Makes the first layer an `AnalogConv1d`, of which lightning writes no config."""
    state["0.weight"] = state["0.weight"][..., None]
    del state.metadata["0"]["rpu_config"]
    for name in without:
        del state[f"0.{name}"]


def test_convolutions_of_one_axis_in_lightning(changed):
    file, read = changed("lightning", with_one_axis)
    with pytest.raises(
        ValueError, match="0: the file has no rpu_config .* although it has input_range"
    ):
        read(file)

    def dynamic(state):
        with_one_axis(state, "input_range", "input_range_update_idx", "x_min", "x_max")

    file, read = changed("lightning", dynamic)
    with pytest.raises(
        ValueError, match="0: .* none for AnalogConv1d; before you save"
    ):
        read(file)

    # As the page says: that of each module, and None for digital ones.
    def told(state, config=None):
        dynamic(state)
        state.metadata["0"]["rpu_config"] = config

    file, read = changed("lightning", told)
    assert analog(read(file)) == ["2"]

    def analog_one(state):
        config = state.metadata["0"]["rpu_config"]
        with_one_axis(state)
        state.metadata["0"]["rpu_config"] = config

    file, read = changed("lightning", analog_one)
    trained = read(file)
    assert analog(trained) == ["0", "2"] and trained.modules[0].shape == (7, 11, 1)


def test_a_layer_of_lightning_without_what_its_configuration_makes(changed):
    def change(state):
        del state["0.input_range"]

    file, read = changed("lightning", change)
    with pytest.raises(ValueError, match="0: expected input_range beside its weight"):
        read(file)

    # One of a block may have been excluded.
    def excluded(state):
        in_a_block(state).get("clip").fields["type"] = kind("LearnablePerChannel")
        state["net.0.learnable_weight_clip"] = np.full((2, 7), 0.1, np.float32)

    file, read = changed("lightning", excluded)
    assert analog(read(file)) == ["net.0"]


def kind(value):
    return type("Record", (Record,), {"name": "Kind"})(value)


def with_ranges(package, value):
    def change(state):
        for name, array in state.items():
            if name.startswith("0.") and name.endswith("input_range"):
                state[name] = value * array

    return package, change


def test_negative_ranges_of_aihwkit_are_their_size(changed):
    file, read = changed(*with_ranges("aihwkit", 1))
    wanted = [tile.input_range for row in read(file).modules[0].tiles for tile in row]
    file, read = changed(*with_ranges("aihwkit", -1))
    found = [tile.input_range for row in read(file).modules[0].tiles for tile in row]
    assert found == wanted and min(wanted) > 0

    def asymmetric(state):
        with_ranges("", -1)[1](state)
        for name in [name for name in state if name.endswith("analog_tile_state")]:
            forward = state[name]["rpu_config"].get("forward")
            forward.fields["inp_asymmetry"] = 0.1

    file, read = changed("aihwkit", asymmetric)
    with pytest.raises(
        ValueError, match="0: input_range: .* beside inp_asymmetry of fo"
    ):
        read(file)


@pytest.mark.parametrize(
    ("package", "factor", "message"),
    [
        ("aihwkit", 0, "0: input_range: expected a number other than 0, by which"),
        ("lightning", 0, "0: input_range: expected a number above 0, got 0, at which"),
        ("lightning", -1, "0: input_range: expected a number above 0, got -"),
    ],
)
def test_ranges_that_give_nonsense(changed, package, factor, message):
    file, read = changed(*with_ranges(package, factor))
    with pytest.raises(ValueError, match=message):
        read(file)


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (-0.1, "0: learnable_weight_clip: expected bounds above 0, .* got -0.1"),
        (
            1.5,
            "0: learnable_weight_clip: the steps of a tile are all above 1, from 1.5",
        ),
    ],
)
def test_learned_bounds_that_lightning_takes_otherwise(changed, bound, message):
    def change(state):
        state.metadata["0"]["rpu_config"].get("clip").fields["type"] = kind(
            "LearnablePerChannel"
        )
        tiles = len(state["0.input_range"])
        state["0.learnable_weight_clip"] = np.full((tiles, 7), bound, np.float32)

    file, read = changed("lightning", change)
    with pytest.raises(ValueError, match=message):
        read(file)


def test_levels_of_large_weights_that_lightning_takes_otherwise(changed):
    def change(state):
        modifier = state.metadata["0"]["rpu_config"].get("modifier").fields
        modifier["quantization_type"] = kind("DiscretizePerChannel")
        modifier["res"] = 14
        state["0.weight"] = 1e3 * state["0.weight"]

    file, read = changed("lightning", change)
    with pytest.raises(
        ValueError, match="0: weight: the steps of a tile are all above"
    ):
        read(file)


def with_an_array_of_a_subclass(state):
    state["0.gain"] = state[next(x for x in state if x.endswith("bias"))]


@pytest.mark.parametrize("package", ["aihwkit", "lightning"])
def test_arrays_of_a_subclass_are_refused(changed, package):
    file, read = changed(package, with_an_array_of_a_subclass)
    with pytest.raises(ValueError, match="0: gain: expected the arrays of an analog"):
        read(file)


def test_only_buffers_of_analog_layers_are_left_out(changed):
    def change(state):
        state["x_min"] = state["head.fold_indices"] = np.ones(3, np.float32)
        state["norm.running_mean"] = np.ones(3, np.float32)
        state["norm.num_batches_tracked"] = np.asarray(7)
        state["other.num_batches_tracked"] = np.asarray(7)

    for package in ("aihwkit", "lightning"):
        file, read = changed(package, change)
        modules = {module.name: module.arrays for module in read(file).modules}
        assert set(modules[""]) == {"x_min"}
        assert set(modules["head"]) == {"fold_indices"}
        assert set(modules["norm"]) == {"mean"}
        assert set(modules["other"]) == {"num_batches_tracked"}
        assert set(modules["0"]) == {"bias"}


def with_nan(name):
    def change(state):
        found = next(x for x in state if x.endswith(name))
        value = state[found]
        if isinstance(value, dict):
            value = value["analog_tile_weights"]
        value.flat[0] = np.nan if name == "bias" else np.inf

    return change


def with_a_long_bias(state):
    state["0.analog_module.bias"] = np.ones((3, 4), np.float32)


def with_smaller_tiles(state):
    for name, value in state.items():
        if name.endswith("analog_tile_state"):
            value["rpu_config"].get("mapping").fields["max_input_size"] = 3


def with_a_negative_scale(state):
    state[f"{FIRST}mapping_scales"] = -state[f"{FIRST}mapping_scales"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_smaller_tiles, "0: expected tiles with .* inputs .* got"),
        (with_a_negative_scale, "0: expected mapping scales above 0, got -"),
        (with_nan("bias"), "model.th: 0: bias: expected finite numbers, got NaN"),
        (with_nan("tile_state"), "model.th: 0: weight: expected finite numbers"),
        (with_nan("mapping_scales"), "model.th: 0: scale: expected finite numbers"),
        (
            with_a_long_bias,
            r"model.th: 0: expected a bias of 7 numbers, as Dense_1/bias of the model "
            r"has, got one of the shape \(3, 4\)",
        ),
    ],
)
def test_tiles_that_do_not_fit_their_mapping(changed, change, message):
    file, read = changed("aihwkit", change)
    with pytest.raises(ValueError, match=message):
        importers.parameters(read(file), target())


def test_scales_of_columns_beside_a_remap_of_tiles(changed):
    """As a drift compensation of each column leaves them, without `omega`."""
    kind = type("Record", (Record,), {"name": "Remap"})("LayerwiseSymmetric")

    def change(state):
        for key in [key for key in state if key.endswith("analog_tile_state")]:
            config = state[key]["rpu_config"]
            config.get("mapping").fields.update(
                weight_scaling_omega=0.0, weight_scaling_columnwise=False
            )
            config.get("remap").fields["type"] = kind
            scales = key.replace("analog_tile_state", "mapping_scales")
            columns = len(state[key]["analog_tile_weights"])
            state[scales] = np.linspace(0.5, 2, columns, dtype=np.float32)

    file, read = changed("aihwkit", change)
    found = importers.parameters(read(file), target())
    hardware = found.hardware["hardware"]
    assert hardware["remap"] == {"type": "layerwise_symmetric"}
    assert hardware["mapping"]["weight_scaling_omega"] == 1
    assert hardware["mapping"]["weight_scaling_columnwise"]
    assert "0, 2: mapping.weight_scaling_omega=0, as it began" in found.lost
    # The file's tiles have four and three columns.
    scales = [0.5, 1, 1.5, 2, 0.5, 1.25, 2]
    expected = np.array([scales] * 2, np.float32)
    np.testing.assert_array_equal(
        found.analog["params/Dense_1/mapping_scale"], expected
    )


def target():
    x, plain = jnp.ones((1, 11)), Model()
    variables = flatten_dict(plain.init(jax.random.key(0), x)["params"], sep="/")

    def plan(hardware):
        analog = hwtrain.analogize(plain, hardware)
        return hwtrain.plan(analog, analog.init(jax.random.key(0), x), x)

    return importers.Target(
        shapes={path: array.shape for path, array in variables.items()},
        collections=dict.fromkeys(variables, "params"),
        plan=plan,
    )
