"""Properties that hold for every adapter."""

import errno
import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import hwtrain
from hwtrain.checkpoint import HardwareCheckpointError, load
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint.adapters import ADAPTERS

every = pytest.mark.parametrize("name", ADAPTERS)


def contents(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.is_file()}


@every
def test_equal_checkpoints_give_equal_bytes(name, make, out):
    checkpoint = make("second", norm=False)
    again = out.with_name("again")
    for path in (out, again):
        ADAPTERS[name](checkpoint, path, chip=None)
    assert contents(out) == contents(again)
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["again", "out"]


class Net(nn.Module):
    """Analog layers among modules and arrays that are digital."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, name="first")(x)
        x = nn.BatchNorm(True, name="norm")(x) + self.param(
            "shift", nn.initializers.zeros, (5,)
        )
        x = nn.LayerNorm(name="layer_norm", use_bias=False)(x)
        x = nn.Dense(4, name="digital")(x)
        return nn.WeightNorm(nn.Dense(3, name="second"), name="weight_norm")(x)


LEFT_OUT = {
    "digital": ["bias", "kernel"],
    "layer_norm": ["scale"],
    "norm": ["bias", "scale", "mean (batch_stats)", "var (batch_stats)"],
    "shift": ["shift"],
    "weight_norm": ["second~1kernel~1scale"],
}


@pytest.mark.parametrize(
    "name, file",
    [
        ("aihwkit", "layers.json"),
        ("crosssim", "crosssim.json"),
        ("fusion-csv", "side_car.json"),
    ],
)
def test_what_is_digital_and_left_out_is_named(name, file, tmp_path):
    hardware = hwtrain.Hardware(
        converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
        mapping=hwtrain.MappingParameter(learn_out_scaling=True),
        input_range=hwtrain.InputRangeParameter(),
        clip=hwtrain.WeightClipParameter(type="learnable_per_channel"),
    )
    rules = [hwtrain.Rule("digital", None), hwtrain.Rule("first", hardware)]
    plain = hwtrain.Hardware(converter=hardware.converter)
    analog = hwtrain.analogize(Net(), [*rules, hwtrain.Rule("second", plain)])
    x = jnp.ones((2, 6))
    variables = hwtrain.materialize(analog, analog.init(jax.random.key(0), x), x)
    plan = hwtrain.plan(analog, variables, x).effective
    checkpoint = load(hwtrain.export(tmp_path / "chip", variables, plan))
    ADAPTERS[name](checkpoint, tmp_path / "out")
    lost = json.loads((tmp_path / "out" / file).read_text())["lost"]
    expected = {
        module: [f"digital: {', '.join(x)}; they are in checkpoint.variables alone"]
        for module, x in LEFT_OUT.items()
    }
    assert lost == expected
    if name == "aihwkit":
        text = (tmp_path / "out" / "rpu_config.py").read_text()
        listed = {}
        exec(text[text.index("LOST = ") :], listed)
        assert {k: v for k, v in listed["LOST"].items() if k in expected} == expected


@every
def test_nothing_is_overwritten(name, make, out):
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(HardwareCheckpointError, match="never overwritten"):
        ADAPTERS[name](make("second", norm=False), out)
    assert out.read_text() == "mine"


@every
def test_full_disk_leaves_nothing(name, make, out, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    checkpoint = make("second", norm=False)
    monkeypatch.setattr(destination, "sync", full)
    with pytest.raises(HardwareCheckpointError, match="No space left"):
        ADAPTERS[name](checkpoint, out)
    assert not list(out.parent.iterdir())


@every
def test_an_interrupt_leaves_nothing(name, make, out, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    checkpoint = make("second", norm=False)
    monkeypatch.setattr(destination, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ADAPTERS[name](checkpoint, out)
    assert not list(out.parent.iterdir())


@every
def test_a_chip_that_is_not_there(name, make, out):
    with pytest.raises(HardwareCheckpointError, match=r"no chip 9|chip=9"):
        ADAPTERS[name](make("second", norm=False), out, chip=9)
    assert not out.parent.exists() or not list(out.parent.iterdir())
