"""A decoder-only Transformer as Llama is, in NNX: scanned, rematerialised, in bfloat16.

Its linear layers are for crossbars. The embedding, norms, rotations and the scores of
attention are digital; so is the head, by a rule of the configurations.

Copy this file to start your own recipe: a configuration refers to its functions.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from hwtrain import train as training

windows = training.resolve("language_model.py:windows", Path(__file__).parent)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a model; in brackets, their names in the `config.json` of Llama.

    Attributes:
      vocabulary: number of tokens (`vocab_size`).
      width: of the residual stream (`hidden_size`).
      hidden: width within the dense networks (`intermediate_size`).
      depth: number of blocks (`num_hidden_layers`).
      heads: heads of queries (`num_attention_heads`).
      groups: heads of keys and values, each for as many of queries
        (`num_key_value_heads`).
      head: width of a head (`head_dim`).
      tied: whether the head of the model is its embedding (`tie_word_embeddings`).
      theta: base of the rotations' frequencies (`rope_theta`).
      stretch: `(factor, low_freq_factor, high_freq_factor,
        original_max_position_embeddings)`, slower low frequencies as in Llama 3.1
        (`rope_scaling`); `None` for none.
      epsilon: of the norms (`rms_norm_eps`).
      dtype: of the computation; parameters are float32.
    """

    vocabulary: int = 256
    width: int
    hidden: int
    depth: int
    heads: int
    groups: int
    head: int
    tied: bool = False
    theta: float = 10000.0
    stretch: tuple[float, float, float, float] | None = None
    epsilon: float = 1e-5
    dtype: jax.typing.DTypeLike = jnp.bfloat16


TINY = Sizes(width=64, hidden=176, depth=4, heads=4, groups=2, head=16)
M100 = Sizes(width=768, hidden=2048, depth=14, heads=12, groups=12, head=64)
LLAMA = {"vocabulary": 128256, "heads": 32, "groups": 8, "theta": 500000.0}
B1 = Sizes(
    **LLAMA,
    **{"width": 2048, "hidden": 8192, "depth": 16, "head": 64, "tied": True},
    stretch=(32.0, 1.0, 4.0, 8192.0),
)
B8 = Sizes(
    **LLAMA,
    **{"width": 4096, "hidden": 14336, "depth": 32, "head": 128},
    stretch=(8.0, 1.0, 4.0, 8192.0),
)


def frequencies(sizes: Sizes) -> jax.Array:
    """Returns the angles from one position to the next, `[head / 2]`."""
    half = sizes.head // 2
    fast = sizes.theta ** (-jnp.arange(half) / half)
    if sizes.stretch is None:
        return fast
    factor, low, high, context = sizes.stretch
    turns = context * fast / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return fast * (kept + (1 - kept) / factor)


def rotated(x: jax.Array, frequency: jax.Array) -> jax.Array:
    """Returns `[B, T, heads, head]`, each vector rotated by its position."""
    angle = jnp.arange(x.shape[1])[:, None, None] * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def by_example(x: jax.Array, width=None) -> jax.Array:
    """Keeps examples on their devices, where `jax.set_mesh` sets an axis `data`."""
    if "data" not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    # Where weights are spread over it too, XLA would spread the width instead.
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data", None, width))


class Block(nnx.Module):
    """Attention and a gated dense network, each after a norm and beside a shortcut."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        options = {"dtype": sizes.dtype, "rngs": rngs}
        linear = functools.partial(nnx.Linear, use_bias=False, **options)
        norm = functools.partial(nnx.RMSNorm, epsilon=sizes.epsilon, **options)
        self.sizes = sizes
        self.attention_norm, self.mlp_norm = norm(sizes.width), norm(sizes.width)
        self.q = linear(sizes.width, sizes.heads * sizes.head)
        self.k = linear(sizes.width, sizes.groups * sizes.head)
        self.v = linear(sizes.width, sizes.groups * sizes.head)
        self.o = linear(sizes.heads * sizes.head, sizes.width)
        self.gate = linear(sizes.width, sizes.hidden)
        self.up = linear(sizes.width, sizes.hidden)
        self.down = linear(sizes.hidden, sizes.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, T, width]` for the same."""
        y = self.attention_norm(x)
        heads = (*x.shape[:2], -1, self.sizes.head)
        q, k, v = (layer(y).reshape(heads) for layer in (self.q, self.k, self.v))
        q, k = (rotated(each, frequencies(self.sizes)) for each in (q, k))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.reshape(*x.shape[:2], -1))
        y = self.mlp_norm(x)
        y = nnx.silu(self.gate(y)) * self.up(y)
        return x + self.down(by_example(y, PartitionSpec.UNCONSTRAINED))


class LanguageModel(nnx.Module):
    """Embedding, blocks stacked in one, a norm and a head."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=sizes.depth)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(sizes, rngs)

        options = {"dtype": sizes.dtype, "rngs": rngs}
        self.sizes = sizes
        self.embed = nnx.Embed(sizes.vocabulary, sizes.width, **options)
        self.blocks = stacked(rngs)
        self.norm = nnx.RMSNorm(sizes.width, epsilon=sizes.epsilon, **options)
        if not sizes.tied:
            shape = (sizes.width, sizes.vocabulary)
            self.head = nnx.Linear(*shape, use_bias=False, **options)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns `[B, T, vocabulary]` logits; those of position t predict t + 1."""

        # Of each block, only its input is kept for the backward pass.
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat(policy=jax.checkpoint_policies.nothing_saveable)
        def through(x: jax.Array, block: Block) -> jax.Array:
            return by_example(block(x))

        x = by_example(self.embed(tokens))
        x = self.norm(through(x, self.blocks))
        head = self.embed.attend if self.sizes.tied else self.head
        return head(x).astype(jnp.float32)


def lm_tiny(rngs: nnx.Rngs) -> nnx.Module:
    """Returns a model of 218 thousand parameters, for two cores."""
    return LanguageModel(TINY, rngs)


def lm_100m(rngs: nnx.Rngs) -> nnx.Module:
    """Returns a model of 100 million parameters, for one GPU."""
    return LanguageModel(M100, rngs)


def lm_1b(rngs: nnx.Rngs) -> nnx.Module:
    """Returns a model of the sizes of Llama 3.2 1B."""
    return LanguageModel(B1, rngs)


def lm_8b(rngs: nnx.Rngs) -> nnx.Module:
    """Returns a model of the sizes of Llama 3.1 8B."""
    return LanguageModel(B8, rngs)


def text():
    """Returns functions of batches of bytes for `lm_tiny`, `[32, 65]`."""
    return windows(64, 32)


def long_text():
    """Returns functions of batches of bytes for `lm_100m`, `[64, 1025]`."""
    return windows(1024, 64)


def bits_per_byte(outputs: jax.Array, batch) -> jax.Array:
    """Returns the cross entropy of each next byte in bits, `[B]`.

    The perplexity of a byte is 2 to the power of their mean.
    """
    return training.next_token_cross_entropy(outputs, batch) / jnp.log(2.0)
