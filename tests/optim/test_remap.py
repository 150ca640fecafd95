"""`remap_weights` through a model: scales change, logical weights never do."""

import dataclasses
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
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips._crossbar import on_crossbar

X = jax.random.normal(jax.random.key(1), (32, 10))
CHANNELWISE = hw.WeightRemapParameter(type="channelwise_symmetric")
LAYERWISE = hw.WeightRemapParameter(type="layerwise_symmetric")
FIXED = hw.WeightClipParameter(type="fixed_value", fixed_value=1.0)
TILES = hw.MappingParameter(max_input_size=4, max_output_size=5)


class MLP(nn.Module):
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(7, name="hidden", param_dtype=self.dtype)(x))
        return nn.Dense(3, name="head", param_dtype=self.dtype)(x)


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(10, 7, rngs=rngs)
        self.head = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.hidden(x)))


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=3,
        )(16, name="layers")(x)


@functools.cache
def started(chip, model):
    analog = hw.analogize(model, chip)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    return analog, params, hw.plan(analog, params, X)


def start(chip, model=MLP()):  # noqa: B008 an immutable value
    analog, params, plan = started(chip, model)
    return analog, jax.tree.map(lambda leaf: leaf, params), plan  # of the test's own


def stepped(tx):
    """Returns `f(grads, state, params)`, in one program: updates, state, params."""

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return updates, state, optax.apply_updates(params, updates)

    return step


def zeros_like(params):
    return jax.tree.map(np.zeros_like, params)


def crossbar(plan, params, path):
    values = paths.leaves(params)
    scale = values[plan[path].leaf("mapping_scale")]
    w, s = on_crossbar(plan[path], jnp.asarray(values[path]), scale)
    return np.asarray(w), np.broadcast_to(s, w.shape)


def trainer(analog, tx):
    @jax.jit
    def step(params, state):
        def loss(p):
            return jnp.square(analog.apply({"params": p}, X) - 1).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def golden_plan(case, remap):
    rows, columns = np.float32(case["w"]).T.shape
    weight = AnalogWeight(
        path="dense/kernel",
        kind="dense",
        layer="Dense",
        shape=(rows, columns),
        rows=(0,),
        columns=(1,),
        hardware=hw.Hardware(remap=remap),
        rule="",
        ranged=False,
    )
    return Plan((weight,))


def test_the_transformation_agrees_with_the_c_engine(golden):
    types = {
        "LayerwiseSymmetric": "layerwise_symmetric",
        "ChannelwiseSymmetric": "channelwise_symmetric",
    }
    done = 0
    for name, case in golden("aihwkit_weights")["remap_cpp"].items():
        if "out_scales" not in case or "pars" not in case:
            continue
        options = dict(case["pars"])
        remap = hw.WeightRemapParameter(type=types[options.pop("type")], **options)
        w, s = np.float32(case["w"]).T, np.float32(case["scales"])
        kernel = s * w
        params = {"dense": {"kernel": kernel, "mapping_scale": s[None]}}
        plan = golden_plan(case, remap)
        tx = hw.optim.remap_weights(plan)
        *_, after = stepped(tx)(zeros_like(params), tx.init(params), params)
        np.testing.assert_array_equal(after["dense"]["kernel"], kernel)
        scale = after["dense"]["mapping_scale"]
        np.testing.assert_allclose(
            scale[0], case["out_scales"], rtol=1e-5, err_msg=name
        )
        found, _ = crossbar(plan, after, "dense/kernel")
        expected = np.float32(case["out_w"]).T
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        done += 1
    assert done == 24


@pytest.mark.sampled
@pytest.mark.parametrize("mapping", [None, TILES], ids=["whole", "tiled"])
@pytest.mark.parametrize("remap", [LAYERWISE, CHANNELWISE], ids=lambda r: r.type)
def test_the_scale_starts_with_the_shape_of_its_remapping(remap, mapping):
    _, params, plan = start(hw.Hardware(remap=remap, mapping=mapping))
    tiles, columns = plan["hidden/kernel"].tiles
    columns = 7 if remap.per_column else columns
    assert params["hidden"]["mapping_scale"].shape == (tiles, columns)
    np.testing.assert_array_equal(params["hidden"]["mapping_scale"], 1)
    scaled = dataclasses.replace(
        mapping or hw.MappingParameter(), weight_scaling_omega=1.0
    )
    _, params, plan = start(hw.Hardware(remap=remap, mapping=scaled))
    assert params["hidden"]["mapping_scale"].shape == (tiles, columns)
    w, _ = crossbar(plan, params, "hidden/kernel")
    np.testing.assert_allclose(np.abs(w).max(), 1.0, rtol=2e-7)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mapping", [None, TILES], ids=["whole", "tiled"])
@pytest.mark.parametrize("remap", [LAYERWISE, CHANNELWISE], ids=lambda r: r.type)
def test_every_crossbar_is_fully_used_and_the_product_is_the_kernel(
    remap, mapping, dtype
):
    chip = hw.Hardware(remap=remap, clip=FIXED, mapping=mapping)
    analog, params, plan = start(chip, MLP(dtype))
    tx = hw.optim.hardware_aware(optax.adam(3e-2), plan)
    step, state = trainer(analog, tx), tx.init(params)
    before = params["hidden"]["mapping_scale"]
    for _ in range(4):
        params, state = step(params, state)
    assert step._cache_size() == 1
    assert params["hidden"]["mapping_scale"].dtype == jnp.float32
    assert (params["hidden"]["mapping_scale"] != before).all()
    # A bfloat16 quotient has 8 bits.
    rtol = 1e-6 if dtype == jnp.float32 else 2**-7
    for path, weight in plan.items():
        w, s = (np.asarray(a, np.float32) for a in crossbar(plan, params, path))
        kernel = np.asarray(paths.leaves(params)[path], np.float32)
        np.testing.assert_allclose(s * w, kernel, rtol=rtol)
        for rows in np.split(np.abs(w), np.cumsum(weight.row_sizes)[:-1]):
            largest = rows.max(0) if remap.per_column else rows.max()
            np.testing.assert_allclose(largest, 1.0, rtol=rtol)


def test_the_logical_weights_take_the_same_steps_with_and_without():
    # Nothing but a fixed clip knows the scale, and at this bound it clips nothing.
    plain, params, plan = start(hw.Hardware())
    analog, remapped, its_plan = start(hw.Hardware(remap=CHANNELWISE, mapping=TILES))
    for model, p, own in ((plain, params, plan), (analog, remapped, its_plan)):
        tx = hw.optim.hardware_aware(optax.sgd(0.1), own)
        step, state = trainer(model, tx), tx.init(p)
        for _ in range(3):
            p, state = step(p, state)
        if model is plain:
            expected = p
    stripped = paths.leaves(hw.strip(p, its_plan))
    for path, value in paths.leaves(expected).items():
        np.testing.assert_allclose(stripped[path], value, rtol=1e-5, atol=1e-7)


def test_the_order_is_base_then_clip_then_remap():
    chip = hw.Hardware(remap=LAYERWISE, clip=FIXED)
    _, params, plan = start(chip)
    kernel = np.full((10, 7), 0.5, np.float32)
    kernel[0, 0] = 0.9
    params["hidden"]["kernel"] = kernel
    params["hidden"]["mapping_scale"] = np.full((1, 1), 0.8, np.float32)
    tx = hw.optim.hardware_aware(optax.sgd(1.0), plan)
    grads, step = zeros_like(params), stepped(tx)
    grads["hidden"]["kernel"] = np.full((10, 7), -0.1, np.float32)
    _, state, after = step(grads, tx.init(params), params)
    after = after["hidden"]
    # 0.9 + 0.1 clips to the old scale times 1; the new scale follows from that.
    np.testing.assert_allclose(after["kernel"][0, 0], 0.8, rtol=1e-6)
    np.testing.assert_allclose(after["kernel"][1, 1], 0.6, rtol=1e-6)
    np.testing.assert_allclose(after["mapping_scale"], 0.8, rtol=1e-6)
    # Once all of it shrinks, so does the scale, and with it the next bound.
    grads["hidden"]["kernel"] = np.full((10, 7), 0.4, np.float32)
    params["hidden"] = after
    *_, after = step(grads, state, params)
    after = after["hidden"]
    np.testing.assert_allclose(after["mapping_scale"], 0.4, rtol=1e-6)


def test_a_limited_scale_leaves_a_weight_to_the_next_clip():
    remap = hw.WeightRemapParameter(type="channelwise_symmetric", max_scale_range=2.0)
    _, params, plan = start(hw.Hardware(remap=remap, clip=FIXED))
    # The first update clips the kernel to 1 and limits no scale, as all of them are 1.
    kernel = np.ones((10, 7), np.float32)
    kernel[:, 0] = 0.1
    params["hidden"]["kernel"] = kernel
    tx = hw.optim.hardware_aware(optax.sgd(0.0), plan)
    state, step, zeros = tx.init(params), stepped(tx), zeros_like(params)
    for scale, bound in ((1.0, 1.0), (0.2, 1.0), (0.2, 0.2)):
        _, state, params = step(zeros, state, params)
        hidden = jax.tree.map(np.asarray, params["hidden"])
        expected = [0.1] + [scale] * 6
        np.testing.assert_allclose(hidden["mapping_scale"][0], expected, rtol=1e-6)
        np.testing.assert_allclose(hidden["kernel"][:, 1:].max(), bound, rtol=1e-6)


def test_each_layer_of_a_stack_has_scales_of_its_own():
    _, params, plan = start(hw.Hardware(remap=CHANNELWISE, mapping=TILES), Stack())
    factors = np.float32([1.0, 20.0, 0.1])[:, None, None]
    kernel = np.asarray(params["layers"]["kernel"]) * factors
    params["layers"]["kernel"] = kernel
    assert params["layers"]["mapping_scale"].shape == (3, 3, 16)
    tx = hw.optim.remap_weights(plan)
    *_, after = stepped(tx)(zeros_like(params), tx.init(params), params)
    after = np.asarray(after["layers"]["mapping_scale"])
    for tile, rows in enumerate((slice(0, 4), slice(4, 7), slice(7, 10))):
        by_hand = np.abs(kernel[:, rows]).max(1)
        # 1 plus an update rounds to 2^-24.
        np.testing.assert_allclose(after[:, tile], by_hand, rtol=1e-6, atol=2**-24)


def test_nnx_gets_the_same_scales():
    chip = hw.Hardware(remap=CHANNELWISE, clip=FIXED, mapping=TILES)
    analog, params, plan = start(chip)
    twin = hw.analogize(Twin(nnx.Rngs(0)), chip)
    state = nnx.state(twin, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(twin, state)
    base = optax.adamw(1e-2)
    optimizer = nnx.Optimizer(
        twin, hw.optim.hardware_aware(base, hw.plan(twin)), wrt=nnx.Param
    )
    tx = hw.optim.hardware_aware(base, plan)
    step, linen_state = trainer(analog, tx), tx.init(params)

    @nnx.jit
    def nnx_step(twin, optimizer):
        grads = nnx.grad(lambda m: jnp.square(m(X) - 1).mean())(twin)
        optimizer.update(twin, grads)

    for _ in range(3):
        nnx_step(twin, optimizer)
        params, linen_state = step(params, linen_state)
    ours = paths.leaves(nnx.to_pure_dict(nnx.state(twin, nnx.Param)))
    for path, value in paths.leaves(params).items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-4, atol=1e-5)
    assert ours["hidden/mapping_scale"].shape == (3, 7)
    assert (ours["hidden/mapping_scale"] != 1).all()


def test_a_crossbar_of_zeros_keeps_its_scale():
    _, params, plan = start(hw.Hardware(remap=CHANNELWISE))
    kernel = np.array(params["hidden"]["kernel"])
    kernel[:, 2] = 0
    params["hidden"]["kernel"] = kernel
    tx = hw.optim.remap_weights(plan)
    updates, *_ = stepped(tx)(zeros_like(params), tx.init(params), params)
    change = np.asarray(updates["hidden"]["mapping_scale"])
    assert change[0, 2] == 0
    assert (change[0, 3:] != 0).all()


def test_inspect_says_what_remaps():
    remap = hw.WeightRemapParameter(type="channelwise_symmetric", max_scale_range=4.0)
    analog, params, _ = start(hw.Hardware(remap=remap))
    row, _ = hw.inspect(analog, {"params": params}, X).rows
    expected = "channelwise_symmetric to 1, scales up to 4 x the smallest"
    assert row["remap"] == expected
    assert row["scale"] == "stored, 1 at first, remapped"
    analog, params, _ = start(hw.Hardware())
    row, _ = hw.inspect(analog, {"params": params}, X).rows
    assert row["remap"] == "none"


def test_the_export_holds_the_scales_and_the_same_weights(tmp_path):
    chip = hw.Hardware(
        remap=CHANNELWISE, mapping=TILES, converter=hw.SinglePairConductanceConverter()
    )
    analog, params, plan = start(chip)
    tx = hw.optim.hardware_aware(optax.adam(3e-2), plan)
    step, state = trainer(analog, tx), tx.init(params)
    for _ in range(2):
        params, state = step(params, state)
    checkpoint = hw.load(hw.export(tmp_path / "chip", params, plan))
    np.testing.assert_allclose(
        checkpoint.reconstruct("hidden/kernel"),
        params["hidden"]["kernel"],
        atol=1e-6 * np.abs(params["hidden"]["kernel"]).max(),
    )
    scale = np.asarray(params["hidden"]["mapping_scale"])
    grid = checkpoint.conductances("hidden/kernel")
    for i, row in enumerate(grid):
        found = np.concatenate([tile.mapping_scale for tile in row], axis=-1)
        np.testing.assert_array_equal(found, scale[i : i + 1])
    assert checkpoint.plan == plan


def test_what_cannot_be_remapped_is_an_error():
    class Raw(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", nn.initializers.ones, (10, 4))

    rule = hw.Rule(params="w", hardware=hw.Hardware(remap=LAYERWISE))
    with pytest.raises(ValueError, match="w: remapping needs a mapping scale"):
        hw.analogize(Raw(), [rule]).init(jax.random.key(0), X)
    _, params, plan = start(hw.Hardware(remap=CHANNELWISE))
    tx = hw.optim.remap_weights(plan)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="hwtrain.adopt"):
        tx.init(hw.strip(params, plan))
    params["hidden"]["mapping_scale"] = jnp.ones((1, 1))
    with pytest.raises(ValueError, match=r"should have the shape \(1, 7\)"):
        tx.update(params, optax.EmptyState(), params)
