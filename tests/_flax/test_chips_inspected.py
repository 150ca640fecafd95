"""`inspect` on a chip's weights, and the graph of a model with a prefix."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.checkpoint import trace_graph

MISMATCH = hw.MismatchParameter(type="add_normal", std_dev=0.3)
STORED = hw.WeightClipParameter(type="fixed_value", fixed_value=1.0)
MAPPING = hw.MappingParameter(weight_scaling_omega=1.0)
PARTS = {
    "mapping_scale": {"forward": hw.IOParameters(inp_bits=8), "mapping": MAPPING},
    "chip_key": {"forward": hw.IOParameters(v_offset_std=0.1)},
    "on_levels": {
        "modifier": hw.WeightModifierParameter(
            type="discretize", res=0.1, enable_during_test=True
        ),
        "clip": STORED,
        "mapping": MAPPING,
    },
}
X = jnp.ones((2, 6))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="b")(nn.relu(nn.Dense(4, name="a")(x)))


class OfNnx(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(4, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))


def linen(hardware, name=None):
    analog = hw.analogize(Linen(), hardware, name=name)
    params = analog.init(jax.random.key(0), X)["params"]
    return analog, params, hw.plan(analog, params, X)


def of_nnx(hardware, name=None):
    rngs = nnx.Rngs(mismatch=0)
    analog = hw.analogize(OfNnx(), hardware, rngs=rngs, name=name)
    return analog, nnx.to_pure_dict(nnx.state(analog, nnx.Param)), hw.plan(analog)


@pytest.mark.sampled
@pytest.mark.parametrize("source", ["apply_mismatch", "load"])
@pytest.mark.parametrize("leaf", PARTS)
@pytest.mark.parametrize("model", [linen, of_nnx])
def test_inspect_says_that_weights_are_a_chips(model, leaf, source, tmp_path):
    analog, params, plan = model(hw.Hardware(mismatch=MISMATCH, **PARTS[leaf]))
    example = (X,) if model is linen else ()
    nominal = hw.inspect(analog, *([params] if example else []), *example)
    assert "chip's weights" not in nominal.note
    if source == "load":
        hw.export(tmp_path / "chip", {"params": params}, plan, chip_seed=0)
        loaded = hw.load(tmp_path / "chip")
        chip = loaded.chip(0)
        filled = None if model is linen else loaded.into(analog, chip=0)
    else:
        chip = hw.apply_mismatch(params, plan, hw.chip_key(0))
        filled = analog
        if model is of_nnx:
            nnx.update(analog, chip)
    assert leaf in chip["a"]
    found = hw.inspect(analog, chip, X) if model is linen else hw.inspect(filled)
    assert "These are a chip's weights, not nominal ones: a/" in found.note
    assert [row["weight"] for row in found.rows] == ["a/kernel", "b/kernel"]
    assert found.digital == nominal.digital
    assert found.totals == nominal.totals


@pytest.mark.parametrize("model", [linen, of_nnx])
def test_a_graph_has_the_paths_of_the_plan(model, tmp_path):
    analog, params, plan = model(hw.Hardware(mismatch=MISMATCH), "inner")
    variables = {"params": params} if model is linen else None
    graph = trace_graph(analog, variables, X)
    edges = [("input", "inner/a"), ("inner/a", "relu"), ("relu", "inner/b")]
    assert {*graph.edges} == {*edges, ("inner/b", "output")}
    assert {weight.layer_path for weight in plan.weights} <= graph.nodes.keys()


def test_a_graph_leaves_out_what_is_applied_inside():
    teacher = nn.Dense(6)
    held = teacher.init(jax.random.key(7), X)

    class Taught(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="a")(teacher.apply(held, x))

    params = Taught().init(jax.random.key(0), X)
    graph = trace_graph(Taught(), params, X)
    assert [name for name, kind in graph.nodes.items() if kind == "layer"] == ["a"]
