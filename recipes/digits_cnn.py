"""A convolutional classifier of digits with batch norm, in Linen and in NNX.

Copy this file to start your own recipe: a configuration refers to its functions.
"""

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def data():
    """Returns scikit-learn's digits, 8 x 8: 1347 to train on, 450 to test on."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int32), test_size=450, stratify=labels, random_state=0
    )
    mean, std = train_x.mean(), train_x.std()
    return ((train_x - mean) / std, train_y), ((test_x - mean) / std, test_y)


class CNN(nn.Module):
    """Two convolutions of 16 and 32 channels and a dense layer, in Linen."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 8, 8, 1]` images."""
        # Batch norm stays digital; its shift takes the place of a bias.
        x = nn.Conv(16, (3, 3), use_bias=False, name="conv_0")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm_0")(x))
        x = nn.Conv(32, (3, 3), 2, use_bias=False, name="conv_1")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm_1")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


class NnxCNN(nnx.Module):
    """The same in NNX, with the same parameter paths."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv_0 = nnx.Conv(1, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm_0 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.conv_1 = nnx.Conv(16, 32, (3, 3), 2, use_bias=False, rngs=rngs)
        self.norm_1 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 8, 8, 1]` images."""
        x = nnx.relu(self.norm_0(self.conv_0(x)))
        x = nnx.relu(self.norm_1(self.conv_1(x)))
        return self.head(x.reshape(len(x), -1))


def cnn() -> nn.Module:
    """Returns the Linen model."""
    return CNN()


def cnn_nnx(rngs: nnx.Rngs) -> nnx.Module:
    """Returns the NNX model, initialised from `rngs`."""
    return NnxCNN(rngs)
