"""A convolutional network with batch norm for handwritten digits, and it folded."""

from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hwtrain import train

PLAIN = Path(__file__).parents[1] / "configs" / "digits_conv.toml"


def data():
    """Returns scikit-learn's digits, `[8, 8, 1]`: 1347 to train on, 450 to test on."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images.reshape(-1, 8, 8, 1).astype(np.float32),
        labels.astype(np.int32),
        test_size=450,
        stratify=labels,
        random_state=0,
    )
    mean, std = train_x.mean(), train_x.std()
    return ((train_x - mean) / std, train_y), ((test_x - mean) / std, test_y)


class Convolutions(nn.Module):
    """Three convolutions of 16, 32 and 32 channels, and a head.

    Attributes:
      folded: whether the batch norms are part of the convolutions.
    """

    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 8, 8, 1]` pixels."""
        for number, (channels, stride) in enumerate(((16, 1), (32, 2), (32, 2))):
            convolution = nn.Conv(
                channels, (3, 3), stride, use_bias=self.folded, name=f"conv_{number}"
            )
            x = convolution(x)
            if not self.folded:
                norm = nn.BatchNorm(not train, momentum=0.9, name=f"norm_{number}")
                x = norm(x)
            x = nn.relu(x)
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


def network() -> nn.Module:
    """Returns the network with its batch norms."""
    return Convolutions()


def folded_network() -> nn.Module:
    """Returns the network whose batch norms are part of its convolutions."""
    return Convolutions(folded=True)


def folded():
    """Returns the parameters of the plain network of `digits_conv.toml`, folded.

    The network is trained anew, in seconds; of a larger one, `read_arrays` reads the
    checkpoint.
    """
    plain = train.train_plain(PLAIN)
    norms = {f"conv_{number}": f"norm_{number}" for number in range(3)}
    return train.fold_batch_norm(plain["params"], plain["batch_stats"], norms)
