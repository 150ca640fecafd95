"""Modules that a model applies by themselves are digital and not among its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain

X = jnp.ones((2, 6))
HARDWARE = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1),
    input_range=hwtrain.InputRangeParameter(init_value=0.25),
)
OTHER = {"params": {"layer": {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}}}


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, name="layer")(x)


class Outer(nn.Module):
    inner: str

    @nn.compact
    def __call__(self, x):
        if self.inner == "layer":
            x = nn.Dense(6).apply({"params": OTHER["params"]["layer"]}, x)
        elif self.inner == "model":
            x = Inner().apply(OTHER, x)
        return nn.Dense(6, name="layer")(x)


@pytest.mark.sampled
@pytest.mark.parametrize("lift", [lambda cls: cls, nn.jit, nn.remat])
@pytest.mark.parametrize("inner", ["layer", "model"])
def test_a_module_that_is_applied_alone_is_no_layer_of_the_model(inner, lift):
    # It multiplies by one, so the model is the same without it.
    alone = hwtrain.analogize(lift(Outer)("nothing"), HARDWARE)
    model = hwtrain.analogize(lift(Outer)(inner), HARDWARE)
    variables = alone.init(jax.random.key(0), X)
    found = model.init(jax.random.key(0), X)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    assert hwtrain.plan(model, variables, X) == hwtrain.plan(alone, variables, X)
    rngs = {"mismatch": jax.random.key(1)}
    np.testing.assert_allclose(
        model.apply(variables, X, rngs=rngs),
        alone.apply(variables, X, rngs=rngs),
        atol=1e-6,
    )
    # A range of 0.25 would cut its inputs, all 1, and does cut those of the layer.
    params = variables["params"]["layer"]
    expected = jnp.full((2, 6), 0.25) @ params["kernel"] + params["bias"]
    clean = hwtrain.eval_mode(model).apply(variables, X)
    np.testing.assert_allclose(clean, expected, atol=1e-6)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(6, name="layer")(x), None


@pytest.mark.parametrize("lift", [lambda cls: cls, nn.jit, nn.remat])
def test_a_root_that_is_a_loop_over_layers_is_one_model(lift):
    stack = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    model = hwtrain.analogize(lift(stack)(), HARDWARE)
    variables = model.init(jax.random.key(0), X, None)
    assert variables["params"]["layer"]["input_range"].shape == (3, 1, 1)
    assert list(hwtrain.plan(model, variables, X, None)) == ["layer/kernel"]
    params, expected = variables["params"]["layer"], np.asarray(X)
    for kernel, bias in zip(params["kernel"], params["bias"]):
        expected = np.clip(expected, -0.25, 0.25) @ kernel + bias
    found, _ = hwtrain.eval_mode(model).apply(variables, X, None)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # In training too, all inputs beyond the range give the same output.
    rngs = {"mismatch": jax.random.key(1)}
    once, _ = model.apply(variables, X, None, rngs=rngs)
    larger, _ = model.apply(variables, 4 * X, None, rngs=rngs)
    np.testing.assert_array_equal(once, larger)


class Sharing(nn.Module):
    lift: str

    def setup(self):
        kinds = {
            "plain": nn.Dense,
            "jit": nn.jit(nn.Dense),
            "remat": nn.remat(nn.Dense),
        }
        self.inner = kinds[self.lift](4)
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return self.inner(x)


@pytest.mark.parametrize("lift", ["plain", "jit", "remat"])
def test_a_lifted_layer_in_the_scope_of_the_root_is_one_of_the_model(lift):
    model = hwtrain.analogize(Sharing(lift), HARDWARE)
    variables = model.init(jax.random.key(0), X)
    assert list(hwtrain.plan(model, variables, X)) == ["kernel"]
    rngs = {"mismatch": jax.random.key(1)}
    once = model.apply(variables, X, rngs=rngs)
    np.testing.assert_array_equal(once, model.apply(variables, 4 * X, rngs=rngs))
