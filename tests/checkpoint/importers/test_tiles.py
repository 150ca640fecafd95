"""Files whose tiles are not those of their configuration are refused in one line."""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
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


def with_other_reads(state):
    kind = type("Record", (Record,), {"name": "Kind"})("Sideways")
    config_of(state).get("forward").fields["mv_type"] = kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_tile, "0 lacks some of its 2 x 2 tiles"),
        (without_a_configuration, "0 has no rpu_config beside its tiles; save the"),
        (with_other_reads, "0: forward: .*'one_pass'"),
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
    ],
)
def test_tiles_that_do_not_fit_their_mapping(changed, change, message):
    file, read = changed("aihwkit", change)
    with pytest.raises(ValueError, match=message):
        importers.parameters(read(file), target())


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
