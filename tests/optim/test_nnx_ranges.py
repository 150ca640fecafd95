"""Ranges that follow extremes and noise of channels in NNX, against golden numbers."""

import numpy as np
import pytest
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths

CASES = {"ema": 0, "ema_short": 1, "extremes": 2, "tiles": 3}


def layer(width_in, width, **parts):
    """Returns an analog layer without a bias."""
    plain = nnx.Linear(width_in, width, use_bias=False, rngs=nnx.Rngs(0))
    return hw.analogize(plain, hw.Hardware(**parts), rngs=nnx.Rngs(mismatch=1))


@nnx.jit
def squares(model, x):
    def loss(model, x):
        y = model(x)
        return (y**2).sum(), y

    wanted = nnx.DiffState(0, nnx.Param)
    (_, y), grads = nnx.value_and_grad(loss, argnums=(wanted, 1), has_aux=True)(
        model, x
    )
    return y, grads


@pytest.mark.parametrize(
    "name",
    ["ema", *(pytest.param(x, marks=pytest.mark.nightly) for x in list(CASES)[1:])],
)
@pytest.mark.parametrize("forward", [None, hw.IOParameters(out_bound=1e6)])
def test_ranges_outputs_and_gradients_are_lightnings(golden, name, forward):
    case = golden("lightning_statistics")["fast_mode"][CASES[name]]
    options = {key: case[key] for key in ("act_range_momentum", "init_from_data")}
    limit = case["max_input_size"]
    model = layer(
        5,
        3,
        input_range=hw.InputRangeParameter(fast_mode=True, **options),
        mapping=hw.MappingParameter(max_input_size=limit, max_output_size=None),
        forward=forward,
    )
    model.kernel[...] = np.float32(case["weight"]).T
    plan = hw.plan(model)
    tx = hw.optim.input_range_learning(plan, 0.0)
    params = nnx.state(model, nnx.Param)
    state = tx.init(params)
    ranges = np.float32(case["input_range"])[..., None]
    for step, x in enumerate(np.float32(case["x"])):
        # Lightning updates the range before it clips, hwtrain after the step.
        model.input_range[...] = ranges[step]
        y, (grads, d_x) = squares(model, x)
        np.testing.assert_allclose(y, case["y"][step], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(d_x, case["x_grad"][step], rtol=1e-5, atol=1e-5)
        d_r = np.float32(case["range_grad"][step])[:, None]
        of_range = paths.leaves(grads)["input_range"]
        np.testing.assert_allclose(of_range, d_r, rtol=1e-4, atol=1e-4)
        params = nnx.state(model, nnx.Param)
        updates, state = tx.update(grads, state, params)
        found = paths.leaves(params)["input_range"]
        found = found + paths.leaves(updates)["input_range"]
        np.testing.assert_allclose(found, ranges[step], rtol=1e-5)


def test_an_optimizer_follows_the_extremes_and_the_proof_sees_them():
    ranged = hw.InputRangeParameter(fast_mode=True, act_range_momentum=-1.0)
    model = layer(5, 3, input_range=ranged)
    tx = hw.optim.input_range_learning(hw.plan(model), 0.0)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    batches = np.random.default_rng(0).normal(0.3, [[[1.0]], [[3.0]]], (2, 8, 5))
    for number, x in enumerate(np.float32(batches), start=1):
        _, (grads, _) = squares(model, x)
        optimizer.update(model, grads)
        extreme = np.abs(batches[:number]).max()
        np.testing.assert_allclose(model.input_range[...], extreme, rtol=1e-5)
    report = hw.assert_active(model, None, np.float32(batches[0]))
    assert "input_range moves: follows an update" in str(report)


@pytest.mark.parametrize("per_channel", [False, True])
def test_output_noise_has_the_deviation_of_lightning(golden, per_channel):
    case = golden("lightning_statistics")["out_noise"][per_channel]
    assert case["out_noise_per_channel"] is per_channel
    x, w = np.float32(case["x"]), np.float32(case["weight"]).T
    expected = np.float32(case["y"]) - np.clip(x, -case["r"], case["r"]) @ w
    model = layer(
        *w.shape,
        input_range=hw.InputRangeParameter(init_value=case["r"], init_from_data=0),
        mapping=hw.MappingParameter(
            weight_scaling_omega=1.0, max_input_size=None, max_output_size=None
        ),
        forward=hw.IOParameters(
            out_noise=case["out_noise"], out_noise_per_channel=per_channel
        ),
    )
    model.kernel[...] = w
    y = nnx.jit(lambda model, x: model(x))(model, np.repeat(x[:1], 5000, axis=0))
    found = np.asarray(y, np.float64).std(axis=0)
    np.testing.assert_allclose(found, expected[0], rtol=5 / np.sqrt(2 * 5000))
    hw.assert_active(model, None, x)
    # A step of the optimiser moves the weights by the exact gradient.
    tx = hw.optim.hardware_aware(_sgd(), hw.plan(model))
    optimizer, before = nnx.Optimizer(model, tx, wrt=nnx.Param), model.kernel[...]
    y, (grads, _) = squares(model, x)
    optimizer.update(model, grads)
    clipped = np.clip(x, -case["r"], case["r"])
    moved = before - 1e-3 * clipped.T @ (2 * np.asarray(y))
    np.testing.assert_allclose(model.kernel[...], moved, rtol=1e-4, atol=1e-6)


def _sgd():
    import optax

    return optax.sgd(1e-3)


def test_a_noise_of_channels_that_does_nothing_is_told(monkeypatch):
    model = layer(
        6, 4, forward=hw.IOParameters(out_noise=0.1, out_noise_per_channel=True)
    )
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    stage = type(hw.IOParameters(out_noise=0.1).parts[-1])
    assert stage.__name__ == "OutputNoise"
    monkeypatch.setattr(stage, "around", lambda self, inner, x, ctx: inner(x))
    with pytest.raises(ValueError, match="out_noise: the outputs are the same without"):
        hw.assert_active(model, None, x)
