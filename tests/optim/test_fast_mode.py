"""Ranges that follow extremes (`fast_mode`), as aihwkit-lightning has them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain._arrays import paths

KEY = jax.random.key(0)
CASES = {"ema": 0, "ema_short": 1, "extremes": 2, "tiles": 3}


def layer(width=3, limit=None, forward=None, **options):
    hardware = hw.Hardware(
        input_range=hw.InputRangeParameter(fast_mode=True, **options),
        mapping=hw.MappingParameter(max_input_size=limit, max_output_size=None),
        forward=forward,
    )
    return hw.analogize(nn.Dense(width, use_bias=False), hardware)


@functools.partial(jax.jit, static_argnums=0)
def squares(analog, params, x):
    def loss(params, x):
        y = analog.apply({"params": params}, x)
        return jnp.sum(y**2), y

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("forward", [None, hw.IOParameters(out_bound=1e6)])
def test_ranges_outputs_and_gradients_are_lightnings(golden, name, forward):
    case = golden("lightning_statistics")["fast_mode"][CASES[name]]
    options = {key: case[key] for key in ("act_range_momentum", "init_from_data")}
    analog = layer(limit=case["max_input_size"], forward=forward, **options)
    params = jax.jit(analog.init)(KEY, jnp.ones((1, 5)))["params"]
    params["kernel"] = jnp.float32(case["weight"]).T
    plan = hw.plan(analog, params, jnp.ones((1, 5)))
    assert plan["kernel"].row_sizes == tuple(case["splits"])
    tx = hw.optim.input_range_learning(plan, 0.0)
    state, update = tx.init(params), jax.jit(tx.update)
    ranges = np.float32(case["input_range"])[..., None]
    for step, x in enumerate(np.float32(case["x"])):
        # Lightning updates the range before it clips, hwtrain after the step.
        params["input_range"] = jnp.asarray(ranges[step])
        (_, y), (grads, d_x) = squares(analog, params, x)
        np.testing.assert_allclose(y, case["y"][step], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(d_x, case["x_grad"][step], rtol=1e-5, atol=1e-5)
        d_r = np.float32(case["range_grad"][step])[:, None]
        np.testing.assert_allclose(grads["input_range"], d_r, rtol=1e-4, atol=1e-4)
        updates, state = update(grads, state, params)
        found = params["input_range"] + updates["input_range"]
        np.testing.assert_allclose(found, ranges[step], rtol=1e-5)
        assert (paths.leaves(updates)["probe"] == 0).all()


def test_it_learns_by_its_gradient_alone_afterwards():
    analog = layer(init_from_data=0, init_value=0.5)
    x = jax.random.normal(KEY, (8, 5))
    params = jax.jit(analog.init)(KEY, x)["params"]
    _, (grads, _) = squares(analog, params, x)
    assert (grads["input_range"] != 0).all()
    tx = hw.optim.input_range_learning(hw.plan(analog, params, x), 1e-3)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected = -1e-3 * grads["input_range"]
    np.testing.assert_allclose(updates["input_range"], expected, rtol=1e-6)
    fixed = layer(init_from_data=0, init_value=0.5, learn_input_range=False)
    tx = hw.optim.input_range_learning(hw.plan(fixed, params, x), 1e-3)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert (updates["input_range"] == 0).all()


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(5, use_bias=False)
        return shared(x[0]), shared(x[1])


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (3,), padding="VALID")(x[..., None])


@pytest.mark.parametrize("momentum", [0.5, -1.0])
def test_calls_are_pooled_by_the_mean_of_their_extremes(momentum):
    ranged = hw.InputRangeParameter(fast_mode=True, act_range_momentum=momentum)
    analog = hw.analogize(Twice(), hw.Hardware(input_range=ranged))
    batches = np.random.default_rng(0).normal(0.3, [[1.0], [2.0]], (4, 2, 40))
    batches = np.float32(batches.reshape(4, 2, 8, 5))
    params = jax.jit(analog.init)(KEY, batches[0])["params"]
    tx = hw.optim.input_range_learning(hw.plan(analog, params, batches[0]), 0.1)
    state, known = tx.init(params), None

    @jax.jit
    def step(params, state, x):
        outputs = lambda p: analog.apply({"params": p}, x)[0].sum()  # noqa: E731
        both = lambda p: outputs(p) + analog.apply({"params": p}, x)[1].sum()  # noqa: E731
        updates, state = tx.update(jax.grad(both)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    for x in batches:
        params, state = step(params, state, x)
        each = np.array([x.max((1, 2)).mean(), x.min((1, 2)).mean()])
        if known is None:
            known = each
        elif momentum < 0:
            known = np.array([max(known[0], each[0]), min(known[1], each[1])])
        else:
            known = momentum * known + (1 - momentum) * each
        found = paths.leaves(params)["Dense_0/input_range"]
        np.testing.assert_allclose(found, np.abs(known).max(), rtol=1e-5)


def test_a_convolution_follows_its_windows():
    ranged = hw.InputRangeParameter(fast_mode=True)
    analog = hw.analogize(Convolution(), hw.Hardware(input_range=ranged))
    x = jnp.float32([[-0.5, 2.0, 0.1, 0.2, -3.0]])
    params = jax.jit(analog.init)(KEY, x)["params"]
    tx = hw.optim.input_range_learning(hw.plan(analog, params, x), 0.1)
    grads = jax.grad(lambda p: analog.apply({"params": p}, x).sum())(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    found = paths.leaves(jax.tree.map(jnp.add, params, updates))["Conv_0/input_range"]
    np.testing.assert_allclose(found, 3.0, rtol=1e-6)


@pytest.mark.nightly
def test_devices_of_a_mesh_see_the_extremes_of_the_whole_batch(on_devices):
    on_devices(
        8,
        """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
import hwtrain as hw
from jax.sharding import AxisType, NamedSharding, PartitionSpec
ranged = hw.InputRangeParameter(fast_mode=True)
analog = hw.analogize(nn.Dense(3), hw.Hardware(input_range=ranged))
x = jax.random.normal(jax.random.key(0), (16, 5)) ** 3
params = analog.init(jax.random.key(1), x)["params"]
tx = hw.optim.input_range_learning(hw.plan(analog, params, x), 0.1)
@jax.jit
def step(params, x):
    grads = jax.grad(lambda p: analog.apply({"params": p}, x).sum())(params)
    return tx.update(grads, tx.init(params), params)[0]["input_range"]
one = step(params, x)
np.testing.assert_allclose(one + 3.0, np.abs(x).max(), rtol=1e-5)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    # JAX itself asks for it: the gradient of a weight on no mesh is ambiguous.
    whole = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    np.testing.assert_allclose(one, step(whole, spread), rtol=1e-6)
print("equal")
""",
    )


@pytest.mark.nightly
def test_devices_under_shard_map_give_the_mean_of_their_extremes(on_devices):
    on_devices(
        8,
        """
import functools
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
import hwtrain as hw
from jax.sharding import AxisType, PartitionSpec as P
from hwtrain._arrays import paths
ranged = hw.InputRangeParameter(fast_mode=True, act_range_momentum=0.5)
tiles = hw.MappingParameter(max_input_size=3, max_output_size=None)
chip = hw.Hardware(input_range=ranged, mapping=tiles)
analog = hw.analogize(nn.Dense(3), chip)
batches = jax.random.normal(jax.random.key(0), (3, 16, 6)) ** 3
params = analog.init(jax.random.key(1), batches[0])["params"]
tx = hw.optim.input_range_learning(hw.plan(analog, params, batches[0]), 0.1)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

@functools.partial(jax.jit, static_argnums=0)
@functools.wraps(jax.shard_map)
def averaged(reduce, params, x):
    def own(params, x):
        loss = lambda p: analog.apply({"params": p}, x).sum()
        return reduce(jax.grad(loss)(params), "data")
    return jax.shard_map(
        own, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False,
    )(params, x)

for reduce in (jax.lax.pmean, jax.lax.psum):
    state, now, known = tx.init(params), params, None
    for x in batches:
        updates, state = jax.jit(tx.update)(averaged(reduce, now, x), state, now)
        now = jax.tree.map(jnp.add, now, updates)
        shards = np.asarray(x).reshape(8, 2, 2, 3)
        each = np.stack([shards.max((1, 3)).mean(0), shards.min((1, 3)).mean(0)])
        known = each if known is None else 0.5 * known + 0.5 * each
        found = np.ravel(paths.leaves(now)["input_range"])
        np.testing.assert_allclose(found, np.abs(known).max(0), rtol=1e-5)
print("equal")
""",
    )


def test_options_without_effect_are_refused():
    for options, message in (
        (
            {"act_range_momentum": 0.9},
            "act_range_momentum=0.9: no effect with fast_mode",
        ),
        ({"fast_mode": True, "decay": 0.1}, "decay=0.1: no effect with fast_mode=True"),
        ({"fast_mode": True, "init_std_alpha": 2.0}, "init_std_alpha=2.0: no effect"),
        (
            {"fast_mode": True, "dynamic": True},
            "fast_mode=True.*no effect with dynamic",
        ),
        ({"fast_mode": True, "act_range_momentum": -0.5}, "a share below 1, or -1"),
    ):
        with pytest.raises(ValueError, match=message):
            hw.InputRangeParameter(**options)


@pytest.mark.parametrize("per_channel", [False, True])
def test_output_noise_has_the_deviation_of_lightning(golden, per_channel):
    case = golden("lightning_statistics")["out_noise"][per_channel]
    assert case["out_noise_per_channel"] is per_channel
    x, w = np.float32(case["x"]), np.float32(case["weight"]).T
    expected = np.float32(case["y"]) - np.clip(x, -case["r"], case["r"]) @ w
    assert (np.ptp(expected, axis=0) < 1e-5).all()
    for omega in (1.0, 0.0) if per_channel else (1.0,):
        hardware = hw.Hardware(
            input_range=hw.InputRangeParameter(init_value=case["r"], init_from_data=0),
            mapping=hw.MappingParameter(
                weight_scaling_omega=omega, max_input_size=None, max_output_size=None
            ),
            forward=hw.IOParameters(
                out_noise=case["out_noise"], out_noise_per_channel=per_channel
            ),
        )
        analog = hw.analogize(nn.Dense(3, use_bias=False), hardware)
        params = jax.jit(analog.init)(KEY, x)["params"] | {"kernel": w}
        many = np.repeat(x[:1], 5000, axis=0)
        call = jax.jit(analog.apply)
        y = call({"params": params}, many, rngs={"mismatch": KEY})
        y = np.asarray(y, np.float64)
        found = y.std(axis=0)
        np.testing.assert_allclose(found, expected[0], rtol=5 / math.sqrt(2 * 5000))
        stage = hardware.stages[-1]
        assert ("column" in stage.describe()) is per_channel
        hw.assert_active(analog, {"params": params}, x)
