"""Every layer of the dense family: each effect acts, and the whole workflow runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain import checkpoint, evaluate
from hwtrain._arrays import paths
from hwtrain._flax.functional import as_function

TILES = hw.MappingParameter(
    max_input_size=3, max_output_size=2, weight_scaling_omega=1.0
)
NOISE = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
WEIGHTS = {"modifier": NOISE, "mapping": TILES}
ALL = {
    **WEIGHTS,
    "forward": hw.IOParameters(inp_bits=4, out_bits=6, out_bound=4.0, out_noise=0.1),
    "input_range": hw.InputRangeParameter(init_value=0.7),
    "mismatch": hw.MismatchParameter(type="add_normal", std_dev=0.1),
    "converter": hw.SinglePairConductanceConverter(),
}
X = jax.random.normal(jax.random.key(0), (2, 4, 6))
TOKENS = jnp.array([[0, 3, 1], [4, 4, 2]])


class Tied(nn.Module):
    """Embeds tokens, and scores them against the same embedding."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(5, 6, name="embed")
        return embed.attend(embed(tokens))


class NnxTied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 6, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(self.embed(tokens))


class Case(NamedTuple):
    """A model with one kind of layer."""

    model: Callable[[], Any]
    arrays: int
    kind: str = "dense"
    inputs: jax.Array = X

    @property
    def looked_up(self):
        return self.kind == "embed"


def lora():
    start = nnx.initializers.normal(0.5)
    return nnx.LoRALinear(6, 5, lora_rank=2, b_initializer=start, rngs=nnx.Rngs(0))


LINEN = {
    "general": Case(lambda: nn.DenseGeneral((2, 3), axis=(1, -1)), 1),
    "batched": Case(lambda: nn.DenseGeneral(3, batch_dims=(0,)), 1),
    "einsum": Case(lambda: nn.Einsum((6, 2, 3), "bte,ehd->bthd"), 1, "einsum"),
    "attention": Case(lambda: nn.MultiHeadDotProductAttention(2), 4),
    "embed": Case(Tied, 1, "embed", TOKENS),
    "lstm": Case(lambda: nn.RNN(nn.LSTMCell(5)), 8),
    "optimized_lstm": Case(lambda: nn.RNN(nn.OptimizedLSTMCell(5)), 8),
    "gru": Case(lambda: nn.RNN(nn.GRUCell(5)), 6),
    "mgu": Case(lambda: nn.RNN(nn.MGUCell(5)), 4),
    "simple": Case(lambda: nn.RNN(nn.SimpleCell(5)), 2),
}
NNX = {
    "general": Case(
        lambda: nnx.LinearGeneral((4, 6), (2, 3), axis=(1, -1), rngs=nnx.Rngs(0)), 1
    ),
    "batched": Case(
        lambda: nnx.LinearGeneral(6, 3, batch_axis={0: 2}, rngs=nnx.Rngs(0)), 1
    ),
    "einsum": Case(
        lambda: nnx.Einsum("bte,ehd->bthd", (6, 2, 3), (2, 3), rngs=nnx.Rngs(0)),
        1,
        "einsum",
    ),
    "attention": Case(
        lambda: nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0)), 4
    ),
    "embed": Case(lambda: NnxTied(nnx.Rngs(0)), 1, "embed", TOKENS),
    "lora": Case(lora, 3),
    "lstm": Case(lambda: nnx.RNN(nnx.LSTMCell(6, 5, rngs=nnx.Rngs(0))), 8),
    "optimized_lstm": Case(
        lambda: nnx.RNN(nnx.OptimizedLSTMCell(6, 5, rngs=nnx.Rngs(0))), 2
    ),
    "gru": Case(lambda: nnx.RNN(nnx.GRUCell(6, 5, rngs=nnx.Rngs(0))), 2),
    "simple": Case(lambda: nnx.RNN(nnx.SimpleCell(6, 5, rngs=nnx.Rngs(0))), 2),
}
DEFAULT = {"linen": ("batched",), "nnx": ("einsum", "embed", "lora")}
EVERY = [
    pytest.param(
        case,
        id=f"{framework}-{name}",
        marks=() if name in DEFAULT[framework] else pytest.mark.nightly,
    )
    for framework, cases in (("linen", LINEN), ("nnx", NNX))
    for name, case in cases.items()
]


def wrapped(case, parts):
    """Returns the analog model and its variables, `None` for NNX."""
    model, chip = case.model(), hw.Hardware(**parts)
    if case.looked_up:
        chip = hw.Rule("embed", hw.Hardware(**{**parts, "input_range": None}))
    if isinstance(model, nnx.Module):
        return hw.analogize(model, chip, rngs=nnx.Rngs(mismatch=0)), None
    analog = hw.analogize(model, chip)
    return analog, jax.jit(analog.init)(jax.random.key(1), case.inputs)


def two_draws(case, mode, parts):
    """Returns the outputs of two steps."""
    analog, variables = wrapped(case, parts)
    function, tree = as_function(analog, mode, variables)
    keys = jax.random.split(jax.random.key(2), 2)
    run = jax.jit(lambda key: function(tree, key, case.inputs))
    return np.asarray(run(keys[0])), np.asarray(run(keys[1]))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", EVERY)
def test_weight_noise_and_periphery_are_on_and_every_gradient_is_finite(case):
    first, second = two_draws(case, "train", WEIGHTS)
    assert (first != second).any()
    analog, variables = wrapped(case, ALL)
    # In chip mode the weights are fixed, so all differences come from the periphery.
    first, second = two_draws(case, "chip", ALL)
    assert (first != second).any()

    function, tree = as_function(analog, "train", variables)

    def loss(params):
        y = function({**tree, "params": params}, jax.random.key(3), case.inputs)
        return jnp.square(y).mean()

    grads = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(tree["params"]))
    chex.assert_tree_all_finite(grads)
    probes = {p: g for p, g in paths.leaves(grads).items() if p.endswith("probe")}
    assert len(probes) == (0 if case.looked_up else case.arrays)
    for path, sums in probes.items():  # [..., 0] counts the inputs of every tile
        assert (np.asarray(sums)[..., 0] > 0).all(), path


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", EVERY)
def test_plan_inspection_parameters_and_checkpoint(case, tmp_path):
    analog, variables = wrapped(case, ALL)
    linen = variables is not None
    call = (variables, case.inputs) if linen else ()
    plan = hw.plan(analog, *call)
    assert len(plan) == case.arrays
    assert case.kind in {weight.kind for weight in plan.weights}
    rows = hw.inspect(analog, *call).rows
    assert {row["weight"] for row in rows} == set(plan)
    assert all("out_noise 0.1" in row["periphery"] for row in rows)
    assert ("in attend only" in rows[0]["periphery"]) == case.looked_up

    own = variables["params"] if linen else nnx.state(analog, nnx.Param)
    plain = hw.strip(own)
    added = set(paths.leaves(own)) - set(paths.leaves(plain))
    assert len(added) == (0 if case.looked_up else 2 * case.arrays)
    again = hw.adopt(analog, plain, *call[1:])
    chex.assert_trees_all_equal(paths.leaves(again), paths.leaves(own))

    state = variables if linen else nnx.split(analog)[1]
    path = checkpoint.export(tmp_path / "model", state, plan, chip_seed=7)
    stored = checkpoint.load(path)
    assert stored.plan == plan
    assert checkpoint.verify(path)["weights"].keys() == set(plan)
    chip = paths.leaves(stored.chip(7))
    for name in plan:
        assert (chip[name] != paths.leaves(stored.params)[name]).any(), name


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", EVERY)
def test_a_population_of_chips_spreads(case):
    analog, variables = wrapped(case, ALL)

    def metric(outputs, zeros):
        return jnp.square(outputs).reshape(outputs.shape[0], -1).mean(-1)

    batches = [(case.inputs, jnp.zeros(len(case.inputs)))]
    found = evaluate.population(
        analog, variables, batches, metric, chips=3, key=jax.random.key(0)
    )
    assert np.isfinite(found.values).all()
    assert len(set(np.ravel(found.values))) == 3


@pytest.mark.nightly
def test_the_optimised_lstm_is_an_lstm_with_all_effects():
    hardware = hw.Hardware(**ALL)
    outputs, gradients = [], []
    for name in ("lstm", "optimized_lstm"):
        analog = hw.analogize(LINEN[name].model(), hardware)
        variables = jax.jit(analog.init)(jax.random.key(1), X)

        @jax.jit
        def loss(params, analog=analog):
            rngs = {"mismatch": jax.random.key(3)}
            y = analog.apply({"params": params}, X, rngs=rngs)
            return jnp.square(y).mean(), y

        (_, y), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        outputs.append(y)
        gradients.append(
            {p.partition("/")[2]: g for p, g in paths.leaves(grads).items()}
        )
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_an_embedding_takes_no_range_and_is_digital_without_a_rule(framework):
    model = LINEN["embed"].model() if framework == "linen" else NnxTied(nnx.Rngs(0))

    def reached(rules):
        analog = hw.analogize(model, rules)
        return (
            analog
            if framework == "nnx"
            else jax.jit(analog.init)(jax.random.key(0), TOKENS)
        )

    ranged = hw.Hardware(input_range=hw.InputRangeParameter())
    with pytest.raises(
        ValueError, match=r"embed/embedding: Rule\('.*'\) gives it input_range, which"
    ):
        reached([hw.Rule(".*", ranged)])
    with pytest.raises(ValueError, match="nothing in this model can be analog"):
        reached(hw.Hardware(**WEIGHTS))
