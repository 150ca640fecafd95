"""Learned clip bounds: through `analogize`, the optimiser, chips and an export."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain import optim
from hwtrain.checkpoint import verify
from hwtrain.weights import WeightClipParameter, WeightModifierParameter

KEY = jax.random.key(4)
ROWS, COLUMNS = 4, 3
CLIP = WeightClipParameter(type="learnable_per_channel")
LEVELS = WeightModifierParameter(type="discretize", res=6.0, per_column=True)
TILES = hw.MappingParameter(max_input_size=2)
W = np.asarray(jax.random.normal(jax.random.key(0), (ROWS, COLUMNS)))
BOUND = np.float32([0.5, 0.8, 4.0])


def linen(hardware, mode=hw.train_mode):
    analog = hw.analogize(nn.Dense(COLUMNS, use_bias=False), hardware)
    params = hw.adopt(analog, {"kernel": jnp.asarray(W)}, jnp.eye(ROWS))
    model = mode(analog)

    def call(params, x=None):
        x = jnp.eye(ROWS) if x is None else x
        return model.apply({"params": params}, x, rngs={"mismatch": KEY})

    return analog, params, jax.jit(call)


def bounded(params, bound=BOUND):
    return {**params, "clip_bound": jnp.broadcast_to(bound, params["clip_bound"].shape)}


def lsq(steps=None):
    """Learned step size quantisation, by hand: weights, and the bounds' gradient."""
    q = 1.0 if steps is None else steps / 2
    level = W / BOUND * q
    rounded = level if steps is None else np.round(level)
    slope = np.where(np.abs(level) > q, np.sign(level) * q, rounded - level)
    gradient = slope.sum(0) / np.sqrt(q * W.size)
    return np.clip(rounded, -q, q) * BOUND / q, gradient


@pytest.mark.optimised
def test_init_and_adopt_start_at_the_largest_weights_of_tiles():
    hardware = hw.Hardware(clip=CLIP, mapping=TILES)
    analog, params, _ = linen(hardware)
    expected = np.abs(W).reshape(2, 2, COLUMNS).max(1)
    np.testing.assert_array_equal(params["clip_bound"], expected)
    layer = nn.Dense(COLUMNS, use_bias=False)
    plain = jax.jit(layer.init)(KEY, jnp.eye(ROWS))["params"]
    fresh = jax.jit(analog.init)(KEY, jnp.eye(ROWS))["params"]
    np.testing.assert_array_equal(fresh["kernel"], plain["kernel"])
    kernel = np.abs(plain["kernel"]).reshape(2, 2, COLUMNS).max(1)
    # XLA may compute the initial kernel once more for its maximum: another rounding.
    np.testing.assert_allclose(fresh["clip_bound"], kernel, rtol=2**-22)
    plan = hw.plan(analog, params, jnp.eye(ROWS))
    small = {**params, "clip_bound": params["clip_bound"] / 2}
    stripped = hw.strip(small, plan)
    assert sorted(stripped) == ["kernel"]
    limits = np.repeat(np.asarray(small["clip_bound"]), 2, 0)
    np.testing.assert_allclose(stripped["kernel"], np.clip(W, -limits, limits))
    with pytest.raises(ValueError, match="clip_bound is learned"):
        hw.strip(params)
    zero = hw.adopt(analog, {"kernel": jnp.zeros((ROWS, COLUMNS))}, jnp.eye(ROWS))
    np.testing.assert_array_equal(zero["clip_bound"], np.ones((2, COLUMNS)))


@pytest.mark.parametrize("mode", [hw.train_mode, hw.chip_mode, hw.eval_mode])
@pytest.mark.parametrize("modifier", [None, LEVELS], ids=["clip", "levels"])
def test_weights_are_clipped_in_every_mode_and_rounded_in_training(mode, modifier):
    _, params, call = linen(hw.Hardware(clip=CLIP, modifier=modifier), mode)
    levels = modifier is not None and mode is hw.train_mode
    expected, _ = lsq(6 if levels else None)
    np.testing.assert_allclose(call(bounded(params)), expected, atol=1e-6)


@pytest.mark.parametrize("modifier", [None, LEVELS], ids=["clip", "levels"])
def test_both_frameworks_give_the_gradient_of_learned_step_sizes(modifier):
    hardware = hw.Hardware(clip=CLIP, modifier=modifier)
    _, params, call = linen(hardware)
    grads = jax.grad(lambda p: call(p).sum())(bounded(params))
    _, expected = lsq(None if modifier is None else 6)
    passed = (np.abs(W) <= BOUND).astype(np.float32)
    plain = nnx.Linear(ROWS, COLUMNS, use_bias=False, rngs=nnx.Rngs(0))
    plain.kernel[...] = jnp.asarray(W)
    model = hw.analogize(plain, hardware)
    model.clip_bound[...] = jnp.asarray(BOUND)[None]
    state = nnx.to_pure_dict(nnx.grad(lambda m: m(jnp.eye(ROWS)).sum())(model))
    for found in (grads, state):
        np.testing.assert_allclose(found["clip_bound"][0], expected, rtol=1e-5)
        np.testing.assert_array_equal(found["kernel"], passed)
    (row,) = hw.inspect(model).rows
    assert row["clip"] == "learnable_per_channel 0.5 to 4"


def test_noise_after_levels_is_relative_to_the_clipped_weights():
    modifier = WeightModifierParameter(
        type="discretize_add_normal", res=6.0, per_column=True, std_dev=0.01
    )
    _, params, call = linen(hw.Hardware(clip=CLIP, modifier=modifier))
    levels, _ = lsq(6)
    noise = np.asarray(call(bounded(params))) - levels
    assert (noise != 0).all()
    assert (np.abs(noise) < 0.05 * np.abs(levels).max(0)).all()


def test_the_derived_scale_is_that_of_the_clipped_weights():
    mapping = hw.MappingParameter(weight_scaling_omega=1.0)
    io = hw.IOParameters(out_bound=1.0)
    _, params, call = linen(hw.Hardware(clip=CLIP, mapping=mapping, forward=io))
    # Far beyond its full scale, the ADC says one input times the largest weight: s.
    y = call(bounded(params, BOUND / 5), 1000 * jnp.eye(ROWS))
    np.testing.assert_allclose(y, np.sign(W) * BOUND.max() / 5, rtol=1e-5)


def test_bounds_learn_at_the_base_s_rate_and_do_not_decay():
    hardware = hw.Hardware(clip=CLIP)
    analog, params, call = linen(hardware)
    params = bounded(params)
    plan = hw.plan(analog, params, jnp.eye(ROWS))
    base = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    tx = optim.hardware_aware(base, plan)
    grads = jax.grad(lambda p: call(p).sum())(params)
    updates, state = tx.update(grads, tx.init(params), params)
    _, gradient = lsq()
    np.testing.assert_allclose(updates["clip_bound"][0], -0.1 * gradient, rtol=1e-5)
    assert "clip_bound" not in state.base
    # A gradient that would make it negative halves it.
    huge = {**grads, "clip_bound": jnp.full_like(grads["clip_bound"], 1e6)}
    updates, _ = tx.update(huge, state, params)
    np.testing.assert_allclose(updates["clip_bound"][0], -BOUND / 2, rtol=1e-6)


def test_training_moves_the_bounds_as_their_own_optimizer_says():
    analog, params, call = linen(hw.Hardware(clip=CLIP))
    params = bounded(params)
    plan = hw.plan(analog, params, jnp.eye(ROWS))
    tx = optim.hardware_aware(
        optax.adam(0.01), plan, clip_bound_optimizer=optax.scale_by_adam()
    )
    grads = jax.grad(lambda p: (call(p) ** 2).sum())(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    clipped = (np.abs(W) > BOUND).any(0)
    step = np.asarray(updates["clip_bound"])[0]
    np.testing.assert_allclose(step, np.where(clipped, -0.01, 0.0), rtol=1e-3)


def test_a_chip_has_the_clipped_weights_and_is_not_clipped_again(tmp_path):
    hardware = hw.Hardware(
        clip=CLIP,
        mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.2),
        converter=hw.SinglePairConductanceConverter(),
    )
    analog, params, call = linen(hardware, hw.chip_mode)
    params = bounded(params)
    plan = hw.plan(analog, params, jnp.eye(ROWS))
    clipped, _ = lsq()
    chip = hw.apply_mismatch(params, plan, hw.chip_key(3))
    ratio = np.asarray(chip["kernel"]) / clipped
    assert abs(ratio.std() - 0.2) < 0.1 and np.abs(ratio).max() > 1.05
    np.testing.assert_allclose(call(chip), chip["kernel"], rtol=1e-6)
    path = hw.export(tmp_path / "model", {"params": params}, plan, chip_seed=3)
    loaded = hw.load(path)
    np.testing.assert_allclose(loaded.params["kernel"], clipped, rtol=1e-6)
    np.testing.assert_array_equal(loaded.params["clip_bound"][0], BOUND)
    assert verify(path)["passed"]
    np.testing.assert_allclose(loaded.reconstruct("kernel"), clipped, atol=1e-6)
    np.testing.assert_allclose(call(loaded.chip(3)), chip["kernel"], rtol=1e-5)
    assert loaded.plan["kernel"].hardware == hardware


def test_a_programmed_chip_is_not_clipped_again():
    hardware = hw.Hardware(
        clip=CLIP,
        converter=hw.SinglePairConductanceConverter(),
        noise_model=hw.PCMLikeNoiseModel(prog_noise_scale=5.0),
    )
    analog, params, call = linen(hardware, hw.chip_mode)
    params = bounded(params)
    plan = hw.plan(analog, params, jnp.eye(ROWS))
    now = hw.program_chip(params, plan, hw.chip_key(1)).at(60.0)
    assert (np.abs(now["kernel"]) > BOUND).any()
    np.testing.assert_allclose(call(now), now["kernel"], rtol=1e-6)


def test_what_cannot_have_a_learned_bound_says_so():
    with pytest.raises(ValueError, match="leave one of the two out"):
        hw.Hardware(
            clip=CLIP, remap=hw.WeightRemapParameter(type="layerwise_symmetric")
        )
    with pytest.raises(ValueError, match="fixed_value=1.0 does nothing"):
        WeightClipParameter(type="learnable_per_channel", fixed_value=1.0)
    rule = hw.Rule(params="kernel", hardware=hw.Hardware(clip=CLIP))
    with pytest.raises(ValueError, match="a learned clip, which only a layer can have"):
        hw.analogize(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [rule])


def test_a_convolution_and_its_groups_learn_bounds_of_their_own():
    hardware = hw.Hardware(clip=CLIP)
    x = jax.random.normal(KEY, (2, 5, 4))
    plain = nnx.Conv(4, 6, (2,), feature_group_count=2, rngs=nnx.Rngs(0))
    model = hw.analogize(plain, hardware)
    kernel = np.asarray(plain.kernel[...])
    layer = nn.Conv(6, (2,), feature_group_count=2)
    analog = hw.analogize(layer, hardware)
    plain_params = {"kernel": plain.kernel[...], "bias": plain.bias[...]}
    params = hw.adopt(analog, plain_params, x)
    # [groups, row tiles, columns of a group]
    expected = np.abs(kernel).max((0, 1)).reshape(2, 1, 3)
    np.testing.assert_allclose(params["clip_bound"], expected, rtol=1e-6)
    half = {**params, "clip_bound": params["clip_bound"] / 2}
    model.clip_bound[...] = half["clip_bound"]
    limit = np.abs(kernel).max((0, 1)) / 2
    clipped = {**plain_params, "kernel": jnp.clip(plain.kernel[...], -limit, limit)}
    y = layer.apply({"params": clipped}, x)
    for found in (analog.apply({"params": half}, x), model(x)):
        np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_population_has_the_clipped_weights(framework):
    hardware = hw.Hardware(
        clip=CLIP,
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
        forward=hw.IOParameters(out_bound=100.0),
        mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.0),
        converter=hw.SinglePairConductanceConverter(),
    )
    analog, params, _ = linen(hardware)
    params = bounded(params)
    variables = {"params": params}
    if framework == "nnx":
        plain = nnx.Linear(ROWS, COLUMNS, use_bias=False, rngs=nnx.Rngs(0))
        analog, variables = hw.analogize(plain, hardware), params
    clipped, _ = lsq()

    def error(outputs, targets):
        return ((outputs - targets) ** 2).sum(-1)

    found = hw.evaluate.population(
        analog,
        variables,
        [(np.eye(ROWS, dtype=np.float32), clipped)],
        error,
        chips=2,
        key=KEY,
    )
    assert float(np.max(found.mean)) < 1e-9
