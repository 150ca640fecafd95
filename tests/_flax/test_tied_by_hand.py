"""A model that multiplies by a layer's array itself, without the layer, is refused.

The weight side acts on such a product, because it transforms the parameters, but no
converter does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

NOISE = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
CONVERTED = hw.Hardware(modifier=NOISE, forward=hw.IOParameters(inp_bits=2))
RANGED = hw.Hardware(input_range=hw.InputRangeParameter())
PER_VECTOR = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1, per_vector=True)
)
TOKENS = jnp.array([[0, 1, 2], [3, 1, 0]])
MODES = {"train": hw.train_mode, "chip": hw.chip_mode, "eval": hw.eval_mode}
BY_HAND = {
    "matmul": lambda x, w: x @ w.T,
    "einsum": lambda x, w: jnp.einsum("btd,vd->btv", x, w),
    "dot_general": lambda x, w: jax.lax.dot_general(x, w, (((2,), (1,)), ((), ()))),
    "normalised": lambda x, w: x @ (w / jnp.linalg.norm(w, axis=-1, keepdims=True)).T,
    "part": lambda x, w: x @ w[:2].T,
    "cast": lambda x, w: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16).T,
    "jitted": lambda x, w: jax.jit(lambda x, w: x @ w.T)(x, w),
    "remat": lambda x, w: jax.checkpoint(lambda x, w: x @ w.T)(x, w),
    "loop": lambda x, w: jax.lax.map(lambda x: x @ w.T, x),
}
HARMLESS = {
    "look-up": lambda x, w, t: x + w[t],
    "look-up and scores": lambda x, w, t: jnp.einsum("btd,bsd->bts", w[t], x),
    "gain and scores": lambda x, w, t: jnp.einsum("btd,bsd->bts", x * w[0], x),
    "penalty": lambda x, w, t: x + jnp.sum(w**2) + jnp.vdot(w, w),
}


def product(head, x, array, tokens):
    if head in HARMLESS:
        return HARMLESS[head](x, array, tokens)
    return BY_HAND[head](x, array)


class Linen(nn.Module):
    head: str
    read: str = "embedding"
    layer: str = "embed"

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(5, 4, name="embed")
        dense = nn.Dense(4, name="dense")
        x = dense(embed(tokens))
        if self.layer == "dense":
            array = dense.variables["params"]["kernel"].T
        elif self.read == "variables":
            array = embed.variables["params"]["embedding"]
        else:
            array = embed.embedding
        if self.head == "attend":
            return embed.attend(x)
        if self.head == "clone":
            held = {"params": embed.variables["params"]}
            return embed.clone().apply(held, x, method="attend")
        return product(self.head, x, array, tokens)


class OfNnx(nnx.Module):
    def __init__(self, head, read="embedding", layer="embed"):
        self.embed = nnx.Embed(5, 4, rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
        self.head, self.read, self.layer = head, read, layer

    def __call__(self, tokens):
        x = self.dense(self.embed(tokens))
        if self.head == "attend":
            return self.embed.attend(x)
        if self.layer == "dense":
            array = self.dense.kernel[...].T
        elif self.read == "get_value":
            array = self.embed.embedding.get_value()
        else:
            array = self.embed.embedding[...]
        return product(self.head, x, array, tokens)


def called(framework, mode, embed, *model, dense=CONVERTED):
    """Returns what a call gives, or raises as planning or the call does."""
    rules = [hw.Rule("embed", embed), hw.Rule("dense", dense)]
    key = jax.random.key(0)
    if framework == "linen":
        analog = hw.analogize(Linen(*model), rules)
        variables = analog.init(key, TOKENS)
        hw.plan(analog, variables, TOKENS)
        return MODES[mode](analog).apply(variables, TOKENS, rngs={"mismatch": key})
    analog = hw.analogize(OfNnx(*model), rules, rngs=nnx.Rngs(mismatch=0))
    return MODES[mode](analog)(TOKENS)


MATCH = "the model multiplies by embed/embedding itself, around its Embed"


@pytest.mark.sampled(5)
@pytest.mark.parametrize("head", BY_HAND)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_product_with_an_embedding_around_it_is_refused(framework, head):
    with pytest.raises(ValueError, match=MATCH):
        called(framework, "train", CONVERTED, head)
    # The ways out that the message names.
    assert called(framework, "train", None, head).shape
    assert called(framework, "train", CONVERTED, "attend").shape
    assert called(framework, "train", hw.Hardware(modifier=NOISE), head).shape


@pytest.mark.sampled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("framework", "model"),
    [
        ("linen", ("matmul", "embedding")),
        ("linen", ("matmul", "variables")),
        ("linen", ("clone",)),
        ("nnx", ("matmul", "embedding")),
        ("nnx", ("matmul", "get_value")),
    ],
)
def test_in_every_mode_however_it_is_read(framework, model, mode):
    with pytest.raises(ValueError, match=MATCH):
        called(framework, mode, CONVERTED, *model)


@pytest.mark.parametrize("hardware", [CONVERTED, RANGED, PER_VECTOR])
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_product_with_the_kernel_of_a_layer_around_it_is_refused(framework, hardware):
    with pytest.raises(ValueError, match="multiplies by dense/kernel itself"):
        called(framework, "train", None, "matmul", "", "dense", dense=hardware)


@pytest.mark.parametrize("head", HARMLESS)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_look_ups_gains_and_penalties_are_no_products_with_weights(framework, head):
    assert np.isfinite(called(framework, "train", CONVERTED, head)).all()


def test_assert_active_and_inspect_do_not_pass_it():
    rules = [hw.Rule("embed", CONVERTED), hw.Rule("dense", CONVERTED)]
    analog = hw.analogize(Linen("attend"), rules)
    variables = analog.init(jax.random.key(0), TOKENS)
    tied = hw.analogize(Linen("matmul"), rules)
    for look in (hw.inspect, hw.assert_active):
        look(analog, variables, TOKENS)
        with pytest.raises(ValueError, match=MATCH):
            look(tied, variables, TOKENS)
    tied = hw.analogize(OfNnx("matmul"), rules, rngs=nnx.Rngs(mismatch=0))
    with pytest.raises(ValueError, match=MATCH):
        hw.assert_active(tied, None, TOKENS)


def test_an_array_that_two_calls_read_in_a_scan_is_followed():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            dense = nn.Dense(4, name="dense")
            y = dense(x)
            return y @ dense.variables["params"]["kernel"].T, None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            rngs, axes = {"params": True}, {"params": 0}
            scan = nn.scan(Step, variable_axes=axes, split_rngs=rngs, length=2)
            return scan(name="steps")(x, None)[0]

    analog = hw.analogize(Stack(), CONVERTED)
    variables = analog.init(jax.random.key(0), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="multiplies by steps/dense/kernel itself"):
        hw.plan(analog, variables, jnp.ones((2, 4)))


@pytest.mark.parametrize("called", [True, False])
def test_an_nnx_kernel_is_not_multiplied_by_where_its_layer_is_not_called(called):
    class Tied(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

        def decode(self, x):
            x = self.dense(x) if called else x
            return x @ self.dense.kernel[...].T

    chip = hw.Hardware(forward=hw.IOParameters(inp_bits=4))
    model = hw.eval_mode(hw.analogize(Tied(), chip))
    with pytest.raises(ValueError, match="multiplies by dense/kernel itself, around"):
        model.decode(jnp.ones((1, 4)))
