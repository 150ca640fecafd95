"""Layers in functions with custom derivatives count as one call however JAX runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

X = jax.random.normal(jax.random.key(7), (4, 8))
NOISY = hw.Hardware(forward=hw.IOParameters(out_noise=0.1))
RANGED = hw.Hardware(forward=hw.IOParameters(inp_bits=3, out_bits=3, out_bound=4.0))


def of_vjp(call):
    function = jax.custom_vjp(call)
    function.defvjp(
        lambda x: (call(x), x), lambda x, g: (jnp.clip(g, -1, 1) * jnp.cos(x),)
    )
    return function


def of_jvp(call):
    function = jax.custom_jvp(call)
    function.defjvp(lambda x, t: (function(*x), jnp.cos(x[0]) * t[0]))
    return function


def again(call):
    """As `jax.checkpoint`, by hand: the backward rule calls the layer again."""
    function = jax.custom_vjp(call)
    function.defvjp(lambda x: (call(x), x), lambda x, g: jax.vjp(call, x)[1](g))
    return function


KINDS = {"vjp": of_vjp, "jvp": of_jvp}
BACKWARD = {**KINDS, "again": again}


def clipped(module, x):
    """Calls a module with clipped gradients, by Flax's own transformation."""

    def backward(vjp, g):
        return vjp(jnp.clip(g, -0.1, 0.1))

    call = lambda module, x: module(x)  # noqa: E731
    forward = lambda module, x: nn.vjp(call, module, x)  # noqa: E731
    return nn.custom_vjp(call, forward, backward)(module, x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(clipped(nn.Dense(8, name="layer"), x))


class Model(nn.Module):
    kind: str
    remat: bool

    @nn.compact
    def __call__(self, x):
        if self.kind == "flax":
            return (nn.remat(Block) if self.remat else Block)(name="block")(x)
        layer = nn.Dense(8, name="layer")
        if self.is_initializing():
            return layer(x)

        def block(x):
            return jnp.tanh(BACKWARD[self.kind](lambda x: layer(x))(x)) + layer(x)

        return (jax.checkpoint(block) if self.remat else block)(x)


class NnxModel(nnx.Module):
    def __init__(self, kind, remat):
        self.layer = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        self.kind, self.remat = kind, remat

    def __call__(self, x):
        def block(x):
            return jnp.tanh(
                BACKWARD[self.kind](lambda x: self.layer(x))(x)
            ) + self.layer(x)

        return (jax.checkpoint(block) if self.remat else block)(x)


def linen(kind, remat, chip=NOISY):
    model = hw.analogize(Model(kind, remat), chip)
    variables = model.init(jax.random.key(0), X)
    return lambda x: model.apply(variables, x, rngs={"mismatch": jax.random.key(1)})


def of_nnx(kind, remat, chip=NOISY):
    analog = hw.analogize(NnxModel(kind, remat), chip, rngs=nnx.Rngs(mismatch=1))
    return lambda x: nnx.clone(analog)(x)


CASES = [(linen, kind) for kind in (*KINDS, "flax")]
CASES += [(of_nnx, kind) for kind in KINDS]


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_values_and_gradients_are_those_of_one_call(make, kind):
    found = {}
    for remat in (False, True):
        call = make(kind, remat)
        value = jax.jit(call)(X)
        under, gradient = jax.jit(
            jax.value_and_grad(lambda x, call=call: (call(x) ** 2).sum())
        )(X)
        np.testing.assert_allclose((value**2).sum(), under, rtol=1e-6)
        found[remat] = gradient
    np.testing.assert_allclose(
        found[True], found[False], atol=2e-6 * np.abs(found[False]).max()
    )


@pytest.mark.parametrize("chip", [NOISY, RANGED], ids=["noise", "no noise"])
@pytest.mark.parametrize(("make", "kind"), CASES)
def test_a_rule_after_its_model_has_returned_is_refused_or_right(make, kind, chip):
    call = make(kind, remat=False, chip=chip)
    loss = lambda x: (call(x) ** 2).sum()  # noqa: E731
    expected = jax.jit(jax.grad(loss))(X)
    if make is of_nnx and chip is RANGED:  # its layers are analog by themselves
        np.testing.assert_allclose(jax.grad(jax.jit(loss))(X), expected, rtol=1e-5)
        return
    with pytest.raises(ValueError, match="after its model has returned"):
        jax.grad(jax.jit(loss))(X)


@pytest.mark.parametrize("make", [linen, of_nnx])
def test_a_backward_rule_that_calls_a_layer_is_refused(make):
    # It runs when the model has returned, wherever the gradient is taken.
    call = make("again", remat=False)
    with pytest.raises(ValueError, match="layer.*: its noise is drawn after its model"):
        jax.jit(jax.grad(lambda x: (call(x) ** 2).sum()))(X)


def test_a_rule_without_layers_may_run_at_any_time():
    class Activated(nn.Module):
        @nn.compact
        def __call__(self, x):
            return of_vjp(jnp.tanh)(nn.relu(nn.Dense(8)(x)))

    model = hw.analogize(Activated(), NOISY)
    variables = model.init(jax.random.key(0), X)

    def loss(x):
        rngs = {"mismatch": jax.random.key(1)}
        return (model.apply(variables, x, rngs=rngs) ** 2).sum()

    np.testing.assert_allclose(
        jax.grad(jax.jit(loss))(X), jax.jit(jax.grad(loss))(X), rtol=1e-5
    )
