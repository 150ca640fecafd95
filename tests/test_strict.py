"""hwtrain works with JAX's strict rank promotion and dtype promotion.

Functions are traced and not run if possible, because JAX's checks happen in the trace.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.devices import GlobalDriftCompensation, StuckParameter
from hwtrain.dynapse import DynapSim
from hwtrain.evaluate import population
from hwtrain.objectives._chips import tail_mean

KEY = jax.random.key(0)
SCALED = hw.MappingParameter(weight_scaling_omega=1.0)
TILES = dataclasses.replace(SCALED, max_input_size=4, max_output_size=3)
LEARNED = dataclasses.replace(TILES, learn_out_scaling=True)
RANGE = hw.InputRangeParameter(init_from_data=2)
ADC = {"out_bits": 6, "out_bound": 4.0}
CONVERTERS = {"inp_bits": 6, **ADC}
STOCHASTIC = {"inp_sto_round": True, "out_sto_round": True}
DISTORTED = {
    **{"out_noise": 0.1, "out_noise_std": 0.1, "out_asymmetry": 0.1, "out_scale": 2.0},
    **{"out_nonlinearity": 0.5, "out_nonlinearity_std": 0.1, "slope_calibration": 0.5},
    **{"w_noise": 0.1, "w_noise_type": "pcm_read"},
}


def modifier(kind, **options):
    return hw.WeightModifierParameter(type=kind, **options)


def io(*options, **more):
    return hw.IOParameters(
        **{k: v for each in options for k, v in each.items()}, **more
    )


CHIPS = {
    "converted": {
        "modifier": modifier("add_normal", std_dev=0.1, per_column=True),
        "clip": hw.WeightClipParameter(type="layer_gaussian", per_column=True),
        "input_range": RANGE,
        "forward": io(CONVERTERS, DISTORTED),
        "mapping": dataclasses.replace(SCALED, learn_out_scaling=True),
    },
    "on tiles": {
        "modifier": modifier("mult_normal", std_dev=0.1, redraw=True),
        "clip": hw.WeightClipParameter(type="average_channel_max"),
        "remap": hw.WeightRemapParameter(
            type="channelwise_symmetric", max_scale_range=3.0, max_scale_ref=0.1
        ),
        "input_range": dataclasses.replace(RANGE, manage_output_clipping=True),
        "forward": io(CONVERTERS, DISTORTED, STOCHASTIC, inp_noise=0.1, ir_drop=1.0),
        "mapping": LEARNED,
    },
    "straight through": {
        "modifier": modifier("discretize", res=0.1),
        "clip": hw.WeightClipParameter(type="learnable_per_channel"),
        "input_range": dataclasses.replace(RANGE, straight_through=True),
        "mapping": TILES,
    },
    "dynamic": {
        "modifier": modifier("dorefa", res=0.1, sto_round=True),
        "input_range": hw.InputRangeParameter(dynamic=True),
        "forward": io({"inp_bits": 6}, r_series=0.1, v_offset_std=0.1),
        "mapping": TILES,
    },
    "iterative": {
        "modifier": modifier("discretize_add_normal", res=0.1, std_dev=0.1),
        "clip": hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
        "forward": io(
            CONVERTERS, bound_management="iterative", noise_management="abs_max"
        ),
        "mapping": TILES,
    },
    "worst case": {
        "modifier": modifier("prog_noise", std_dev=1.0),
        "forward": io(
            CONVERTERS,
            bound_management="iterative_worst_case",
            noise_management="abs_max_np_sum",
        ),
        "mapping": SCALED,
    },
    "shifted": {
        "modifier": modifier("poly", std_dev=0.1, reparameterized=True),
        "forward": io(CONVERTERS, bound_management="shift", noise_management="max"),
        "mapping": TILES,
    },
    "constant": {
        "modifier": modifier("drop_connect", pdrop=0.1),
        "input_range": RANGE,
        "forward": io(
            {"w_noise": 0.1, "w_noise_type": "additive_constant"},
            {"noise_management": "constant", "nm_thres": 2.0},
            inp_asymmetry=0.1,
        ),
        "mapping": TILES,
    },
    "average": {
        "modifier": modifier("pcm_noise", std_dev=1.0),
        "forward": io(CONVERTERS, noise_management="average_abs_max"),
        "mapping": TILES,
    },
    "per vector": {
        "modifier": modifier("poly", std_dev=0.1, per_vector=True),
        "input_range": RANGE,
        "mapping": TILES,
    },
    "per example": {
        "modifier": modifier("add_normal", std_dev=0.1, per_batch_sample=True),
        "drift": hw.SimpleDriftParameter(nu=0.1),
        "mapping": SCALED,
    },
    "drifting": {
        "modifier": modifier("copy", copy_last_column=True),
        "drift": hw.DriftParameter(nu=0.1, nu_dtod=0.1, nu_std=0.1),
        "mapping": SCALED,
    },
}
CHIPS = {name: hw.Hardware(**parts) for name, parts in CHIPS.items()}


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


class LinenNet(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        options = {"dtype": self.dtype, "param_dtype": self.dtype}
        x = nn.relu(nn.Conv(5, (2,), **options)(x))
        return nn.Dense(3, **options)(x)


class NnxNet(nnx.Module):
    def __init__(self, dtype):
        options = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
        self.a = nnx.Linear(6, 3, **options)

    def __call__(self, x):
        return nnx.relu(self.a(x))


def inputs(dtype):
    return jnp.ones((2, 4, 6), dtype)


def optimizer(plan, chip):
    key = KEY if chip.drift is not None and chip.drift.draws else None
    base = optax.sgd(0.1, momentum=0.9)
    return hw.optim.hardware_aware(base, plan, drift_key=key)


def step(apply, tx, params, x):
    """Returns the outputs, and the parameters after an update."""

    def loss(params):
        y = apply(params, x)
        return jnp.sum(y.astype(jnp.float32)), y

    gradients, y = jax.grad(loss, has_aux=True)(params)
    updates, _ = tx.update(gradients, tx.init(params), params)
    return y, optax.apply_updates(params, updates)


def check(dtype, params, found):
    y, after = found
    assert y.dtype == dtype
    kinds = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (params, after)]
    assert kinds[0] == kinds[1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CHIPS)
def test_a_step_of_linen(name):
    dtype, chip = jnp.bfloat16, CHIPS[name]
    analog, x = hw.analogize(LinenNet(dtype), chip), inputs(dtype)
    params = jax.eval_shape(analog.init, KEY, x)["params"]
    tx = optimizer(hw.plan(analog, params, x), chip)

    def apply(params, x):
        return analog.apply({"params": params}, x, rngs={"mismatch": KEY})

    found = jax.eval_shape(lambda *args: step(apply, tx, *args), params, x)
    check(dtype, params, found)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CHIPS)
def test_a_step_of_nnx(name):
    dtype, chip = jnp.float16, CHIPS[name]
    analog = hw.analogize(NnxNet(dtype), chip, rngs=nnx.Rngs(mismatch=0))
    tx = optimizer(hw.plan(analog), chip)
    graph, params, rest = nnx.split(analog, nnx.Param, ...)

    def run(params, rest, x):
        def apply(params, x):
            # A copy: the variables of a state belong to the trace that made them.
            return nnx.merge(graph, params, jax.tree.map(lambda a: a, rest))(x)

        return step(apply, tx, params, x)

    found = jax.eval_shape(run, params, rest, inputs(dtype))
    check(dtype, params, found)


class Attend(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Embed(7, 6, x.dtype, param_dtype=x.dtype, name="embed").attend(x)


def linen_layers(dtype):
    options = {"dtype": dtype, "param_dtype": dtype}
    return {
        "general": nn.DenseGeneral((2, 3), axis=(-2, -1), **options),
        "einsum": nn.Einsum((6, 4), "bti,io->bto", use_bias=False, **options),
        "groups": nn.Conv(4, (2,), strides=2, feature_group_count=2, **options),
        "transposed": nn.ConvTranspose(4, (2,), **options),
        "local": nn.ConvLocal(4, (2,), **options),
        "attention": nn.MultiHeadDotProductAttention(num_heads=2, **options),
        # The orthogonal matrices of the default are none of bfloat16.
        "recurrent": nn.RNN(
            nn.OptimizedLSTMCell(
                3, recurrent_kernel_init=nn.initializers.lecun_normal(), **options
            )
        ),
        "attend": Attend(),
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", linen_layers(None))
def test_every_layer_of_linen(name):
    x = inputs(jnp.bfloat16)
    # An embedding is analog by a rule alone, and has no range.
    rules = [hw.Rule("embed", CHIPS["worst case"])]
    chip = rules if name == "attend" else CHIPS["converted"]
    analog = hw.analogize(linen_layers(x.dtype)[name], chip)
    variables = jax.eval_shape(analog.init, KEY, x)

    def loss(variables, x):
        y = analog.apply(variables, x, rngs={"mismatch": KEY})
        return jnp.sum(y.astype(jnp.float32))

    jax.eval_shape(jax.grad(loss), variables, x)


def nnx_layers(dtype, rngs):
    options = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
    cell = {**options, "recurrent_kernel_init": nnx.initializers.lecun_normal()}
    return {
        "general": lambda: nnx.LinearGeneral((4, 6), 3, axis=(-2, -1), **options),
        "einsum": lambda: nnx.Einsum("bti,io->bto", (6, 4), **options),
        "groups": lambda: nnx.Conv(6, 4, (2,), feature_group_count=2, **options),
        "transposed": lambda: nnx.ConvTranspose(6, 4, (2,), **options),
        "attention": lambda: nnx.MultiHeadAttention(2, 6, decode=False, **options),
        "recurrent": lambda: nnx.RNN(nnx.GRUCell(6, 3, **cell)),
        "lora": lambda: nnx.LoRALinear(
            *(6, 4), lora_rank=2, lora_dtype=dtype, lora_param_dtype=dtype, **options
        ),
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", nnx_layers(None, None))
def test_every_layer_of_nnx(name):
    # Flax's own attention mixes dtypes where it is given half precision.
    x = inputs(jnp.float32 if name == "attention" else jnp.bfloat16)
    layer = nnx_layers(x.dtype, nnx.Rngs(0))[name]()
    chip = CHIPS["converted"]
    analog = hw.analogize(layer, chip, rngs=nnx.Rngs(mismatch=0))
    graph, params, rest = nnx.split(analog, nnx.Param, ...)

    def run(params, rest, x):
        def loss(params):
            y = nnx.merge(graph, params, jax.tree.map(lambda a: a, rest))(x)
            return jnp.sum(y.astype(jnp.float32))

        return jax.grad(loss)(params)

    jax.eval_shape(run, params, rest, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_spiking_neurons(dtype):
    layer = nn.RNN(DynapSim(features=3))
    x = jnp.ones((2, 5, 3), dtype)
    variables = jax.eval_shape(layer.init, KEY, x)
    run = jax.grad(lambda v, x: jnp.sum(layer.apply(v, x)))
    jax.eval_shape(run, variables, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mismatch_and_objectives(dtype):
    tree = {"w": jnp.ones((2, 3), dtype), "log_Itau": jnp.zeros(3, dtype)}
    deviate = hw.mismatch_generator(jax.tree.map(lambda _: True, tree))
    found = jax.eval_shape(deviate, tree, KEY)
    assert jax.tree.map(lambda a, b: a.dtype == b.dtype, found, tree)
    assert jax.eval_shape(lambda v: tail_mean(v, 0.5), tree["w"][0]).dtype == dtype


ON_CHIP = hw.Hardware(
    input_range=hw.InputRangeParameter(),
    forward=hw.IOParameters(inp_bits=8, out_noise=0.1),
    mapping=TILES,
    mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.1),
    converter=hw.SinglePairConductanceConverter(g_max=25.0),
    noise_model=hw.PCMLikeNoiseModel(),
    drift_compensation=GlobalDriftCompensation(),
    stuck=StuckParameter(at_g_min=0.1),
)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_chips(framework, tmp_path):
    x, variables = inputs(jnp.bfloat16), None
    if framework == "linen":
        analog = hw.analogize(nn.Dense(3, x.dtype, param_dtype=x.dtype), ON_CHIP)
        variables = jax.jit(analog.init)(KEY, x)
    else:
        layer = nnx.Linear(6, 3, param_dtype=x.dtype, rngs=nnx.Rngs(0))
        analog = hw.analogize(layer, ON_CHIP, rngs=nnx.Rngs(mismatch=0))
    found = hw.calibrate(analog, variables, [x], method="moving_quantile")
    variables = None if framework == "nnx" else found
    chips = population(
        *(analog, variables, [(x,)], mean_of_examples),
        **{"chips": 2, "key": KEY, "times_s": (0.0, 3600.0)},
    )
    assert np.ptp(chips.values) > 0
    given = (analog,) if variables is None else (variables, hw.plan(analog, found, x))
    hw.export(tmp_path / "chip", *given, chip_seed=0)
    chip = hw.load(tmp_path / "chip").chip(0, t_s=60.0)
    assert chip["kernel"].dtype == x.dtype


def mean_of_examples(y):
    return jnp.mean(y.astype(jnp.float32), axis=(-2, -1))
