"""A Vision Transformer in the style of Flax's examples: trained and put on chips."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths

CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.03),
    input_range=hw.InputRangeParameter(init_value=3.0, init_from_data=2),
    forward=hw.IOParameters(inp_bits=8, out_bits=8, out_bound=12.0, out_noise=0.02),
    mapping=hw.MappingParameter(max_input_size=10, weight_scaling_omega=1.0),
    mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.05),
    converter=hw.SinglePairConductanceConverter(),
)
WIDTH, CLASSES = 8, 2
# Pictures of stripes along one axis or the other.
LABELS = jnp.arange(12) % CLASSES
WAVE = jnp.cos(1.6 * jnp.arange(8.0) + jnp.linspace(0, 3, 12)[:, None])
ROWS = jnp.broadcast_to(WAVE[:, :, None], (12, 8, 8))
IMAGES = jnp.where(LABELS[:, None, None] == 0, ROWS, ROWS.swapaxes(1, 2))[..., None]


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, y)
        x = x + nn.Dropout(0.1)(y, deterministic=deterministic)
        y = nn.gelu(nn.Dense(2 * WIDTH, name="mlp_in")(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH, name="mlp_out")(y)


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.Conv(WIDTH, (4, 4), strides=(4, 4), padding="VALID", name="embedding")(
            images
        )
        x = x.reshape(len(x), -1, WIDTH)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x += self.param("positions", nn.initializers.normal(0.02), (1, 5, WIDTH))
        x = EncoderBlock(name="block")(x, deterministic=not train)
        return nn.Dense(CLASSES, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


class NnxEncoderBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.mlp_in = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.mlp_out = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.mlp_out(nnx.gelu(self.mlp_in(self.norm2(x))))


class NnxVisionTransformer(nnx.Module):
    def __init__(self, rngs):
        self.embedding = nnx.Conv(
            1, WIDTH, (4, 4), strides=(4, 4), padding="VALID", rngs=rngs
        )
        self.cls = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        start = 0.02 * jax.random.normal(rngs.params(), (1, 5, WIDTH))
        self.positions = nnx.Param(start)
        self.block = NnxEncoderBlock(rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = self.embedding(images).reshape(len(images), -1, WIDTH)
        x = jnp.concatenate([jnp.tile(self.cls[...], (len(x), 1, 1)), x], axis=1)
        return self.head(self.norm(self.block(x + self.positions[...]))[:, 0])


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).astype(jnp.float32)


def check(losses, analog, variables, plan):
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    assert len(plan) == 8  # patches, four projections, two layers, head
    assert all(weight.ranged for weight in plan.weights)
    chips = hw.evaluate.population(
        analog, variables, [(IMAGES, LABELS)], accuracy, chips=4, key=jax.random.key(5)
    )
    assert chips.mean > 0.6


@pytest.mark.nightly
def test_linen():
    analog = hw.analogize(VisionTransformer(), CHIP)
    variables = jax.jit(analog.init)(jax.random.key(0), IMAGES)
    plan = hw.plan(analog, variables, IMAGES)
    tx = hw.optim.hardware_aware(optax.adam(2e-2), plan)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            rngs = {"mismatch": key, "dropout": jax.random.fold_in(key, 1)}
            return cross_entropy(
                analog.apply({"params": params}, IMAGES, train=True, rngs=rngs)
            )

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, losses = variables["params"], []
    state = tx.init(params)
    for number in range(20):
        key = jax.random.fold_in(jax.random.key(1), number)
        params, state, value = step(params, state, key)
        losses.append(float(value))
    check(losses, analog, {"params": params}, plan)


def nnx_training():
    """Returns the analog model, its plan, the optimizer and its step."""
    rngs = nnx.Rngs(params=0, dropout=1)
    analog = hw.analogize(NnxVisionTransformer(rngs), CHIP, rngs=nnx.Rngs(mismatch=1))
    plan = hw.plan(analog)
    optimizer = nnx.Optimizer(
        analog, hw.optim.hardware_aware(optax.adam(2e-2), plan), wrt=nnx.Param
    )

    @nnx.jit
    def step(analog, optimizer):
        value, grads = nnx.value_and_grad(lambda m: cross_entropy(m(IMAGES)))(analog)
        optimizer.update(analog, grads)
        return value

    return analog, plan, optimizer, step


@pytest.mark.nightly
def test_a_step_trains_all_and_feels_the_noise():
    analog, plan, optimizer, step = nnx_training()
    before = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
    values = [float(step(analog, optimizer))]
    after = paths.leaves(nnx.to_pure_dict(nnx.state(analog, nnx.Param)))
    assert len(plan) == 8 and all(weight.ranged for weight in plan.weights)
    for path, leaf in paths.leaves(before).items():
        assert np.isfinite(after[path]).all(), path
        assert (leaf != after[path]).any() != path.endswith("probe"), path
    nnx.update(analog, nnx.State(before))
    values.append(float(step(analog, optimizer)))
    assert np.isfinite(values).all() and values[0] != values[1]


@pytest.mark.nightly
def test_nnx():
    analog, plan, optimizer, step = nnx_training()
    losses = [float(step(analog, optimizer)) for _ in range(20)]
    check(losses, analog, None, plan)
