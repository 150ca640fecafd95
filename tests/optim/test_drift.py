"""Drift of weights during training, inside `hardware_aware`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, serialization

import hwtrain as hw
from hwtrain import optim
from hwtrain._parts.fields import from_dict, to_dict

KEY = jax.random.key(4)
SHAPE = (3, 2)
NU, DT = 0.1, 50.0
DRIFT = hw.SimpleDriftParameter(nu=NU, t_0=10.0, dt_s=DT)
DEVICE = hw.DriftParameter(
    nu=NU, t_0=10.0, dt_s=DT, nu_dtod=0.2, nu_std=0.1, w_noise_std=0.01
)
W = jax.random.normal(jax.random.key(0), SHAPE)


def start(hardware, base, key=None, dtype=jnp.float32):
    """Returns a Dense's parameters, its optimiser, and a jitted update."""
    x = jnp.ones((1, SHAPE[0]))
    analog = hw.analogize(nn.Dense(SHAPE[1], use_bias=False), hardware)
    params = hw.adopt(analog, {"kernel": W.astype(dtype)}, x)
    tx = optim.hardware_aware(base, hw.plan(analog, params, x), drift_key=key)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return params, tx.init(params), step


def run(params, state, step, gradients):
    for gradient in gradients:
        grads = jax.tree.map(jnp.zeros_like, params) | {"kernel": gradient}
        params, state = step(params, state, grads)
    assert step._cache_size() == 1  # nothing compiles again between steps
    return params, state


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-7)]
)
def test_weights_that_nobody_changes_drift_by_the_power_law(dtype, rtol):
    # In bfloat16 too: the rounding of an update is not taken for a change.
    params, state, step = start(hw.Hardware(drift=DRIFT), optax.sgd(0.0), dtype=dtype)
    begun = np.float32(params["kernel"])
    params, state = run(params, state, step, [jnp.ones(SHAPE, dtype)] * 6)
    expected = begun * (6 * DT / 10.0) ** -NU
    np.testing.assert_allclose(np.float32(params["kernel"]), expected, rtol=rtol)
    np.testing.assert_array_equal(state.drift.weights[0].set_at, np.zeros(SHAPE))


def test_a_weight_that_is_updated_starts_anew():
    params, state, step = start(hw.Hardware(drift=DRIFT), optax.sgd(1.0))
    zero, pull = jnp.zeros(SHAPE), jnp.zeros(SHAPE).at[0, 0].set(0.5)
    params, _ = run(params, state, step, [zero, pull, zero, zero])
    # The third and fourth step drift it for 50 s and 100 s since it was written.
    expected = np.asarray(W) * (4 * DT / 10.0) ** -NU
    written = np.asarray(W)[0, 0] * (DT / 10.0) ** -NU - 0.5
    expected[0, 0] = written * (2 * DT / 10.0) ** -NU
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5)


def test_an_update_below_the_tolerance_does_not_reach_the_device():
    drift = hw.SimpleDriftParameter(nu=NU, t_0=10.0, dt_s=DT, reset_tol=0.1)
    params, state, step = start(hw.Hardware(drift=drift), optax.sgd(1.0))
    pulls = jnp.full(SHAPE, 0.05).at[0, 0].set(0.15)
    params, _ = run(params, state, step, [pulls])
    expected = np.asarray(W) * (DT / 10.0) ** -NU
    expected[0, 0] = W[0, 0] - 0.15
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5)


def test_bounds_hold_and_scales_follow():
    hardware = hw.Hardware(
        drift=hw.DriftParameter(nu=NU, w_noise_std=0.0),
        clip=hw.WeightClipParameter(type="fixed_value", fixed_value=0.4),
        remap=hw.WeightRemapParameter(type="layerwise_symmetric"),
    )
    params, state, step = start(hardware, optax.sgd(1.0))
    params, state = run(params, state, step, [jnp.zeros(SHAPE)])
    largest = np.abs(params["kernel"]).max()
    assert largest <= 0.4
    np.testing.assert_allclose(params["mapping_scale"], [[largest]], rtol=1e-6)


def test_it_resumes_where_it_was():
    hardware = hw.Hardware(drift=DEVICE)
    gradients = [0.1 * jax.random.normal(k, SHAPE) for k in jax.random.split(KEY, 4)]
    gradients[1] = gradients[3] = jnp.zeros(SHAPE)
    params, state, step = start(hardware, optax.adam(1e-3), KEY)
    whole, _ = run(params, state, step, gradients)
    half = run(params, state, step, gradients[:2])
    saved = serialization.to_bytes(half)
    params, state, step = start(hardware, optax.adam(1e-3), KEY)
    resumed = serialization.from_bytes((params, state), saved)
    resumed, _ = run(*jax.tree.map(jnp.asarray, resumed), step, gradients[2:])
    chex.assert_trees_all_equal(whole, resumed)


def test_exponents_belong_to_devices_and_noise_to_steps():
    params, state, _ = start(hw.Hardware(drift=DEVICE), optax.sgd(0.0), KEY)
    _, again, _ = start(hw.Hardware(drift=DEVICE), optax.sgd(0.0), KEY)
    _, other, _ = start(hw.Hardware(drift=DEVICE), optax.sgd(0.0), jax.random.key(5))
    nu, same, different = (s.drift.weights[0].nu for s in (state, again, other))
    np.testing.assert_array_equal(nu, same)
    assert (np.asarray(nu) != np.asarray(different)).all()
    assert len(np.unique(nu)) == nu.size


def test_it_acts_in_both_frameworks():
    hardware = hw.Hardware(drift=DRIFT)
    params, state, step = start(hardware, optax.sgd(0.0))
    params, _ = run(params, state, step, [jnp.zeros(SHAPE)] * 2)
    plain = nnx.Linear(*SHAPE, use_bias=False, rngs=nnx.Rngs(0))
    plain.kernel[...] = W
    model = hw.analogize(plain, hardware)
    tx = optim.hardware_aware(optax.sgd(0.0), hw.plan(model))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(2):
        grads = nnx.grad(lambda model: model(jnp.ones((1, SHAPE[0]))).sum())(model)
        optimizer.update(model, grads)
    expected = np.asarray(W) * (2 * DT / 10.0) ** -NU
    np.testing.assert_allclose(model.kernel[...], expected, rtol=1e-5)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5)
    (row,) = hw.inspect(model).rows
    assert row["training drift"] == "simple, nu 0.1 from 10 s, 50 s per step"


def test_a_key_is_asked_for_where_it_is_needed_and_only_there():
    with pytest.raises(ValueError, match="drift_key=jax.random.key"):
        start(hw.Hardware(drift=DEVICE), optax.sgd(0.0))
    with pytest.raises(ValueError, match="leave drift_key out"):
        start(hw.Hardware(drift=DRIFT), optax.sgd(0.0), KEY)


@pytest.mark.parametrize("drift", [DRIFT, DEVICE], ids=["simple", "device"])
def test_a_chip_that_drifts_round_trips(drift):
    chip = hw.Hardware(drift=drift)
    assert from_dict(hw.Hardware, to_dict(chip)) == chip


@pytest.mark.parametrize("drift", [DRIFT, DEVICE], ids=["simple", "device"])
def test_weights_and_state_can_be_donated_together(drift):
    analog = hw.analogize(nn.Dense(4), hw.Hardware(drift=drift))
    x = jnp.ones((2, 8))
    params = analog.init(jax.random.key(0), x)["params"]
    key = KEY if drift.draws else None
    tx = optim.hardware_aware(optax.sgd(0.1), hw.plan(analog, params, x), drift_key=key)
    state = tx.init(params)

    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
        params, state = step(params, state)
    assert jnp.isfinite(params["kernel"]).all()
