"""CIFAR-10 by a residual network with batch norm, from the binary version's files.

Get `cifar-10-binary.tar.gz` from https://www.cs.toronto.edu/~kriz/cifar.html, unpack
it, and name its folder, `cifar-10-batches-bin`, by the environment variable CIFAR10.
Copy this file to start your own recipe: a configuration refers to its functions.
"""

import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

FILES = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]
"""Files to train on, and to test on."""

RECORD = 1 + 3 * 32 * 32
"""Bytes of an example: its label, and 32 x 32 pixels in red, then green, then blue."""

BATCH = 128
"""Examples in an update."""

MEAN, STD = np.float32([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]])
"""Of the training images, by colour, if white is 1."""


def load(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[examples, 32, 32, 3]` and labels, both in 8 bits."""
    folder = os.environ.get("CIFAR10")
    if not folder:
        raise ValueError(
            "expected the environment variable CIFAR10 to name the folder "
            "cifar-10-batches-bin, got none; get cifar-10-binary.tar.gz from "
            "https://www.cs.toronto.edu/~kriz/cifar.html and unpack it"
        )
    records = np.concatenate([records_of(Path(folder) / file) for file in files])
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0]


def records_of(path: Path) -> np.ndarray:
    """Returns the records of a file, `[examples, 3073]`."""
    if not path.is_file():
        raise ValueError(
            f"expected the file {path.name} in the folder {path.parent}, which the "
            "environment variable CIFAR10 names; get cifar-10-binary.tar.gz from "
            "https://www.cs.toronto.edu/~kriz/cifar.html and unpack it"
        )
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % RECORD:
        raise ValueError(
            f"{path}: expected records of {RECORD} bytes, as in the binary version of "
            f"CIFAR-10, got {values.size} bytes; get the file again"
        )
    records = values.reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise ValueError(
            f"{path}: expected labels from 0 to 9 at the start of each record, got "
            f"{records[:, 0].max()}; get the binary version of CIFAR-10, not CIFAR-100"
        )
    return records


def normalized(images: np.ndarray) -> np.ndarray:
    """Returns images in 8 bits as numbers of mean 0 and standard deviation 1."""
    return (images.astype(np.float32) / 255 - MEAN) / STD


def augmented(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns images flipped at random and shifted by up to 4 pixels, black outside."""
    count = len(images)
    images = np.where(
        random.random(count)[:, None, None, None] < 0.5, images[:, :, ::-1], images
    )
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    down, right = random.integers(0, 9, (2, count, 1, 1))
    rows, columns = np.arange(32)[:, None] + down, np.arange(32) + right
    return padded[np.arange(count)[:, None, None], rows, columns]


def data():
    """Returns functions of batches, of images `[batch, 32, 32, 3]` and labels."""
    images, labels = load(FILES[0])
    test_images, test_labels = load(FILES[1])
    epoch_length = len(images) // BATCH
    if not epoch_length:
        raise ValueError(f"expected {BATCH} training images or more, got {len(images)}")

    def train(seed: int, start_step: int):
        for step in itertools.count(start_step):
            epoch, place = divmod(step, epoch_length)
            if step == start_step or not place:
                order = np.random.default_rng((seed, epoch)).permutation(len(images))
            rows = order[place * BATCH : (place + 1) * BATCH]
            chosen = augmented(
                images[rows], np.random.default_rng((seed, epoch, place))
            )
            yield normalized(chosen), labels[rows].astype(np.int32)

    def evaluation():
        for start in range(0, len(test_images), 500):
            rows = slice(start, start + 500)
            yield normalized(test_images[rows]), test_labels[rows].astype(np.int32)

    return train, evaluation


class Block(nn.Module):
    """Two convolutions beside a shortcut that has no weights."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns `[B, H / stride, W / stride, channels]` for `[B, H, W, C]`."""
        y = _conv(self.channels, self.stride, "conv_0")(x)
        y = nn.relu(_norm(train, "norm_0")(y))
        y = _conv(self.channels, 1, "conv_1")(y)
        y = _norm(train, "norm_1")(y)
        x = x[:, :: self.stride, :: self.stride]
        more = self.channels - x.shape[-1]
        return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))))


class ResNet(nn.Module):
    """Three stages of blocks with 16, 32 and 64 channels, for images of 32 x 32.

    References:
      He et al., Deep residual learning for image recognition, CVPR 2016.
    """

    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 32, 32, 3]` images."""
        x = nn.relu(_norm(train, "norm")(_conv(16, 1, "first")(x)))
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                x = Block(channels, stride, name=f"stage_{stage}_{block}")(x, train)
        return nn.Dense(10, name="head")(x.mean(axis=(1, 2)))


def _conv(channels: int, stride: int, name: str) -> nn.Conv:
    scale = nn.initializers.he_normal()
    return nn.Conv(
        channels, (3, 3), stride, use_bias=False, kernel_init=scale, name=name
    )


def _norm(train: bool, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(not train, momentum=0.9, name=name)


def resnet8() -> nn.Module:
    """Returns the smallest model of this kind, with 8 layers, to try things."""
    return ResNet(1)


def resnet20() -> nn.Module:
    """Returns the model with 20 layers."""
    return ResNet(3)


def resnet32() -> nn.Module:
    """Returns the model with 32 layers."""
    return ResNet(5)


def momentum(rate) -> optax.GradientTransformation:
    """Returns gradient descent with momentum and weight decay of all parameters."""
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, 0.9, True))
