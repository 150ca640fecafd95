"""A decorator around a class's `__init__` stays in effect after `analogize`."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import hwtrain as hw

X = jnp.ones((1, 3))
NOISE = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
CHIP = hw.Hardware(modifier=NOISE)


def registered(cls):
    """Remembers how an object was made, as libraries of configurations do."""
    plain = cls.__init__

    @functools.wraps(plain)
    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        object.__setattr__(self, "made_with", ",".join(kwargs))

    cls.__init__ = init
    return cls


@registered
class Net(nn.Module):
    features: int = 2

    @nn.compact
    def __call__(self, x):
        assert "features" in self.made_with
        return nn.Dense(self.features)(x)


@registered
class Twin(nnx.Module):
    def __init__(self, features, rngs):
        self.layer = nnx.Linear(3, features, rngs=rngs)

    def __call__(self, x):
        assert self.made_with == "features,rngs"
        return self.layer(x)


def test_linen_keeps_it():
    for mode in (hw.train_mode, hw.chip_mode, hw.eval_mode):
        analog = mode(hw.analogize(Net(features=4), CHIP))
        assert "features" in analog.made_with
        rngs = {"mismatch": jax.random.key(1)}
        variables = analog.init(jax.random.key(0), X)
        assert analog.apply(variables, X, rngs=rngs).shape == (1, 4)
        assert analog.clone(features=5).features == 5


def test_nnx_keeps_it():
    plain = Twin(features=4, rngs=nnx.Rngs(0))
    analog = hw.analogize(plain, CHIP, rngs=nnx.Rngs(mismatch=1))
    assert analog(X).shape == (1, 4)
