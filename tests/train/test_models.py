"""Models that the training loop supports; their dropout acts only in training."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx

import hwtrain as hw
from hwtrain.train import _linen as linen
from hwtrain.train import _nnx as nnx
from hwtrain.train._entries import EntryError, named

X = np.ones((4, 6), np.float32)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        return nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x)


class NnxDropped(flax_nnx.Module):
    def __init__(self, rngs):
        self.layer = flax_nnx.Linear(6, 16, rngs=rngs)
        self.dropout = flax_nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.layer(x))


class Asking(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(x)


class AskingByKeyword(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x)


class NnxAsking(NnxDropped):
    def __call__(self, x, train):
        return self.layer(x)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))


class NnxNormed(flax_nnx.Module):
    def __init__(self, rngs):
        self.norm = flax_nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class Always(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x))


class Free(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, *args, **kwargs):
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("frontend", "factory", "message"),
    [
        (linen, Asking, "Asking, which asks for 'train' too"),
        (linen, AskingByKeyword, "which asks for 'train' too.*has_rng"),
        (nnx, NnxAsking, "NnxAsking, which asks for 'train' too"),
        (linen, Normed, r"Normed has \['batch_stats', 'params'\].*nn.LayerNorm"),
        (nnx, NnxNormed, "has norm/mean, norm/var.*nnx.LayerNorm"),
        (linen, Always, "Dropout_0 needs PRNG.*deterministic=not self.has_rng"),
    ],
)
def test_the_model_is_blamed_with_the_way_out(frontend, factory, message):
    """And not the data, in whose place the call is looked at."""
    with pytest.raises(EntryError, match=message) as error, named("data"):
        frontend.plain(factory, X)
    assert error.value.key == "model"


def test_what_has_a_default_is_not_asked_for():
    model = linen.plain(Free, X)
    assert model.apply(model.init(0), X, jax.random.key(0)).shape == (4, 3)


@pytest.mark.parametrize(
    ("frontend", "factory"), [(linen, Dropped), (nnx, NnxDropped)], ids=["linen", "nnx"]
)
def test_dropout_acts_in_training_and_not_on_a_chip(frontend, factory):
    chip = hw.Hardware(mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.0))
    plain = frontend.plain(factory, X)
    aware, _ = frontend.hardware_aware(factory, chip, X)
    for model in (plain, aware):
        params = model.init(0)
        outputs = np.stack(
            [model.apply(params, X, jax.random.key(seed)) for seed in range(8)]
        )
        dropped = (outputs == 0).mean()
        assert 0.35 < dropped < 0.65  # 512 draws of 0.5
    analog, variables = frontend.on_chip(factory, chip, plain.init(0))
    found = hw.evaluate.population(
        analog,
        variables,
        [(X, np.zeros(4, int))],
        lambda outputs, labels: (outputs == 0).any(axis=-1) * 1.0,
        chips=2,
        key=jax.random.key(0),
    )
    assert found.mean == 0
