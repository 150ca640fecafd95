"""Leaves of other hardware and incomplete models are refused at every entry point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax.inspection import inspect_plan
from hwtrain.checkpoint import HardwareCheckpointError, HardwareSave, load

X = jnp.ones((1, 6))
HARDWARE = hw.Hardware(
    mapping=hw.MappingParameter(
        max_input_size=4,
        max_output_size=2,
        learn_out_scaling=True,
        out_scaling_columnwise=True,
    ),
    input_range=hw.InputRangeParameter(),
    converter=hw.SinglePairConductanceConverter(),
)
LEARNED = hw.Hardware(clip=hw.WeightClipParameter(type="learnable_per_channel"))
FIXED = hw.Hardware(clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0))
# [row tiles, column tiles] and so on of a kernel of 6 inputs and 3 outputs.
SHAPES = {
    "input_range": (HARDWARE, "(2, 2)"),
    "output_scale": (HARDWARE, "(2, 3)"),
    "clip_bound": (LEARNED, "(1, 3)"),
    "mapping_scale": (FIXED, "(1, 1) or (1, 3)"),
}


def model_of(hardware):
    analog = hw.analogize(nn.Dense(3), hardware)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    return variables["params"], hw.plan(analog, variables, X)


@pytest.mark.sampled
@pytest.mark.parametrize("shape", [(), (5,), (1, 4), (2, 2, 1)])
@pytest.mark.parametrize("name", SHAPES)
def test_a_leaf_of_another_shape(tmp_path, name, shape):
    hardware, expected = SHAPES[name]
    params, plan = model_of(hardware)
    params = {**params, name: jnp.ones(shape)}
    expected = expected.replace("(", r"\(").replace(")", r"\)")
    found = str(shape).replace("(", r"\(").replace(")", r"\)")
    match = f"^{name} has the shape {found}, the hardware of kernel asks for {expected}"
    with pytest.raises(HardwareCheckpointError, match=match):
        hw.export(tmp_path / "model", params, plan)
    with pytest.raises(ValueError, match=match):
        inspect_plan(plan, params)


@pytest.mark.parametrize("name", SHAPES)
def test_a_leaf_that_is_missing(tmp_path, name):
    params, plan = model_of(SHAPES[name][0])
    del params[name]
    with pytest.raises(HardwareCheckpointError, match=f"^{name} is missing.*adopt"):
        hw.export(tmp_path / "model", params, plan)


@pytest.mark.parametrize("name", SHAPES)
def test_a_leaf_that_the_hardware_does_not_have(tmp_path, name):
    params, plan = model_of(hw.Hardware())
    with pytest.raises(HardwareCheckpointError, match=f"^{name} does nothing.*strip"):
        hw.export(tmp_path / "model", {**params, name: jnp.ones((1, 1))}, plan)


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf])
def test_a_range_that_no_hardware_has(tmp_path, value):
    params, plan = model_of(HARDWARE)
    params["input_range"] = params["input_range"].at[1, 0].set(value)
    match = rf"input_range: .* positive and finite, the one at \(1, 0\) is {value:g}"
    with pytest.raises(HardwareCheckpointError, match=match):
        hw.export(tmp_path / "model", params, plan)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(3, name="head")(x)
        self.sow("said", "y", y)
        return nn.BatchNorm(use_running_average=True, name="norm")(y)


def test_a_linen_model_without_its_statistics(tmp_path):
    analog = hw.analogize(Normed(), HARDWARE)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    # The state leaves out sown values and caches, which a call makes anew.
    passing = {"said": {"y": (X,)}, "cache": {"index": X}}
    plan = hw.plan(analog, {**variables, **passing}, X)
    assert plan.state == ("batch_stats/norm/mean", "batch_stats/norm/var")
    params = {"params": variables["params"]}
    match = "have no batch_stats/norm/mean, batch_stats/norm/var: .*'batch_stats': "
    with pytest.raises(HardwareCheckpointError, match=match):
        hw.export(tmp_path / "model", params, plan)
    with pytest.raises(HardwareCheckpointError, match=match):
        HardwareSave(params, plan)
    whole = {**params, "batch_stats": variables["batch_stats"]}
    found = load(hw.export(tmp_path / "model", whole, plan))
    assert found.plan == plan
    analog.apply(found.variables, X, rngs={"mismatch": jax.random.key(0)})
    # A plan made without the statistics allows an export without them.
    hw.export(tmp_path / "without", params, hw.plan(analog, params, X))


def test_an_nnx_model_without_its_statistics(tmp_path):
    rngs = nnx.Rngs(0, mismatch=1)
    layers = [nnx.Linear(6, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)]
    layers.append(nnx.Dropout(0.5, rngs=rngs))
    analog = hw.analogize(nnx.Sequential(*layers), HARDWARE, rngs=rngs)
    plan = hw.plan(analog)
    assert plan.state == ("layers/1/mean", "layers/1/var")
    match = "have no layers/1/mean, layers/1/var"
    with pytest.raises(HardwareCheckpointError, match=match):
        hw.export(tmp_path / "model", nnx.state(analog, nnx.Param), plan)
    assert load(hw.export(tmp_path / "model", nnx.state(analog), plan)).plan == plan
    split = {
        "params": nnx.to_pure_dict(nnx.state(analog, nnx.Param)),
        "batch_stats": nnx.to_pure_dict(nnx.state(analog, nnx.BatchStat)),
    }
    assert load(hw.export(tmp_path / "split", split, plan)).plan == plan


def test_a_parameter_that_the_plan_names(tmp_path):
    params, plan = model_of(HARDWARE)
    del params["bias"]
    with pytest.raises(HardwareCheckpointError, match="the plan names bias, which"):
        hw.export(tmp_path / "model", params, plan)


def test_the_state_of_a_model_inside_another():
    """Its plan has the paths of the surrounding variables, and so has a union."""
    inner = hw.analogize(Normed(), HARDWARE, name="encoder")
    variables = jax.jit(inner.init)(jax.random.key(0), X)
    plan = hw.plan(inner, variables, X)
    expected = tuple(f"batch_stats/encoder/norm/{name}" for name in ("mean", "var"))
    assert plan.state == expected
    outer = hw.plan(hw.analogize(Normed(), HARDWARE), variables, X)
    assert (plan | outer | plan).state == (*expected, *outer.state)
