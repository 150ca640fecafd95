"""A small Transformer that predicts the bytes of Python's own library.

Copy this file to start your own recipe: a configuration refers to its functions.
"""

import itertools
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

CONTEXT = 64
"""Bytes that a prediction may depend on."""

BATCH = 32
"""Windows of text in an update."""


def texts() -> tuple[bytes, bytes]:
    """Returns the source text of Python's library, to train and to test on.

    Every tenth module is held out.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    held_out = files[::10]
    return tuple(
        b"".join(file.read_bytes() for file in files if (file in held_out) == out)
        for out in (False, True)
    )


def windows(context: int, batch: int):
    """Returns functions of batches of bytes, `[batch, context + 1]`.

    Args:
      context: bytes that a prediction may depend on.
      batch: windows of text in an update.
    """
    training, testing = (np.frombuffer(text, np.uint8) for text in texts())
    window = np.arange(context + 1)

    def train(seed: int, start_step: int):
        for step in itertools.count(start_step):
            random = np.random.default_rng((seed, step))
            starts = random.integers(0, len(training) - context, batch)
            yield training[starts[:, None] + window].astype(np.int32)

    def evaluation():
        starts = np.linspace(0, len(testing) - context - 1, 512).astype(int)
        for part in np.split(starts, 8):
            yield testing[part[:, None] + window].astype(np.int32)

    return train, evaluation


def data():
    """Returns functions of batches of bytes, `[windows, 65]`."""
    return windows(CONTEXT, BATCH)


class Block(nn.Module):
    """Attention and a dense network, each after a norm and beside a shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns `[B, T, width]` for the same."""
        width = x.shape[-1]
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(y, mask=mask)
        y = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="down")(y)


class Transformer(nn.Module):
    """Embedding, blocks and a head over 256 bytes."""

    width: int = 64
    depth: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns `[B, T, 256]` logits; those of position t predict token t + 1."""
        x = nn.Embed(256, self.width, name="bytes")(tokens)
        positions = jnp.arange(tokens.shape[1])
        x = x + nn.Embed(CONTEXT + 1, self.width, name="positions")(positions)
        mask = nn.make_causal_mask(tokens)
        for number in range(self.depth):
            x = Block(name=f"block_{number}")(x, mask)
        return nn.Dense(256, name="head")(nn.LayerNorm()(x))


def transformer() -> nn.Module:
    """Returns the Linen model."""
    return Transformer()


def bits_per_byte(outputs: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the cross entropy of each next byte in bits, `[B]`."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        outputs[:, :-1], tokens[:, 1:]
    )
    return losses.mean(axis=-1) / jnp.log(2.0)
