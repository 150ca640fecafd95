"""Bridges between the frameworks, and raw parameters below the root module."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain import Rule

NOISY = hw.Hardware(modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1))
X = jax.random.normal(jax.random.key(0), (3, 4))
STREAM = {"mismatch": jax.random.key(1)}


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="b")(nn.Dense(4, name="a")(x))


class NnxOuter(nnx.Module):
    def __init__(self, inner):
        self.own = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        rngs = nnx.Rngs(0, mismatch=1)
        self.inner = nnx.bridge.ToNNX(inner, rngs=rngs).lazy_init(X)

    def __call__(self, x):
        return self.inner(self.own(x))


class LinenOuter(nn.Module):
    @nn.compact
    def __call__(self, x):
        inner = nnx.bridge.to_linen(nnx.Linear, 4, 4, name="inner")
        return inner(nn.Dense(4, name="own")(x))


def analog_nnx(model, rules):
    return hw.analogize(model, rules, rngs=nnx.Rngs(mismatch=0))


@pytest.mark.parametrize("rules", [NOISY, Rule(".*", NOISY), Rule("inner.*", NOISY)])
def test_what_a_bridge_hides_is_an_error_where_it_is_to_be_analog(rules):
    with pytest.raises(ValueError, match=r"inner \(ToNNX\).*LinenMLP.*before the br"):
        analog_nnx(NnxOuter(LinenMLP()), rules)
    analog = hw.analogize(LinenOuter(), rules)
    with pytest.raises(ValueError, match=r"inner \(ToLinen\).*Linear.*before the br"):
        analog.init(jax.random.key(0), X)


def test_what_a_bridge_hides_may_stay_digital_by_a_rule():
    rules = [Rule("inner", None), Rule(".*", NOISY)]
    model = analog_nnx(NnxOuter(LinenMLP()), rules)
    assert list(hw.plan(model)) == ["own/kernel"]
    assert jnp.abs(model(X) - model(X)).max() > 1e-3


def test_raw_parameters_behind_a_bridge_get_the_weight_side():
    rules = [
        Rule(params="inner/.*/kernel", rows=0, columns=1, hardware=NOISY),
        Rule("own", NOISY),
    ]
    model = analog_nnx(NnxOuter(LinenMLP()), rules)
    assert set(hw.plan(model)) == {"inner/a/kernel", "inner/b/kernel", "own/kernel"}


def test_an_analog_model_goes_through_a_bridge():
    model = NnxOuter(hw.analogize(LinenMLP(), NOISY))
    first, second = model(X), model(X)
    assert jnp.abs(first - second).max() > 1e-3
    both = analog_nnx(model, NOISY)
    assert list(hw.plan(both)) == ["own/kernel"]


class Holder(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones((4, 4)))

    def __call__(self, x):
        return x @ self.w[...]


class Owner(nnx.Module):
    def __init__(self):
        self.holder = Holder()

    def __call__(self, x):
        return self.holder(x)


def test_a_raw_parameter_called_around_its_model_is_an_error():
    rule = Rule(params="holder/w", rows=0, columns=1, hardware=NOISY)
    model = analog_nnx(Owner(), rule)
    assert jnp.abs(model(X) - model(X)).max() > 1e-3
    with pytest.raises(ValueError, match="holder was called without its analog model"):
        model.holder(X)
    assert jnp.abs(nnx.jit(lambda m: m(X))(model) - model(X)).max() > 1e-3
    # In eval mode there is no noise to miss. The class survives pickling.
    copy = hw.eval_mode(pickle.loads(pickle.dumps(model)))
    np.testing.assert_allclose(copy.holder(X), X @ jnp.ones((4, 4)), rtol=1e-6)
    assert isinstance(copy.holder, Holder)
    hw.train_mode(copy)
    with pytest.raises(ValueError, match="without its analog model"):
        copy.holder(X)
