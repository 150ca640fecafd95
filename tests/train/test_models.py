"""Models that the training loop supports, with dropout, statistics and own calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx

import hwtrain as hw
from hwtrain.train import _linen as linen
from hwtrain.train import _nnx as nnx
from hwtrain.train._entries import EntryError, named

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
BATCH = (X, np.zeros(4, np.int32))
FRONTENDS = {"linen": linen, "nnx": nnx}


class Net(nn.Module):
    """Statistics and dropout, told by an argument whether to train."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dense(64)(x) + 10.0
        return nn.Dropout(0.5, deterministic=not train)(x)


class NnxNet(flax_nnx.Module):
    """The same, told by attributes."""

    def __init__(self, rngs):
        self.norm = flax_nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.layer = flax_nnx.Linear(6, 64, rngs=rngs)
        self.dropout = flax_nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.layer(self.norm(x)) + 10.0)


class Quiet(nn.Module):
    """Dropout that acts where there is a stream for it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(64)(x) + 10.0
        return nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x)


class Always(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x))


class Free(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None, *args, **kwargs):
        return nn.Dense(3)(x)


class Sampled(nn.Module):
    """Draws from a stream of its own in training."""

    @nn.compact
    def __call__(self, x, train):
        y = nn.Dense(3)(x)
        return y + jax.random.normal(self.make_rng("sampling"), y.shape) if train else y


class Encoder(nn.Module):
    def setup(self):
        self.layer = nn.Dense(3)

    def encode(self, x, scale=1.0):
        return scale * self.layer(x)


class NnxEncoder(flax_nnx.Module):
    def __init__(self, rngs):
        self.layer = flax_nnx.Linear(6, 3, rngs=rngs)

    def encode(self, x, scale=1.0):
        return scale * self.layer(x)


MODELS = {"linen": (linen, Net), "nnx": (nnx, NnxNet)}
CHIP = hw.Hardware(mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.0))


def both(framework):
    """The model without and with hardware, and how it is called."""
    frontend, factory = MODELS[framework]
    forward = frontend.default_forward(factory)
    aware, _ = frontend.hardware_aware(factory, CHIP, forward, BATCH)
    return {"plain": frontend.plain(factory, forward, BATCH), "aware": aware}, forward


@pytest.mark.parametrize("framework", MODELS)
@pytest.mark.parametrize("which", ["plain", "aware"])
def test_statistics_follow_the_batches_of_training(framework, which):
    model = both(framework)[0][which]
    params, state = model.init(0)
    _, after = model.apply(params, state, BATCH, jax.random.key(0))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(after)]
    mean, var = sorted(leaves, key=lambda leaf: leaf.mean())
    np.testing.assert_allclose(mean, 0.1 * X.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, 0.9 + 0.1 * X.var(0), rtol=1e-5)


@pytest.mark.parametrize("framework", MODELS)
def test_an_evaluation_uses_them_and_draws_nothing(framework):
    model = both(framework)[0]["plain"]
    params, state = model.init(0)
    _, state = model.apply(params, state, BATCH, jax.random.key(0))
    (kernel,) = (x for x in jax.tree.leaves(params) if x.shape == (6, 64))
    normed = (X - 0.1 * X.mean(0)) / np.sqrt(0.9 + 0.1 * X.var(0) + 1e-5)
    found = model.evaluate(params, state, BATCH)
    np.testing.assert_allclose(found, normed @ kernel + 10.0, rtol=1e-4)


@pytest.mark.parametrize("framework", MODELS)
def test_dropout_acts_in_training_and_not_on_a_chip(framework):
    frontend, factory = MODELS[framework]
    models, forward = both(framework)
    for model in models.values():
        params, state = model.init(0)
        outputs = np.stack(
            [model.apply(params, state, BATCH, jax.random.key(k))[0] for k in range(2)]
        )
        assert 0.35 < (outputs == 0).mean() < 0.65  # 512 draws of 0.5
        assert (outputs[0] != outputs[1]).any()
    found = hw.evaluate.population(
        frontend.on_chip(factory, CHIP),
        frontend.variables(factory, *models["aware"].init(0)),
        [(BATCH, BATCH)],
        lambda outputs, batch: (outputs == 0).any(axis=-1) * 1.0,
        chips=2,
        key=jax.random.key(0),
        forward=lambda apply, batch: forward(apply, batch, False),
    )
    assert found.mean == 0


def test_dropout_may_also_look_for_its_stream():
    model = linen.plain(Quiet, linen.default_forward(Quiet), BATCH)
    params, state = model.init(0)
    outputs, _ = model.apply(params, state, BATCH, jax.random.key(0))
    assert 0.35 < (outputs == 0).mean() < 0.65
    assert (model.evaluate(params, state, BATCH) != 0).all()


def test_a_stream_of_its_own_differs_between_steps():
    model = linen.plain(Sampled, linen.default_forward(Sampled), BATCH)
    params, state = model.init(0)
    outputs = [
        model.apply(params, state, BATCH, jax.random.key(seed))[0] for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).all()


def test_what_has_a_default_is_not_asked_for():
    model = linen.plain(Free, linen.default_forward(Free), BATCH)
    assert model.evaluate(*model.init(0), BATCH).shape == (4, 3)


def test_a_model_that_always_draws_is_blamed_with_the_way_out():
    """And not the data, in whose place the call is looked at."""
    with pytest.raises(EntryError, match="Dropout_0 needs PRNG.*not train") as error:
        with named("data"):
            linen.plain(Always, linen.default_forward(Always), BATCH)
    assert error.value.key == "model"


@pytest.mark.parametrize("framework", MODELS)
def test_two_calls_in_one_step_draw_apart_and_share_statistics(framework):
    frontend, factory = MODELS[framework]
    one = frontend.default_forward(factory)

    def twice(apply, batch, train):
        return jnp.stack([one(apply, batch, train) for _ in range(2)])

    model = frontend.plain(factory, twice, BATCH)
    params, state = model.init(0)
    outputs, after = model.apply(params, state, BATCH, jax.random.key(0))
    assert (outputs[0] != outputs[1]).any()
    mean = min(jax.tree.leaves(after), key=lambda leaf: float(leaf.mean()))
    np.testing.assert_allclose(mean, 0.19 * X.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("framework", MODELS)
def test_a_forward_function_may_choose_the_method(framework):
    def forward(apply, batch, train):
        return apply(batch["x"], method="encode", scale=2.0)

    frontend, batch = FRONTENDS[framework], {"x": X}
    factory = Encoder if framework == "linen" else NnxEncoder
    plain = frontend.plain(factory, forward, batch)
    aware, plan = frontend.hardware_aware(factory, CHIP, forward, batch)
    assert list(plan) == ["layer/kernel"]
    assert frontend.graph(factory, forward, batch).edges[0] == ("input", "layer")
    params, state = plain.init(0)
    outputs, _ = aware.apply(*aware.init(0), batch, jax.random.key(0))
    for found in (plain.evaluate(params, state, batch), outputs):
        np.testing.assert_allclose(found, 2 * X @ params["layer"]["kernel"], rtol=1e-4)
