"""An empty batch gives empty outputs and zero gradients, in every layer and mode."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

D = 4
FULL = jnp.ones((2, 3, D))
NOISE = {"type": "add_normal", "std_dev": 0.05}
TILES = hw.MappingParameter(max_input_size=3, weight_scaling_omega=1.0)
RANGE = hw.InputRangeParameter(init_value=1.0, manage_output_clipping=True)


def hardware(noise=None, tiles=True, ranged=False, **forward):
    return hw.Hardware(
        modifier=hw.WeightModifierParameter(**NOISE, **(noise or {})),
        mapping=TILES if tiles else None,
        input_range=RANGE if ranged else None,
        forward=hw.IOParameters(**forward) if forward else None,
    )


CONVERTED = {"inp_bits": 4, "out_bits": 6, "out_bound": 4.0, "out_noise": 0.1}
CHIPS = {
    "noise": hw.Hardware(modifier=hw.WeightModifierParameter(**NOISE)),
    "one tile": hardware(tiles=False, ranged=True, **CONVERTED),
    "tiles": hardware(ranged=True, **CONVERTED),
    "managed": hardware(
        noise_management="abs_max",
        bound_management="iterative",
        out_bound=2.0,
        inp_bits=4,
        out_noise=0.1,
    ),
    "average": hardware(noise_management="average_abs_max", nm_decay=0.1),
    "per vector": hardware({"per_vector": True}, tiles=False, out_noise=0.1),
    "per example": hw.Hardware(
        modifier=hw.WeightModifierParameter(**NOISE, per_batch_sample=True),
        input_range=hw.InputRangeParameter(),
    ),
    "redrawn": hardware(
        {"redraw": True}, out_noise=0.1, w_noise=0.1, w_noise_type="additive_constant"
    ),
}
LINEN = {
    "dense": lambda: nn.Dense(D),
    "general": lambda: nn.DenseGeneral((2, 3), axis=(1, -1)),
    "einsum": lambda: nn.Einsum((D, D), "bti,io->bto"),
    "attention": lambda: nn.MultiHeadDotProductAttention(2),
    "conv": lambda: nn.Conv(D, (2,)),
    "grouped conv": lambda: nn.Conv(D, (2,), feature_group_count=2),
    "conv transpose": lambda: nn.ConvTranspose(D, (2,)),
    "conv local": lambda: nn.ConvLocal(D, (2,)),
    "lstm": lambda: nn.RNN(nn.LSTMCell(D)),
    "optimised lstm": lambda: nn.RNN(nn.OptimizedLSTMCell(D)),
}
R = nnx.Rngs
NNX = {
    "dense": lambda: nnx.Linear(D, D, rngs=R(0)),
    "general": lambda: nnx.LinearGeneral((3, D), (2, 3), axis=(1, -1), rngs=R(0)),
    "einsum": lambda: nnx.Einsum("bti,io->bto", (D, D), rngs=R(0)),
    "attention": lambda: nnx.MultiHeadAttention(2, D, decode=False, rngs=R(0)),
    "conv": lambda: nnx.Conv(D, D, (2,), rngs=R(0)),
    "grouped conv": lambda: nnx.Conv(D, D, (2,), feature_group_count=2, rngs=R(0)),
    "conv transpose": lambda: nnx.ConvTranspose(D, D, (2,), rngs=R(0)),
    "lora": lambda: nnx.LoRALinear(D, D, lora_rank=2, rngs=R(0)),
    "lstm": lambda: nnx.RNN(nnx.LSTMCell(D, D, rngs=R(0))),
}
MODES = {"train": hw.train_mode, "chip": hw.chip_mode, "eval": hw.eval_mode}


def linen(make, chip):
    """Returns for each mode: the gradients and the output of an empty batch, all but
    that of a batch that is not, of which only the shape is asked."""
    analog = hw.analogize(make(), chip)

    def apply(variables, x, mode):
        model = MODES[mode](analog)
        y = model.apply(variables, x, rngs={"mismatch": jax.random.key(1)})
        return y.sum(), y

    def run(variables, empty):
        gradient = jax.grad(apply, argnums=(0, 1), has_aux=True)
        return {mode: gradient(variables, empty, mode) for mode in MODES}

    variables = jax.jit(analog.init)(jax.random.key(0), FULL)
    full = jax.eval_shape(lambda v: apply(v, FULL, "train")[1], variables)
    return full, lambda empty: jax.jit(run)(variables, empty)


def nnx_layer(make, chip):
    analog = hw.analogize(make(), chip, rngs=nnx.Rngs(mismatch=1))

    def apply(model, x, mode):
        y = MODES[mode](model)(x)
        return y.sum(), y

    def run(model, empty):
        wrt = (nnx.DiffState(0, nnx.Param), 1)
        gradient = nnx.grad(apply, argnums=wrt, has_aux=True)
        return {mode: gradient(model, empty, mode) for mode in MODES}

    full = nnx.eval_shape(lambda model: model(FULL), analog)
    return full, lambda empty: nnx.jit(run)(analog, empty)


CASES = [
    pytest.param(
        run,
        make,
        chip,
        id=f"{run.__name__}-{layer}-{chip}",
        marks=() if often else pytest.mark.nightly,
    )
    for run, layers in ((linen, LINEN), (nnx_layer, NNX))
    for layer, make in layers.items()
    for chip in CHIPS
    for often in [
        layer == "dense"
        or (layer, chip) == ("grouped conv", "one tile")
        # Of the cells with gates, that of NNX is the quickest.
        or (chip == "tiles" and not (run is linen and "lstm" in layer))
    ]
]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("run", "make", "chip"), CASES)
def test_it_gives_an_empty_output_and_zero_gradients(run, make, chip):
    full, call = run(make, CHIPS[chip])
    for gradients, y in call(FULL[:0]).values():
        assert y.shape == (0, *full.shape[1:])
        assert y.dtype == full.dtype
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("chip", CHIPS)
def test_an_empty_axis_beside_the_batch_is_one_too(chip):
    _, call = linen(LINEN["dense"], CHIPS[chip])
    for gradients, y in call(FULL[:, :0]).values():
        assert y.shape == (2, 0, D)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_an_update_by_an_empty_batch_moves_no_range():
    analog = hw.analogize(nn.Dense(D), CHIPS["tiles"])
    params = analog.init(jax.random.key(0), FULL)["params"]
    tx = hw.optim.hardware_aware(optax.sgd(0.1), hw.plan(analog, params, FULL))

    def loss(params):
        rngs = {"mismatch": jax.random.key(1)}
        return analog.apply({"params": params}, FULL[:0], rngs=rngs).sum()

    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
