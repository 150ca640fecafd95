"""A small classifier of handwritten digits, in Linen and in NNX.

Copy this file to start your own recipe: a configuration refers to its functions.
"""

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def data():
    """Returns scikit-learn's digits, of 64 pixels: 1347 to train on, 450 to test on."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images.astype(np.float32),
        labels.astype(np.int32),
        test_size=450,
        stratify=labels,
        random_state=0,
    )
    mean, std = train_x.mean(), train_x.std()
    return ((train_x - mean) / std, train_y), ((test_x - mean) / std, test_y)


class MLP(nn.Module):
    """64-128-64-10 with ReLU, in Linen."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 64]` pixels."""
        x = nn.relu(nn.Dense(128, name="hidden_0")(x))
        x = nn.relu(nn.Dense(64, name="hidden_1")(x))
        return nn.Dense(10, name="head")(x)


class NnxMLP(nnx.Module):
    """The same in NNX, with the same parameter paths."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden_0 = nnx.Linear(64, 128, rngs=rngs)
        self.hidden_1 = nnx.Linear(128, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 64]` pixels."""
        x = nnx.relu(self.hidden_0(x))
        x = nnx.relu(self.hidden_1(x))
        return self.head(x)


def mlp() -> nn.Module:
    """Returns the Linen model."""
    return MLP()


def mlp_nnx(rngs: nnx.Rngs) -> nnx.Module:
    """Returns the NNX model, initialised from `rngs`."""
    return NnxMLP(rngs)


class NarrowMLP(nn.Module):
    """64-48-48-48-10 with ReLU: more layers and fewer units notice errors sooner."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 64]` pixels."""
        for number in range(3):
            x = nn.relu(nn.Dense(48, name=f"hidden_{number}")(x))
        return nn.Dense(10, name="head")(x)


def narrow() -> nn.Module:
    """Returns the narrow model, in Linen."""
    return NarrowMLP()
