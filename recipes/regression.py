"""Regression on a table: the progression of diabetes from ten measurements.

Copy this file to start your own recipe: a configuration refers to its functions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split


def data():
    """Returns scikit-learn's diabetes data: 332 to train on, 110 to test on."""
    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    train_x, test_x, train_y, test_y = train_test_split(
        inputs.astype(np.float32),
        targets[:, None].astype(np.float32),
        test_size=110,
        random_state=0,
    )

    def standardised(values, like):
        return (values - like.mean(axis=0)) / like.std(axis=0)

    train = standardised(train_x, train_x), standardised(train_y, train_y)
    return train, (standardised(test_x, train_x), standardised(test_y, train_y))


class MLP(nn.Module):
    """10-64-64-1 with ReLU and dropout."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns `[B, 1]` predictions of `[B, 10]` measurements."""
        for number in range(2):
            x = nn.relu(nn.Dense(64, name=f"hidden_{number}")(x))
            x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(1, name="head")(x)


def mlp() -> nn.Module:
    """Returns the Linen model."""
    return MLP()


def error(outputs: jax.Array, batch) -> jax.Array:
    """Returns absolute errors in standard deviations of the training targets."""
    return jnp.abs(outputs - batch[1])[:, 0]
