"""Models of the benchmarks: plain Flax models, and the hardware they run on."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import hwtrain
from hwtrain._plan.hardware import Hardware


class Squares(nn.Module):
    """Square dense layers, without activations between them unless asked for."""

    width: int
    depth: int
    activations: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.Dense(self.width)(x)
            x = nn.relu(x) if self.activations else x
        return x


class Convolutions(nn.Module):
    """Convolutions of 3 x 3 taps that keep the number of channels."""

    channels: int
    depth: int
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            conv = nn.Conv(self.channels, (3, 3), feature_group_count=self.groups)
            x = nn.relu(conv(x))
        return x


class TransformerBlock(nn.Module):
    """A Transformer block: attention and a feed-forward part, each after a norm."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=self.heads)(y, y)
        y = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
        return x + nn.Dense(self.width)(nn.gelu(y))


class Cnn(nn.Module):
    """Two convolutions with pooling and two dense layers, as for images of digits.

    The pooling averages, since the gradient of a maximum takes XLA's CPU backend nearly
    half of a plain step.
    """

    channels: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        for channels in (self.channels, 2 * self.channels):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class ResNetBlock(nn.Module):
    """A ResNet block: two normalised 3 x 3 convolutions with a skip connection."""

    channels: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.GroupNorm()(nn.Conv(self.channels, (3, 3))(x)))
        return nn.relu(x + nn.GroupNorm()(nn.Conv(self.channels, (3, 3))(y)))


NOISE = hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.05)
PER_VECTOR = hwtrain.WeightModifierParameter(
    type="add_normal", std_dev=0.05, per_vector=True
)
REDRAWN = hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.05, redraw=True)
OUTPUT_NOISE = hwtrain.IOParameters(
    inp_bits=8, out_bits=8, out_bound=10.0, out_noise=0.04
)
CLIP = hwtrain.WeightClipParameter(type="layer_gaussian", sigma=2.5)
RANGE = hwtrain.InputRangeParameter()
CONVERTERS = hwtrain.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0)
DEVICE = {
    "converter": hwtrain.SinglePairConductanceConverter(g_max=25.0),
    "noise_model": hwtrain.PCMLikeNoiseModel(g_max=25.0),
    "drift_compensation": hwtrain.GlobalDriftCompensation(),
}
DAY_S = 86400.0
NOISY = dataclasses.replace(CONVERTERS, out_noise=0.06)


def chip(tile: int | None = None, **parts) -> Hardware:
    """Returns hardware with parts, with converters scaled by each tile's maximum."""
    if "forward" in parts or tile is not None:
        parts["mapping"] = hwtrain.MappingParameter(
            max_input_size=tile,
            max_output_size=tile,
            weight_scaling_omega=1.0 if "forward" in parts else 0.0,
        )
    return Hardware(**parts)


def training_step(*args, **options) -> tuple[Callable[[], object], float]:
    """Returns a function that runs one step, and the step's memory in bytes.

    Takes the arguments of `compiled_step`.
    """
    run, compiled = compiled_step(*args, **options)
    memory = compiled.memory_analysis()
    return run, float(memory.temp_size_in_bytes + memory.argument_size_in_bytes)


def compiled_step(
    module: nn.Module,
    hardware: Hardware | None,
    x: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    fast: bool = False,
) -> tuple[Callable[[], object], jax.stages.Compiled]:
    """Returns a function that runs one step, and its compiled program.

    The step is forward, backward and update, compiled once, with its state donated.

    Args:
      module: the plain module.
      hardware: the hardware to run it on; `None` for the plain step.
      x: a batch.
      optimizer: the plain optimiser.
      fast: draw with `hwtrain.fast_prng`, the default of keys; else `threefry_prng`.
    """
    model = module if hardware is None else hwtrain.analogize(module, hardware)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    if hardware is not None:
        optimizer = hwtrain.optim.hardware_aware(
            optimizer, hwtrain.plan(model, params, x)
        )
    generator = hwtrain.fast_prng if fast else hwtrain.threefry_prng
    key = jax.random.key(1, impl=generator)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, x, key):
        params, opt_state, count = state
        rngs = {"mismatch": jax.random.fold_in(key, count)}

        def loss(params):
            return jnp.mean(jnp.square(model.apply({"params": params}, x, rngs=rngs)))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, count + 1), value

    state = (params, optimizer.init(params), jnp.zeros((), jnp.int32))
    compiled = step.lower(state, x, key).compile()

    def run():
        nonlocal state
        state, value = compiled(state, x, key)
        return state[2], value

    return run, compiled
