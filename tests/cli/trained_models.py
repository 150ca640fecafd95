"""Flax models that get the parameters of trained models, and how they are called."""

import jax
from flax import linen as nn
from flax import nnx


class Mlp(nn.Module):
    sizes: tuple = (7, 3)

    @nn.compact
    def __call__(self, x):
        for number, size in enumerate(self.sizes):
            x = nn.relu(x) if number else x
            x = nn.Dense(size, name=f"fc_{number}")(x)
        return x


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), padding=1)(x)
        x = nn.relu(nn.BatchNorm(not train)(x))
        x = nn.Conv(3, (3, 2), strides=2, padding="VALID")(x)
        x = nn.relu(nn.BatchNorm(not train)(x))
        # As PyTorch flattens: channels first.
        return nn.Dense(5)(x.transpose(0, 3, 1, 2).reshape(len(x), -1))


class Conv1d(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3,), padding=1)(x))
        return nn.Dense(5)(x.transpose(0, 2, 1).reshape(len(x), -1))


class NnxCnn(nnx.Module):
    def __init__(self, rngs):
        # Defined in another order than they are called.
        self.head = nnx.Linear(18, 5, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs) for n in (4, 3)])
        self.second = nnx.Conv(4, 3, (3, 2), strides=2, padding="VALID", rngs=rngs)
        self.first = nnx.Conv(2, 4, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norms[0](self.first(x)))
        x = jax.nn.relu(self.norms[1](self.second(x)))
        return self.head(x.transpose(0, 3, 1, 2).reshape(len(x), -1))


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.fc_0 = nnx.Linear(11, 7, rngs=rngs)
        self.fc_1 = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc_1(jax.nn.relu(self.fc_0(x)))


def mlp():
    return Mlp()


def deep():
    return Mlp((7, 7, 3))


def cnn():
    return Cnn()


def conv1d():
    return Conv1d()


def nnx_cnn(rngs):
    return NnxCnn(rngs)


def nnx_mlp(rngs):
    return NnxMlp(rngs)
