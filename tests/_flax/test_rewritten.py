"""Layers whose methods are reimplemented compute the same as Flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

SMALL_TILES = hw.Hardware(
    forward=hw.IOParameters(out_bound=1e6),  # on tiles, but as good as ideal
    mapping=hw.MappingParameter(
        max_input_size=3, max_output_size=2, weight_scaling_omega=1.0
    ),
)


def check(found, expected, exact=True):
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(
            np.float32(ours), np.float32(theirs), atol=2e-6 if exact else 0.05
        )


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ({}, (2,)),
        ({"gate_fn": nn.relu, "activation_fn": jnp.sin}, ()),
        ({"dtype": jnp.bfloat16, "bias_init": nn.initializers.normal(1.0)}, (2, 3)),
    ],
)
def test_the_optimised_lstm_cell(options, batch):
    cell = nn.OptimizedLSTMCell(4, **options)
    x = jax.random.normal(jax.random.key(0), (*batch, 5))
    carry = jax.tree.map(
        lambda leaf: leaf + 0.3, cell.initialize_carry(jax.random.key(1), x.shape)
    )
    variables = jax.jit(cell.init)(jax.random.key(2), carry, x)
    analog = hw.eval_mode(hw.analogize(cell, SMALL_TILES))
    assert len(hw.plan(analog, variables, carry, x)) == 8
    found, expected = jax.jit(
        lambda v: (analog.apply(v, carry, x), cell.apply(v, carry, inputs=x))
    )(variables)
    check(found, expected, exact="dtype" not in options)


def test_some_gates_of_the_optimised_lstm_cell():
    cell = nn.OptimizedLSTMCell(4)
    x = jnp.ones((2, 5))
    carry = cell.initialize_carry(jax.random.key(1), x.shape)
    variables = jax.jit(cell.init)(jax.random.key(2), carry, x)
    analog = hw.eval_mode(hw.analogize(cell, [hw.Rule("h.", SMALL_TILES)]))
    found = analog.apply(variables, carry, x)
    check(found, cell.apply(variables, carry, x))
    assert set(hw.plan(analog, variables, carry, x)) == {f"h{g}/kernel" for g in "ifgo"}


class Scores(nn.Module):
    tokens: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, query):
        embed = nn.Embed(self.tokens, 5, dtype=self.dtype, name="embed")
        return embed.attend(query), embed(jnp.arange(2) % self.tokens)


class NnxScores(nnx.Module):
    def __init__(self, tokens, dtype, rngs):
        self.embed = nnx.Embed(tokens, 5, dtype=dtype, rngs=rngs)
        self.tokens = tokens

    def __call__(self, query):
        return self.embed.attend(query), self.embed(jnp.arange(2) % self.tokens)


@pytest.mark.sampled
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7])
def test_scores_of_an_embedding(shape, dtype, tokens):
    query = jax.random.normal(jax.random.key(0), shape)
    rule = hw.Rule("embed", SMALL_TILES)
    model = Scores(tokens, dtype)
    variables = jax.jit(model.init)(jax.random.key(1), query)
    analog = hw.eval_mode(hw.analogize(model, rule))
    found, expected = jax.jit(
        lambda v: (analog.apply(v, query), model.apply(v, query))
    )(variables)
    check(found, expected, exact=dtype is None)
    twin = NnxScores(tokens, dtype, nnx.Rngs(0))
    analog = hw.eval_mode(hw.analogize(twin, rule))
    found, expected = nnx.jit(lambda a, b: (a(query), b(query)))(analog, twin)
    check(found, expected, exact=dtype is None)


def test_scores_go_through_converters():
    query = jnp.array([[0.4, -0.6, 3.0, 0.0, 1.0]])
    rough = hw.Hardware(forward=hw.IOParameters(inp_res=0.5, inp_bound=1.0))
    model = Scores(7)
    variables = jax.jit(model.init)(jax.random.key(1), query)
    analog = hw.eval_mode(hw.analogize(model, hw.Rule("embed", rough)))
    found, looked_up = analog.apply(variables, query)
    levels = jnp.array([[0.0, -1.0, 1.0, 0.0, 1.0]])  # three: -1, 0, 1
    embedding = variables["params"]["embed"]["embedding"]
    np.testing.assert_allclose(found, levels @ embedding.T, atol=1e-6)
    np.testing.assert_array_equal(looked_up, embedding[:2])


@pytest.mark.parametrize(
    "options", [{}, {"base_module": True}, {"dtype": jnp.bfloat16}], ids=str
)
def test_lora(options):
    options = dict(options)
    rngs = nnx.Rngs(0)
    if options.pop("base_module", False):
        options["base_module"] = nnx.Linear(6, 5, rngs=rngs)
    start = nnx.initializers.normal(0.5)
    layer = nnx.LoRA(6, 4, 5, b_initializer=start, rngs=rngs, **options)
    analog = hw.eval_mode(hw.analogize(layer, SMALL_TILES))
    x = jax.random.normal(jax.random.key(0), (2, 3, 6))
    found, expected = nnx.jit(lambda a, b: (a(x), b(x)))(analog, layer)
    check(found, expected, exact="dtype" not in options)


def test_each_factor_of_a_lora_has_its_own_leaves():
    hardware = hw.Hardware(input_range=hw.InputRangeParameter(init_value=2.0))
    analog = hw.analogize(nnx.LoRA(6, 2, 5, rngs=nnx.Rngs(0)), hardware)
    assert hw.plan(analog)["lora_b"].leaf("probe") == "lora_b_probe"
    names = {name for name, _ in nnx.to_flat_state(nnx.state(analog, nnx.Param))}
    leaves = {
        f"{a}_{b}" for a in ("lora_a", "lora_b") for b in ("input_range", "probe")
    }
    assert {name[-1] for name in names} == {"lora_a", "lora_b"} | leaves
    analog.lora_a_input_range[...] = jnp.full((1, 1), 0.5)
    x = jnp.full((1, 6), 3.0)
    a, b = analog.lora_a[...], analog.lora_b[...]
    expected = jnp.clip(0.5 * jnp.ones((1, 6)) @ a, -2, 2) @ b
    np.testing.assert_allclose(hw.eval_mode(analog)(x), expected, atol=1e-6)
