"""Mismatch drawn anew at every step, Linen and NNX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 3))


class Scaled(nn.Module):
    """A layer and a quantity that is held as a logarithm."""

    @nn.compact
    def __call__(self, x):
        log_gain = self.param("log_Itau_mem", nn.initializers.zeros, (4,))
        return nn.Dense(4, name="hidden")(x) * jnp.exp(log_gain)


class NnxScaled(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.log_Itau_mem = nnx.Param(jnp.zeros(4))

    def __call__(self, x):
        return self.hidden(x) * jnp.exp(self.log_Itau_mem[...])


class Pair:
    """The same model with the same parameters in both frameworks, as functions."""

    def __init__(self, pattern, deviation=0.3, stream="mismatch"):
        plain = Scaled()
        self.params = jax.jit(plain.init)(KEY, X)["params"]
        prototype = hw.select(self.params, pattern)
        self.linen = hw.with_mismatch(plain, prototype, deviation, stream=stream)
        self.stream = stream
        model = NnxScaled(nnx.Rngs(0))
        state = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(state, self.params)
        nnx.update(model, state)
        self.nnx = hw.with_mismatch(
            model,
            hw.select(model, pattern),
            deviation,
            stream=stream,
            rngs=nnx.Rngs(**{stream: 7}),
        )

    def outputs(self, framework, params, key):
        """Returns the outputs of one step, of the mean square as a loss."""
        if framework == "linen":
            # The NNX stream folds its count into its key.
            rngs = {self.stream: jax.random.fold_in(key, 0)}
            return self.linen.apply({"params": params}, X, rngs=rngs)
        graphdef, state, rest = nnx.split(self.nnx, nnx.Param, ...)
        nnx.replace_by_pure_dict(state, params)
        model = nnx.merge(graphdef, state, rest)
        model.analog_stream = nnx.RngStream(key, tag=self.stream)
        return model(X)

    def loss(self, framework, params, key):
        return jnp.mean(self.outputs(framework, params, key) ** 2)


def plain_loss(params):
    return jnp.mean(Scaled().apply({"params": params}, X) ** 2)


@pytest.mark.sampled
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize("pattern", ["hidden/kernel", "log_Itau_mem", ".*"])
def test_loss_and_gradient_differ_with_and_without(framework, pattern):
    pair = Pair(pattern)
    value, gradient = jax.value_and_grad(
        lambda params: pair.loss(framework, params, KEY)
    )(pair.params)
    plain, plain_gradient = jax.value_and_grad(plain_loss)(pair.params)
    assert abs(value / plain - 1) > 0.01
    for mine, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient)):
        assert (jnp.abs(mine - other) > 1e-3 * jnp.abs(other).max()).any()
    again = pair.loss(framework, pair.params, jax.random.key(1))
    assert again != value


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_the_gradient_is_that_of_the_loss_at_the_deviated_parameters(framework):
    pair = Pair("hidden/kernel")
    eye = jnp.eye(3)
    drawn = pair.linen.apply(
        {"params": pair.params}, eye, rngs={"mismatch": jax.random.fold_in(KEY, 0)}
    )
    hidden = {**pair.params["hidden"], "kernel": drawn - pair.params["hidden"]["bias"]}
    expected = jax.grad(plain_loss)({**pair.params, "hidden": hidden})
    found = jax.grad(lambda params: pair.loss(framework, params, KEY))(pair.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def test_linen_and_nnx_draw_the_same():
    pair = Pair(".*")
    one, other = (pair.outputs(f, pair.params, KEY) for f in ("linen", "nnx"))
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_draws_have_the_stated_deviation(framework):
    pair = Pair(".*", deviation={"hidden/.*": 0.6, "log_Itau_mem": 0.15})

    @jax.jit
    @jax.vmap
    def draws(key):
        params = {"hidden": {"kernel": jnp.zeros((3, 4)), "bias": jnp.ones(4)}}
        params["log_Itau_mem"] = jnp.full(4, 0.5)
        return pair.outputs(framework, params, key)[0]

    count = 10_000
    out = np.log(np.abs(draws(jax.random.split(KEY, count)))) - 0.5
    # The median is that of both factors, 1: half of the draws are below.
    assert abs((out < 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(out.size)
    # Var[log(1 + s x) + t y] to fourth order of s = 0.2, with t = 0.05.
    expected = math.sqrt(0.2**2 + 2.5 * 0.2**4 + 0.05**2)
    assert abs(out.std() / expected - 1) < 0.05


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_thousand_steps_do_not_compound_it(framework):
    # At learning rate zero nothing may move; with the reference's loop, which deviates
    # the deviated, the spread would be sqrt(1000) x 10 %.
    pair = Pair("hidden/kernel")
    optimizer = optax.sgd(0.0)

    @jax.jit
    def run(params, keys):
        def step(carry, key):
            params, state = carry
            loss, gradient = jax.value_and_grad(
                lambda params: pair.loss(framework, params, key)
            )(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), keys)

    (params, _), losses = run(pair.params, jax.random.split(KEY, 1000))
    jax.tree.map(np.testing.assert_array_equal, params, pair.params)
    early, late = losses[:500], losses[500:]
    error = math.sqrt((early.var() + late.var()) / 500)
    assert abs(early.mean() - late.mean()) < 5 * error
    assert losses.std() > 0.01 * plain_loss(pair.params)
    assert abs(late.std() / early.std() - 1) < 0.5


def test_stateful_nnx_calls_draw_anew_and_leave_the_parameters():
    pair = Pair(".*")
    before = nnx.to_pure_dict(nnx.state(pair.nnx, nnx.Param))
    first, second = pair.nnx(X), pair.nnx(X)
    assert (first != second).all()
    after = nnx.to_pure_dict(nnx.state(pair.nnx, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_modes_streams_and_inspect():
    pair = Pair("hidden/kernel", stream="silicon")
    variables = {"params": pair.params}
    plain = Scaled().apply(variables, X)
    for mode in (hw.eval_mode, hw.chip_mode):
        np.testing.assert_array_equal(mode(pair.linen).apply(variables, X), plain)
        np.testing.assert_allclose(mode(pair.nnx)(X), plain, rtol=1e-6)
    hw.train_mode(pair.nnx)
    for model, arguments in ((pair.linen, (variables, X)), (pair.nnx, ())):
        found = hw.inspect(model, *arguments)
        assert [row["weight"] for row in found.rows] == ["hidden/kernel"]
        assert found.rows[0]["weight noise"] == "mult_normal 0.1 (train)"
    with pytest.raises(ValueError, match='no rng stream "silicon"'):
        pair.linen.apply(variables, X, rngs={"mismatch": KEY})


def test_the_export_holds_the_nominal_parameters_and_the_mismatch(tmp_path):
    pair = Pair("hidden/kernel|log_Itau_mem")
    plan = hw.plan(pair.linen, {"params": pair.params}, X)
    assert hw.plan(pair.nnx).weights == plan.weights
    hw.export(tmp_path / "out", {"params": pair.params}, plan)
    checkpoint = hw.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, pair.params)
    modifiers = {w.path: w.hardware.modifier for w in checkpoint.plan.weights}
    assert modifiers["hidden/kernel"].type == "mult_normal"
    assert modifiers["log_Itau_mem"].type == "add_normal"
    for modifier in modifiers.values():
        assert modifier.std_dev == pytest.approx(0.1)


def test_bad_models():
    prototype = {"hidden": {"kernel": True, "bias": False}, "log_Itau_mem": False}
    model = hw.with_mismatch(Scaled(), prototype)
    with pytest.raises(ValueError, match="is analog already"):
        hw.with_mismatch(model, prototype)
    with pytest.raises(ValueError, match="takes a flax.linen.Module"):
        hw.with_mismatch(lambda x: x, prototype)
    with pytest.raises(ValueError, match="is for NNX"):
        hw.with_mismatch(Scaled(), prototype, rngs=nnx.Rngs(mismatch=0))
    with pytest.raises(ValueError, match='a stream "mismatch"'):
        hw.with_mismatch(NnxScaled(nnx.Rngs(0)), prototype, rngs=nnx.Rngs(params=0))
    missing = hw.with_mismatch(Scaled(), {"output": True})
    with pytest.raises(ValueError, match="'output'.*matches no parameter"):
        missing.init(KEY, X)
