"""Kernels that something between store and use computes anew are refused by name."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain

HARDWARE = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1)
)
X = jnp.ones((2, 6))
NORMS = ("WeightNorm", "SpectralNorm")


class Linen(nn.Module):
    norm: str

    @nn.compact
    def __call__(self, x):
        more = {"update_stats": False} if self.norm == "SpectralNorm" else {}
        x = getattr(nn, self.norm)(nn.Dense(4, name="inner"), name="norm")(x, **more)
        return nn.Dense(3, name="head")(x)


class OfNnx(nnx.Module):
    def __init__(self, norm, rngs):
        self.norm = getattr(nnx, norm)(nnx.Linear(6, 4, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x))


def analog(framework, norm, hardware):
    if framework == "linen":
        model = hwtrain.analogize(Linen(norm), hardware)
        variables = model.init(jax.random.key(0), X)
        return hwtrain.plan(model, variables, X)
    rngs = nnx.Rngs(0, mismatch=1)
    return hwtrain.plan(hwtrain.analogize(OfNnx(norm, rngs), hardware, rngs=rngs))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_kernel_that_is_normalised_at_each_call_is_refused(framework, norm):
    with pytest.raises(ValueError, match=f"not what its layer multiplies by: a {norm}"):
        analog(framework, norm, HARDWARE)
    # The way out that the message names.
    inner = "inner" if framework == "linen" else "norm/layer_instance"
    rules = [hwtrain.Rule(inner, None), hwtrain.Rule(".*", HARDWARE)]
    plan = analog(framework, norm, rules)
    assert list(plan) == ["head/kernel"]
