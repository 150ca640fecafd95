"""Learned output scales, in Linen and NNX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax.functional import as_function

ROWS, COLUMNS = 6, 4
X = jax.random.normal(jax.random.key(5), (7, ROWS))
COLUMNWISE = hw.MappingParameter(
    max_input_size=3,
    max_output_size=3,
    learn_out_scaling=True,
    out_scaling_columnwise=True,
)
PER_TILE = dataclasses.replace(COLUMNWISE, out_scaling_columnwise=False)
FORWARD = {
    "ideal": hw.Hardware(mapping=COLUMNWISE),
    "per tile": hw.Hardware(mapping=PER_TILE),
    "one tile": hw.Hardware(mapping=hw.MappingParameter(learn_out_scaling=True)),
    "ranged": hw.Hardware(
        mapping=COLUMNWISE, input_range=hw.InputRangeParameter(init_value=1.0)
    ),
    "converters": hw.Hardware(
        mapping=COLUMNWISE, forward=hw.IOParameters(inp_bits=4, out_bound=0.5)
    ),
    "converters per tile": hw.Hardware(
        mapping=PER_TILE, forward=hw.IOParameters(inp_bits=4, out_bound=0.5)
    ),
}


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(COLUMNS, name="a")(x)


class NnxLayer(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(ROWS, COLUMNS, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.a(x)


@functools.cache
def model(framework, hardware):
    """Returns the analog model, its variables, and its plan."""
    if framework == "linen":
        analog = hw.analogize(LinenLayer(), hardware)
        plain = jax.jit(LinenLayer().init)(jax.random.key(0), X)
        variables = hw.adopt(analog, plain, X)
        return analog, variables, hw.plan(analog, variables, X)
    analog = hw.analogize(NnxLayer(), hardware, rngs=nnx.Rngs(mismatch=0))
    return analog, None, hw.plan(analog)


@pytest.mark.sampled
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize("name", FORWARD)
def test_each_row_of_tiles_is_multiplied_before_the_bias(framework, name):
    analog, variables, plan = model(framework, FORWARD[name])
    function, tree = as_function(analog, "train", variables)
    call = jax.jit(lambda p: function({**tree, "params": p}, jax.random.key(0), X))
    params = tree["params"]
    scale = params["a"]["output_scale"]
    np.testing.assert_array_equal(scale, 1)
    gamma = 1 + 0.5 * jax.random.normal(jax.random.key(1), scale.shape)
    changed = {"a": {**params["a"], "output_scale": gamma}}

    # What one row tile gives: the others' scales at zero.
    parts = []
    for row in range(scale.shape[0]):
        only = {**params["a"], "output_scale": jnp.zeros_like(scale).at[row].set(1)}
        parts.append(call({"a": only}) - params["a"]["bias"])
    wanted = sum(part * g for part, g in zip(parts, gamma)) + params["a"]["bias"]
    np.testing.assert_allclose(call(changed), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        call(params), sum(parts) + params["a"]["bias"], rtol=1e-5, atol=1e-5
    )
    # The gradient is that of this product.
    d = jax.random.normal(jax.random.key(2), (7, COLUMNS))
    gradient = jax.grad(lambda p: jnp.sum(call(p) * d))(changed)["a"]["output_scale"]
    each = np.stack([np.sum(part * d, 0) for part in parts])
    if scale.shape[-1] == 1:
        each = each.sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_the_base_optimiser_trains_it(framework):
    analog, variables, plan = model(framework, FORWARD["ranged"])
    function, tree = as_function(analog, "train", variables)
    params = tree["params"]
    gradient = jax.grad(
        lambda p: function({**tree, "params": p}, jax.random.key(0), X).sum()
    )(params)
    tx = hw.optim.hardware_aware(optax.sgd(0.1), plan)
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(
        updates["a"]["output_scale"], -0.1 * gradient["a"]["output_scale"], rtol=1e-6
    )
    assert np.abs(updates["a"]["output_scale"]).max() > 0
    without = {"a": {k: v for k, v in params["a"].items() if k != "output_scale"}}
    with pytest.raises(ValueError, match="no 'a/output_scale'.*hwtrain.adopt"):
        tx.init(without)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_strip_makes_it_part_of_the_kernel(framework):
    analog, variables, plan = model(framework, FORWARD["ideal"])
    function, tree = as_function(analog, "eval", variables)
    layer = tree["params"]["a"]
    gamma = 1 + 0.5 * jax.random.normal(jax.random.key(1), (2, COLUMNS))
    params = {"a": {**layer, "output_scale": gamma}}
    with pytest.raises(ValueError, match=r"a/output_scale.*strip\(params, plan\)"):
        hw.strip(params)
    plain = hw.strip(params, plan)
    assert sorted(plain["a"]) == ["bias", "kernel"]
    np.testing.assert_allclose(
        LinenLayer().apply({"params": plain}, X),
        function({**tree, "params": params}, jax.random.key(0), X),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_missing_output_scale_points_to_adopt():
    analog, variables, _ = model("linen", FORWARD["ideal"])
    plain = jax.jit(LinenLayer().init)(jax.random.key(0), X)
    with pytest.raises(ValueError, match="no 'output_scale'.*hwtrain.adopt"):
        analog.apply(plain, X)


def test_each_layer_of_a_stack_has_its_own():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(ROWS, use_bias=False)(x), None

    layers = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
    analog = hw.analogize(layers, FORWARD["ideal"])
    params = jax.jit(analog.init)(jax.random.key(0), X, None)["params"]["Dense_0"]
    assert params["output_scale"].shape == (2, 2, ROWS)
    gamma = jax.random.normal(jax.random.key(1), (2, 2, ROWS))
    given = {"params": {"Dense_0": {**params, "output_scale": gamma}}}
    wanted = np.asarray(X)
    for kernel, g in zip(np.asarray(params["kernel"]), np.asarray(gamma)):
        halves = np.split(wanted, 2, 1), np.split(kernel, 2)
        wanted = sum(x @ w * each for x, w, each in zip(*halves, g))
    np.testing.assert_allclose(
        analog.apply(given, X, None)[0], wanted, rtol=1e-5, atol=1e-5
    )


def test_it_is_inspected_and_exported(tmp_path):
    converter = hw.SinglePairConductanceConverter(g_max=25.0)
    chip = dataclasses.replace(FORWARD["ideal"], converter=converter)
    analog, variables, plan = model("linen", chip)
    row = hw.inspect(analog, variables, X).rows[0]
    assert row["output scale"] == "learned per column"
    gamma = 1 + jax.random.normal(jax.random.key(1), (2, COLUMNS))
    params = {"a": {**variables["params"]["a"], "output_scale": gamma}}
    checkpoint = hw.load(hw.export(tmp_path / "chip", {"params": params}, plan))
    np.testing.assert_array_equal(checkpoint.params["a"]["output_scale"], gamma)
    assert checkpoint.plan == plan
    layer = checkpoint.manifest.layers[0]
    assert layer.beside["output_scale"] == "nominal/params/a/output_scale"
    assert "output_scale" in checkpoint.manifest.rules


def test_what_does_nothing_is_an_error():
    with pytest.raises(ValueError, match="without learn_out_scaling=True"):
        hw.MappingParameter(out_scaling_columnwise=True)
    rule = hw.Rule(params="a/kernel", hardware=FORWARD["ideal"])
    analog = hw.analogize(LinenLayer(), rule)
    with pytest.raises(ValueError, match="learn_out_scaling.*only a layer can have"):
        analog.init(jax.random.key(0), X)
