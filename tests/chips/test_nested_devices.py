"""Noise models around noise models act in every kind of layer, each by its equation."""

import dataclasses
import json
import math
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.checkpoint import verify
from hwtrain.evaluate import population
from hwtrain.train._toml import as_toml

T_S, SCALE_S, RELATIVE = 2e4, 1e5, 0.05
QUIET = hw.StateIndependentNoiseModel(
    prog_noise_scale=0.0, drift_scale=0.0, read_noise_scale=0.0
)


def written(within):
    # Steps are below twice the tolerance, so that no pulse can miss a target.
    steps = {"set_step_us": 0.4, "reset_step_us": 0.4, "most_pulses": 90}
    flat = {"set_exponent": 0.0, "reset_exponent": 0.0, "tolerance_us": 0.25}
    return hw.WriteVerifyNoiseModel(noise_model=within, g_high=40.0, **steps, **flat)


def failing(within):
    return hw.RetentionFailures(
        noise_model=within, law="weibull", scale_s=SCALE_S, shape=1.0
    )


def disturbed(within):
    reads = {
        "read_voltage_v": 0.3,
        "read_time_s": 1e-7,
        "reads_per_s": 1e5,
        "temperature_k": 320.0,
    }
    return hw.ReadDisturb(noise_model=within, **reads)


def hot(within):
    return hw.AtTemperature(
        noise_model=within, temperature_k=320.0, conduction_ev=(0.1,), retention_ev=0.2
    )


def remembering(within):
    band = {"f_min_hz": 1e-4, "f_max_hz": 1.0}
    return hw.FlickerNoiseModel(noise_model=within, relative_std=RELATIVE, **band)


NESTS = {
    "noise outside": remembering(hot(failing(disturbed(written(QUIET))))),
    "noise inside": hot(disturbed(failing(written(remembering(QUIET))))),
}

ONE_NIGHTLY = [
    "noise outside",
    pytest.param("noise inside", marks=pytest.mark.nightly),
]


def hardware(devices, **parts):
    pair = hw.SinglePairConductanceConverter(g_max=devices.g_max)
    return hw.Hardware(noise_model=devices, converter=pair, **parts)


def in_numpy():
    """Returns the factors of temperature and of reads, and the share that fails."""
    gap = (1 / 300.0 - 1 / 320.0) / 8.617333262e-5
    aged = T_S * math.exp(0.2 * gap)
    law = disturbed(QUIET)
    kt = 8.617333262e-5 * law.temperature_k
    p = law.rate * math.exp(law.acceleration_ev_per_v * 0.3 / kt)
    tau = law.t_0_s * law.onset ** (1 / p)
    reads = max(1e5 * 1e-7 * aged / tau, 1) ** -p
    return math.exp(0.1 * gap), reads, 1 - math.exp(-aged / SCALE_S)


def require_all(plan, nominal, chip):
    """Raises unless weights of a chip follow from all equations at once.

    Args:
      plan: the plan.
      nominal: nominal weights by path.
      chip: function from a time, and the number of the key of a read or `None`, to
        weights by path.
    """
    heat, reads, fail = in_numpy()
    assert 1.1 < heat and reads < 0.9 and 0.1 < fail < 0.6
    fresh, quiet, noisy = chip(0.0, None), chip(T_S, None), chip(T_S, 1)
    again = chip(T_S, 2)
    for weight in plan.weights:
        w = np.asarray(nominal[weight.path], np.float64)
        first, later, read, other = (
            np.asarray(x[weight.path], np.float64) for x in (fresh, quiet, noisy, again)
        )
        top = np.abs(w).max()
        coarse = 2**-7 if nominal[weight.path].dtype == jnp.bfloat16 else 1e-5
        # Written within 0.25 of 25 µS, but not exactly.
        error = np.abs(first / heat - w).max() / top
        assert 0.002 < error < 0.0101 + coarse
        lost = later == 0
        devices = np.abs(first) > 0.02 * top  # others were not written at all
        rate = lost[devices].mean()
        assert abs(rate - fail) < 4.5 * np.sqrt(fail * (1 - fail) / devices.sum())
        alive = devices & ~lost
        np.testing.assert_allclose(
            later[alive], reads * first[alive], rtol=2 * coarse, atol=1e-6 * top
        )
        np.testing.assert_array_equal(read[lost], 0)
        np.testing.assert_array_equal(read, other)  # its memory is the chip's
        noise = read[alive] / later[alive] - 1
        count = alive.sum()
        assert abs(noise.std() / RELATIVE - 1) < 4.5 / np.sqrt(2 * count) + coarse
        assert abs(noise.mean()) < 4.5 * RELATIVE / np.sqrt(count) + coarse


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.tanh(nn.Dense(16)(x)), None

        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "mismatch": True},
            length=3,
        )
        return scanned(name="stack")(x, None)[0]


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(24, name="dense"))(x)


class NnxStack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(16, 16, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def step(x, layer):
            return jnp.tanh(layer(x))

        return step(x, self.layers)


class NnxVmapped(NnxStack):
    def __call__(self, x):
        return nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(self.layers, x)


def drawn(*shape):
    return jax.random.normal(jax.random.key(3), shape)


LINEN = {
    "dense": (nn.Dense(24), drawn(4, 24)),
    "bfloat16": (nn.Dense(24, dtype=jnp.bfloat16), drawn(4, 24)),
    "stored in bfloat16": (nn.Dense(24, param_dtype=jnp.bfloat16), drawn(4, 24)),
    "conv": (nn.Conv(12, (3, 3)), drawn(2, 6, 6, 5)),
    "groups": (nn.Conv(24, (3,), feature_group_count=2), drawn(2, 8, 12)),
    "transposed": (nn.ConvTranspose(12, (3,), strides=(2,)), drawn(2, 6, 12)),
    "scan": (Stack(), drawn(4, 16)),
    "einsum": (
        nn.Einsum((24, 3, 8), "ab,bcd->acd", use_bias=False),
        drawn(4, 24),
    ),
    "attention": (nn.MultiHeadDotProductAttention(4), drawn(2, 5, 16)),
    "recurrent": (nn.RNN(nn.OptimizedLSTMCell(12)), drawn(2, 4, 12)),
    "derived": (Normed(), drawn(4, 24)),
}
NNX = {
    "linear": (lambda r: nnx.Linear(24, 24, rngs=r), drawn(4, 24)),
    "bfloat16": (
        lambda r: nnx.Linear(24, 24, dtype=jnp.bfloat16, rngs=r),
        drawn(4, 24),
    ),
    "conv": (lambda r: nnx.Conv(5, 12, (3, 3), rngs=r), drawn(2, 6, 6, 5)),
    "scan": (NnxStack, drawn(4, 16)),
    "vmap": (NnxVmapped, drawn(4, 16)),
    "einsum": (lambda r: nnx.Einsum("ab,bcd->acd", (24, 3, 8), rngs=r), drawn(4, 24)),
    "attention": (
        lambda r: nnx.MultiHeadAttention(4, 16, decode=False, rngs=r),
        drawn(2, 5, 16),
    ),
}


def of_chip(params, plan):
    """Returns a function from a time and the number of a key to weights by path."""
    chip = hw.program_chip(params, plan, hw.chip_key(5))

    def at(t_s, number):
        key = None if number is None else jax.random.key(number)
        return paths.leaves(chip.at(t_s, key))

    return at


def linen(name, devices):
    module, x = LINEN[name]
    analog = hw.analogize(module, hardware(devices))
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    if name == "derived":
        variables = hw.materialize(analog, variables, x)
    return analog, variables, hw.plan(analog, variables, x), x


def nnx_model(name, devices):
    build, x = NNX[name]
    analog = hw.analogize(build(nnx.Rngs(0)), hardware(devices))
    params = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
    return analog, params, hw.plan(analog), x


def check_linen(name, nest):
    analog, variables, plan, x = linen(name, NESTS[nest])
    params = variables["params"]
    require_all(plan, paths.leaves(params), of_chip(params, plan))
    # Training derives its weights from the stored ones, not from the materialized.
    hw.assert_active(analog, jax.jit(analog.init)(jax.random.key(0), x), x)


def check_nnx(name, nest):
    analog, params, plan, x = nnx_model(name, NESTS[nest])
    require_all(plan, paths.leaves(params), of_chip(params, plan))
    hw.assert_active(analog, None, x)


@pytest.mark.parametrize("name", ["bfloat16", "scan"])
def test_nests_act_in_linen(name):
    analog, variables, plan, _ = linen(name, NESTS["noise outside"])
    params = variables["params"]
    require_all(plan, paths.leaves(params), of_chip(params, plan))


@pytest.mark.parametrize("name", ["conv", "vmap"])
def test_nests_act_in_nnx(name):
    _, params, plan, _ = nnx_model(name, NESTS["noise inside"])
    require_all(plan, paths.leaves(params), of_chip(params, plan))


@pytest.mark.nightly
@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("name", LINEN)
def test_nests_act_and_are_proved_in_every_layer_of_linen(name, nest):
    check_linen(name, nest)


@pytest.mark.nightly
@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("name", NNX)
def test_nests_act_and_are_proved_in_every_layer_of_nnx(name, nest):
    check_nnx(name, nest)


@pytest.mark.parametrize("nest", ONE_NIGHTLY)
def test_an_export_of_nests_comes_back_as_it_was(nest, tmp_path):
    analog, variables, plan, x = linen("dense", NESTS[nest])
    text = f"hardware = {as_toml(to_dict(plan.weights[0].hardware))}"
    assert (
        from_dict(hw.Hardware, tomllib.loads(text)["hardware"])
        == plan.weights[0].hardware
    )
    path = hw.export(tmp_path / "model", variables, plan, chip_seed=5)
    assert verify(path)["passed"]
    stored = hw.load(path)
    assert stored.plan.weights[0].hardware == plan.weights[0].hardware
    ours = of_chip(variables["params"], plan)
    for number in (None, 1):
        key = None if number is None else jax.random.key(number)
        found = paths.leaves(stored.chip(5, t_s=T_S, key=key))["kernel"]
        expected = ours(T_S, number)["kernel"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    names = json.loads((path / "manifest.json").read_text())["layers"][0]
    inside = names["weight"]["hardware"]["noise_model"]["noise_model"]
    assert inside["type"] == NESTS[nest].noise_model.type


@pytest.mark.parametrize("nest", ONE_NIGHTLY)
def test_seeds_and_times_may_be_mapped(nest):
    _, variables, plan, _ = linen("dense", NESTS[nest])
    params = variables["params"]

    def weight(seed, t_s):
        chip = hw.program_chip(params, plan, hw.chip_key(seed))
        return chip.at(t_s, jax.random.key(1))["kernel"]

    seeds, times = jnp.arange(3, dtype=jnp.uint32), jnp.asarray([0.0, 60.0, T_S])
    over_times = jax.vmap(weight, in_axes=(None, 0))
    mapped = jax.jit(jax.vmap(over_times, in_axes=(0, None)))(seeds, times)
    for n, m in ((0, 1), (2, 2)):
        one = weight(np.uint32(n), float(times[m]))
        np.testing.assert_allclose(mapped[n, m], one, rtol=1e-5, atol=1e-6)
    assert len({float(jnp.abs(each).sum()) for each in mapped.reshape(9, -1)}) == 9


MESH = """
import sys
sys.path.insert(0, {folder!r})
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from test_nested_devices import NESTS, T_S, hardware, nn, hw, population
mesh = jax.make_mesh(
    (4, 2), ("d", "m"), axis_types=(jax.sharding.AxisType.{kind},) * 2)
x = jax.random.normal(jax.random.key(0), (16, 16))
class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="o")(nn.relu(nn.Dense(16, name="h")(x)))
def size(y):
    return jnp.abs(y).mean(-1)
for nest in NESTS.values():
    tiles = hw.MappingParameter(max_input_size=8, max_output_size=8)
    analog = hw.analogize(Model(), hardware(nest, mapping=tiles))
    params = analog.init(jax.random.key(1), x)["params"]
    plan = hw.plan(analog, params, x)
    def chip(params, t_s):
        chip = hw.program_chip(params, plan, hw.chip_key(3))
        return chip.at(t_s, jax.random.key(2))
    one = jax.jit(chip)(params, T_S)
    options = dict(chips=2, key=jax.random.key(0), times_s=(0.0, T_S))
    alone = population(analog, {{"params": params}}, [(x,)], size, **options).values
    spread = jax.tree.map(
        lambda w: jax.device_put(
            w, NamedSharding(mesh, P("d", "m") if w.ndim == 2 else P())), params)
    with jax.set_mesh(mesh):
        found = jax.jit(chip)(spread, T_S)
        inputs = [(jax.device_put(x, P("d")),)]
        many = population(analog, {{"params": spread}}, inputs, size, **options)
    for a, b in zip(*map(jax.tree.leaves, (found, one))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(many.values, alone, rtol=1e-4)
    assert (alone[:, 0] != alone[:, 1]).all()
print("equal")
"""


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_nests_are_the_same_on_a_mesh_of_eight_devices(on_devices, kind):
    folder = str(__file__).rpartition("/")[0]
    on_devices(8, MESH.format(folder=folder, kind=kind))


def test_a_population_is_evaluated_with_all_of_a_nest():
    analog, variables, plan, x = linen("dense", NESTS["noise outside"])
    found = population(
        analog,
        variables,
        [(x,)],
        lambda y: jnp.abs(y).mean(-1),
        chips=3,
        key=jax.random.key(0),
        times_s=(0.0, T_S),
    )
    bias = variables["params"]["bias"]
    for seed in range(3):
        chip = hw.program_chip(variables["params"], plan, hw.chip_key(seed))
        # The memory of reads depends on no key, and nothing else is drawn at a read.
        for n, t_s in enumerate((0.0, T_S)):
            y = x @ chip.at(t_s, jax.random.key(9))["kernel"] + bias
            expected = jnp.abs(y).mean()
            np.testing.assert_allclose(found.values[seed, n], expected, rtol=1e-4)


def test_a_nest_without_its_parts_is_another_chip():
    """Each part changes reads: none is lost between the others."""
    _, variables, plan, _ = linen("dense", NESTS["noise outside"])
    whole = of_chip(variables["params"], plan)(T_S, 1)["kernel"]
    model, parts = NESTS["noise outside"], []
    while hasattr(model, "noise_model"):
        parts.append(model)
        model = model.noise_model
    for left_out in parts:
        nest = QUIET
        for part in reversed(parts):
            if part is not left_out:
                nest = dataclasses.replace(part, noise_model=nest)
        _, _, other, _ = linen("dense", nest)
        found = of_chip(variables["params"], other)(T_S, 1)["kernel"]
        assert np.abs(found - whole).max() > 1e-3 * np.abs(whole).max()
