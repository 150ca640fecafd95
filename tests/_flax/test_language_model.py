"""A decoder-only language model like Flax's examples: training and decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

TILES = hw.MappingParameter(max_input_size=6, weight_scaling_omega=1.0)
CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.03),
    clip=hw.WeightClipParameter(type="layer_gaussian", sigma=2.5),
    input_range=hw.InputRangeParameter(init_value=3.0, init_from_data=2),
    forward=hw.IOParameters(inp_bits=8, out_bits=8, out_bound=12.0, out_noise=0.02),
    mapping=TILES,
)
# Look-ups have no input to clip; the scores against the same embedding are analog.
EMBEDDING = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.03),
    forward=hw.IOParameters(inp_bits=8, inp_bound=4.0, out_noise=0.02),
    mapping=TILES,
)
RULES = [hw.Rule("embed", EMBEDDING), hw.Rule(".*", CHIP)]
VOCABULARY, LENGTH, WIDTH = 7, 6, 8
TOKENS = (jnp.arange(4)[:, None] + jnp.arange(LENGTH + 1)) % VOCABULARY
ANALOG = {
    "embed/embedding",
    *(f"block/attention/{x}/kernel" for x in ("query", "key", "value", "out")),
    "block/up/kernel",
    "block/down/kernel",
}


class Block(nn.Module):
    decode: bool

    @nn.compact
    def __call__(self, x, mask):
        y = nn.LayerNorm()(x)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=2, decode=self.decode, name="attention"
        )
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm()(x)
        y = nn.gelu(nn.Dense(2 * WIDTH, name="up")(y))
        return x + nn.Dense(WIDTH, name="down")(y)


class LanguageModel(nn.Module):
    decode: bool = False

    @nn.compact
    def __call__(self, tokens, start=0):
        embed = nn.Embed(VOCABULARY, WIDTH, name="embed")
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (LENGTH, WIDTH)
        )
        x = embed(tokens) + positions[start + jnp.arange(tokens.shape[1])]
        mask = None if self.decode else nn.make_causal_mask(tokens)
        x = Block(self.decode, name="block")(x, mask)
        return embed.attend(nn.LayerNorm(name="norm")(x))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class NnxLanguageModel(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        start = 0.02 * jax.random.normal(rngs.params(), (LENGTH, WIDTH))
        self.positions = nnx.Param(start)
        self.block = NnxBlock(rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.decode = False

    def __call__(self, tokens, start=0):
        positions = self.positions[...][start + jnp.arange(tokens.shape[1])]
        mask = None if self.decode else nnx.make_causal_mask(tokens)
        x = self.block(self.embed(tokens) + positions, mask)
        return self.embed.attend(self.norm(x))


def cross_entropy(logits):
    wanted = TOKENS[:, 1:]
    return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()


def check_trained(losses, plan):
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
    assert set(plan) == ANALOG
    assert {path for path in plan if not plan[path].ranged} == {"embed/embedding"}


@pytest.mark.nightly
def test_linen_trains():
    analog = hw.analogize(LanguageModel(), RULES)
    variables = jax.jit(analog.init)(jax.random.key(0), TOKENS[:, :-1])
    plan = hw.plan(analog, variables, TOKENS[:, :-1])
    tx = hw.optim.hardware_aware(optax.adam(2e-2), plan)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            rngs = {"mismatch": key}
            return cross_entropy(
                analog.apply({"params": params}, TOKENS[:, :-1], rngs=rngs)
            )

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, losses = variables["params"], []
    state = tx.init(params)
    for number in range(15):
        key = jax.random.fold_in(jax.random.key(1), number)
        params, state, value = step(params, state, key)
        losses.append(float(value))
    check_trained(losses, plan)
    ranges = params["block"]["up"]["input_range"]
    assert (ranges > 0).all() and (ranges != 3.0).all()


def test_nnx_trains():
    analog = hw.analogize(
        NnxLanguageModel(nnx.Rngs(0)), RULES, rngs=nnx.Rngs(mismatch=1)
    )
    plan = hw.plan(analog)
    optimizer = nnx.Optimizer(
        analog, hw.optim.hardware_aware(optax.adam(2e-2), plan), wrt=nnx.Param
    )

    @nnx.jit
    def step(analog, optimizer):
        value, grads = nnx.value_and_grad(
            lambda model: cross_entropy(model(TOKENS[:, :-1]))
        )(analog)
        optimizer.update(analog, grads)
        return value

    check_trained([float(step(analog, optimizer)) for _ in range(15)], plan)
    ranges = analog.block.up.input_range[...]
    assert (ranges > 0).all() and (ranges != 3.0).all()


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["eval", "chip"])
def test_linen_decodes_token_by_token(mode):
    plain = LanguageModel(decode=True)
    tokens = TOKENS[:, :-1]
    set_mode = hw.eval_mode if mode == "eval" else hw.chip_mode
    analog = set_mode(hw.analogize(plain, RULES))
    variables = jax.jit(analog.init)(jax.random.key(0), tokens)
    params, cache = variables["params"], variables["cache"]

    @jax.jit
    def decode(cache, start, key):
        token = jax.lax.dynamic_slice_in_dim(tokens, start, 1, axis=1)
        logits, new = analog.apply(
            {"params": params, "cache": cache},
            token,
            start,
            rngs={"mismatch": key},
            mutable=["cache"],
        )
        return logits, new["cache"]

    logits = []
    for start in range(LENGTH):
        key = jax.random.key(start)
        found, new = decode(cache, start, key)
        again, _ = decode(cache, start, jax.random.key(100))
        assert bool((found != again).any()) == (mode == "chip")
        logits.append(found)
        cache = new
    assert cache["block"]["attention"]["cache_index"] == LENGTH
    if mode == "eval":
        whole = set_mode(hw.analogize(LanguageModel(), RULES))
        expected = whole.apply({"params": params}, tokens)
        np.testing.assert_allclose(jnp.concatenate(logits, 1), expected, atol=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["eval", "chip"])
def test_nnx_decodes_token_by_token(mode):
    tokens = TOKENS[:, :-1]
    set_mode = hw.eval_mode if mode == "eval" else hw.chip_mode
    analog = set_mode(
        hw.analogize(NnxLanguageModel(nnx.Rngs(0)), RULES, rngs=nnx.Rngs(mismatch=1))
    )
    expected = nnx.jit(lambda model: model(tokens))(analog)
    analog.set_attributes(decode=True)
    analog.block.attention.init_cache((*tokens.shape, WIDTH))
    decode = nnx.jit(lambda model, token, start: model(token, start))
    logits = [
        decode(analog, tokens[:, start : start + 1], start) for start in range(LENGTH)
    ]
    assert analog.block.attention.cache_index[...] == LENGTH
    difference = jnp.abs(jnp.concatenate(logits, 1) - expected).max()
    assert (difference < 1e-4) == (mode == "eval")
