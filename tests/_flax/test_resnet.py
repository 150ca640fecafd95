"""A ResNet in the style of Flax's examples: trained, exported and evaluated."""

import functools

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
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.05),
    clip=hw.WeightClipParameter(type="layer_gaussian", sigma=2.5),
    input_range=hw.InputRangeParameter(init_value=3.0, init_from_data=2),
    forward=hw.IOParameters(inp_bits=8, out_bits=8, out_bound=12.0, out_noise=0.02),
    mapping=hw.MappingParameter(max_input_size=24, weight_scaling_omega=1.0),
    mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.02),
    converter=hw.SinglePairConductanceConverter(),
)


class ResidualBlock(nn.Module):
    filters: int
    conv: type
    norm: type
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="proj")(x)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    stages: tuple[int, ...] = (1,)
    filters: int = 4
    classes: int = 3

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9
        )
        x = conv(self.filters, (3, 3), name="init")(x)
        x = nn.relu(norm(name="norm_init")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                strides = (2, 2) if j == 0 else (1, 1)
                x = ResidualBlock(self.filters * 2 ** (i + 1), conv, norm, strides)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, name="head")(x)


class NnxBlock(nnx.Module):
    def __init__(self, inputs, filters, strides, *, rngs):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(inputs, filters, (3, 3), strides)
        self.norm1 = nnx.BatchNorm(filters, momentum=0.9, rngs=rngs)
        self.conv2 = conv(filters, filters, (3, 3))
        self.norm2 = nnx.BatchNorm(filters, momentum=0.9, rngs=rngs)
        project = inputs != filters
        self.proj = conv(inputs, filters, (1, 1), strides) if project else None

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.proj is None else self.proj(x)))


class NnxResNet(nnx.Module):
    def __init__(self, *, rngs):
        self.init = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(4, 8, 2, rngs=rngs)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.init(x))), (2, 2), (2, 2), "SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


# Pictures of stripes: along one axis, along the other, and of both.
LABELS = jnp.arange(24) % 3
PHASE = jnp.linspace(0, 3, 24)[:, None, None, None]
WAVE = jnp.arange(8.0)
ROWS = jnp.cos(1.6 * WAVE[:, None, None] + PHASE) * (LABELS != 1)[:, None, None, None]
COLUMNS = jnp.cos(1.6 * WAVE[:, None] + PHASE) * (LABELS != 0)[:, None, None, None]
IMAGES = ROWS + COLUMNS + jnp.array([0.0, 0.1, -0.1])


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def log_likelihood(logits, labels):
    return -optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def check_trained(losses, before, after, plan):
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after)
    assert min(jax.tree.leaves(moved)) > 0  # every running mean and variance
    assert len(plan) == 5 and all(weight.ranged for weight in plan.weights)


def check_chips(analog, path, variables, plan, call_kwargs):
    """Exports, loads, and evaluates ten chips from the checkpoint."""
    checkpoint = hw.load(hw.export(path, variables, plan, chip_seed=3))
    assert checkpoint.plan == plan
    found = hw.evaluate.population(
        analog,
        checkpoint,
        [(IMAGES, LABELS)],
        log_likelihood,
        chips=10,
        key=jax.random.key(5),
        call_kwargs=call_kwargs,
    )
    assert found.mean > np.log(1 / 3) and found.std > 0


def linen_training():
    """Returns the analog model, its variables and plan, the optimizer and its step.

    The list holds an entry for each time that the step is traced.
    """
    analog = hw.analogize(ResNet(), CHIP)
    variables = jax.jit(analog.init)(jax.random.key(0), IMAGES)
    plan = hw.plan(analog, variables, IMAGES)
    tx = hw.optim.hardware_aware(optax.adam(5e-3), plan)
    traces = []

    @jax.jit
    def step(params, stats, state, key):
        traces.append(1)

        def loss(params):
            logits, new = analog.apply(
                {"params": params, "batch_stats": stats},
                IMAGES,
                rngs={"mismatch": key},
                mutable=["batch_stats"],
            )
            return cross_entropy(logits), new["batch_stats"]

        (value, stats_), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats_, state, value

    return analog, variables, plan, tx, step, traces


def test_a_step_trains_all_and_feels_the_noise():
    _, variables, plan, tx, step, _ = linen_training()
    before, stats = variables["params"], variables["batch_stats"]
    state = tx.init(before)
    after, new, _, value = step(before, stats, state, jax.random.key(1))
    *_, other = step(before, stats, state, jax.random.key(2))
    assert np.isfinite(value) and value != other
    assert len(plan) == 5 and all(weight.ranged for weight in plan.weights)
    assert all(weight in paths.leaves(after) for weight in plan)
    for path, leaf in paths.leaves(after).items():
        same = (leaf == paths.leaves(before)[path]).all()
        assert np.isfinite(leaf).all(), path
        # The last normalisation of the block starts at a scale of zero, which keeps
        # what is before it from being trained in the first step.
        assert not same or path.startswith("ResidualBlock_0/") or "probe" in path, path
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new, stats)
    assert all(jax.tree.leaves(moved))


@pytest.mark.nightly
def test_linen(tmp_path):
    analog, variables, plan, tx, step, traces = linen_training()
    plain = ResNet().init(jax.random.key(0), IMAGES)
    assert jax.tree.structure(hw.strip(variables["params"])) == jax.tree.structure(
        plain["params"]
    )
    params, stats = variables["params"], variables["batch_stats"]
    state, losses, before = tx.init(params), [], stats
    for number in range(20):
        key = jax.random.fold_in(jax.random.key(1), number)
        params, stats, state, value = step(params, stats, state, key)
        losses.append(float(value))
    assert len(traces) == 1
    check_trained(losses, before, stats, plan)
    variables = {"params": params, "batch_stats": stats}
    check_chips(analog, tmp_path / "model", variables, plan, {"train": False})


@pytest.mark.nightly
def test_nnx(tmp_path):
    model = NnxResNet(rngs=nnx.Rngs(0))
    analog = hw.analogize(model, CHIP, rngs=nnx.Rngs(mismatch=1))
    plan = hw.plan(analog)
    before = nnx.to_pure_dict(nnx.state(analog, nnx.BatchStat))
    optimizer = nnx.Optimizer(
        analog, hw.optim.hardware_aware(optax.adam(5e-3), plan), wrt=nnx.Param
    )

    @nnx.jit
    def step(analog, optimizer):
        value, grads = nnx.value_and_grad(lambda m: cross_entropy(m(IMAGES)))(analog)
        optimizer.update(analog, grads)
        return value

    losses = [float(step(analog, optimizer)) for _ in range(20)]
    after = nnx.to_pure_dict(nnx.state(analog, nnx.BatchStat))
    check_trained(losses, before, after, plan)
    # Another model of the class: weights and statistics come from the checkpoint.
    other = NnxResNet(rngs=nnx.Rngs(7))
    other = hw.chip_mode(hw.analogize(other, CHIP, rngs=nnx.Rngs(mismatch=1)))
    check_chips(other, tmp_path / "model", nnx.state(analog), plan, {})


@pytest.mark.nightly
def test_without_noise_the_analog_resnet_is_the_plain_one():
    near = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=512.0),
        forward=hw.IOParameters(out_noise=1e-9),
        mapping=CHIP.mapping,
    )
    model = ResNet()
    analog = hw.analogize(model, near)
    variables = analog.init(jax.random.key(0), IMAGES)
    plain = {**variables, "params": hw.strip(variables["params"])}
    y, _ = analog.apply(
        variables,
        IMAGES,
        rngs={"mismatch": jax.random.key(1)},
        mutable=["batch_stats"],
    )
    expected, _ = model.apply(plain, IMAGES, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, atol=1e-4)
