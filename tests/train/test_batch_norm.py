"""Statistics of batch norms over a few batches, and norms folded into weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain
from hwtrain.train import batch_statistics, fold_batch_norm


class Net(nn.Module):
    momentum: float = 0.9
    norms: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), feature_group_count=2, name="conv")(x)
        if self.norms:
            x = nn.BatchNorm(not train, momentum=self.momentum, name="norm")(x)
        x = nn.relu(x).reshape(len(x), -1)
        x = nn.Dense(3, use_bias=not self.norms, name="head")(x)
        if self.norms:
            x = nn.BatchNorm(
                not train, momentum=0.5, use_scale=False, use_bias=False, name="last"
            )(x)
        return x


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


X = 2.0 + jax.random.normal(jax.random.key(0), (30, 5, 5, 2))
BATCHES = [X[:20], X[20:]]


def moved(tree):
    """Other values than those that norms start from; variances stay positive."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draws = [jax.random.uniform(k, x.shape, minval=0.3) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(structure, draws)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_statistics_are_those_of_all_examples(momentum, offset):
    model = Net(momentum)
    variables = moved(model.init(jax.random.key(0), X))
    variables["params"]["conv"]["bias"] += offset

    @jax.jit
    def update(statistics, x):
        given = {**variables, "batch_stats": statistics}
        return model.apply(given, x, True, mutable=["batch_stats"])[1]["batch_stats"]

    found = batch_statistics(update, variables["batch_stats"], BATCHES)
    conv = nn.Conv(4, (3, 3), feature_group_count=2)
    y = np.asarray(conv.apply({"params": variables["params"]["conv"]}, X), np.float64)
    # The momentum is known to within rounding, and 1 - momentum divides.
    eps = np.finfo(np.float32).eps
    rtol = 4 * eps / (1 - momentum) + 1e-5
    np.testing.assert_allclose(found["norm"]["mean"], y.mean((0, 1, 2)), rtol=rtol)
    # Flax's own variance, mean(x**2) - mean(x)**2, loses digits where x has an offset.
    rtol += 4 * eps * (y**2).max() / y.var((0, 1, 2)).min()
    np.testing.assert_allclose(found["norm"]["var"], y.var((0, 1, 2)), rtol=rtol)
    # Behind a norm that takes the statistics of a batch, each batch counts as it is.
    assert found["last"]["mean"].shape == (3,)
    assert (found["last"]["var"] > 0).all()


def test_it_works_under_vmap_and_in_nnx():
    model = NnxNet(nnx.Rngs(0))
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)

    def update(scale):
        def one(statistics, x):
            given = jax.tree.map(lambda leaf: leaf * scale, params)
            module = nnx.merge(graph, given, statistics)
            module.train()
            module(x)
            return nnx.state(module, nnx.BatchStat)

        return one

    def of(scale):
        return batch_statistics(update(scale), statistics, [X])

    found = jax.jit(jax.vmap(of))(jnp.array([1.0, 2.0]))
    y = np.asarray(model.conv(X))
    mean, var = (found["norm"][name].get_value() for name in ("mean", "var"))
    np.testing.assert_allclose(mean, np.outer([1, 2], y.mean((0, 1, 2))), rtol=1e-4)
    np.testing.assert_allclose(var, np.outer([1, 4], y.var((0, 1, 2))), rtol=1e-4)


def test_what_is_not_a_running_average_is_refused():
    model, variables = Net(), Net().init(jax.random.key(0), X)

    def kept(statistics, x):
        given = {**variables, "batch_stats": statistics}
        return model.apply(given, x, False, mutable=["batch_stats"])[1]["batch_stats"]

    statistics = variables["batch_stats"]
    for batches, text in (
        ([X], "expected running averages that follow a batch.*use_running"),
        ([], "expected at least one batch, got none"),
    ):
        with pytest.raises(ValueError, match=text):
            batch_statistics(kept, statistics, batches)
    with pytest.raises(ValueError, match="cache/index: expected the statistics"):
        other = {**statistics, "cache": {"index": jnp.zeros(1)}}
        batch_statistics(kept, other, [X])


def test_a_folded_network_computes_the_same():
    variables = moved(Net().init(jax.random.key(0), X))
    norms = {"conv": "norm", "head": "last"}
    params = fold_batch_norm(variables["params"], variables["batch_stats"], norms)
    plain = Net(norms=False)
    fresh = jax.eval_shape(plain.init, jax.random.key(0), X)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, fresh)
    wanted = Net().apply(variables, X)
    y = plain.apply({"params": params}, X)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_a_folded_nnx_network_computes_the_same():
    model = NnxNet(nnx.Rngs(0))
    for kind in (nnx.Param, nnx.BatchStat):
        nnx.update(model, moved(nnx.state(model, kind)))
    model.eval()
    params, statistics = (
        nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat)
    )
    folded = fold_batch_norm(params, statistics, {"conv": "norm"})
    wanted = model(X)
    conv = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(1))
    nnx.update(conv, folded["conv"])
    np.testing.assert_allclose(conv(X), wanted, rtol=1e-4, atol=1e-4)


class Up(nn.Module):
    features: int
    transpose_kernel: bool = True
    norm: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.ConvTranspose(
            self.features, (2, 3), transpose_kernel=self.transpose_kernel, name="conv"
        )(x)
        return nn.BatchNorm(True, name="norm")(x) if self.norm else x


@pytest.mark.parametrize("features", [2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_transposed_convolutions_are_folded_along_their_columns(features, transposed):
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 2))
    model = Up(features, transposed)
    variables = moved(model.init(jax.random.key(0), x))
    params, statistics = variables["params"], variables["batch_stats"]

    def swapped(params):
        conv = params["conv"]
        conv = {**conv, "kernel": conv["kernel"].swapaxes(-1, -2)}
        return {**params, "conv": conv if transposed else params["conv"]}

    if transposed and features == 3:
        text = "expected a norm of the 2 columns of conv.*transpose_kernel=True, swap"
        with pytest.raises(ValueError, match=text):
            fold_batch_norm(params, statistics, {"conv": "norm"})
    folded = swapped(fold_batch_norm(swapped(params), statistics, {"conv": "norm"}))
    found = Up(features, transposed, norm=False).apply({"params": folded}, x)
    wanted = model.apply(variables, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_folded_is_named():
    variables = Net().init(jax.random.key(0), X)
    params, statistics = variables["params"], variables["batch_stats"]
    analog = hwtrain.analogize(
        Net(), hwtrain.Hardware(input_range=hwtrain.InputRangeParameter())
    )
    adopted = hwtrain.adopt(analog, variables, X)["params"]
    for given, norms, text in (
        (params, {"conf": "norm"}, "conf/kernel: expected in params, which has"),
        (params, {"conv": "nor"}, "nor/mean: expected in statistics"),
        (params, {"head": "norm"}, r"norm of the 3 columns of head, got one of \(4,\)"),
        (
            {**params, "norm": {**params["norm"], "scale": jnp.ones(1)}},
            {"conv": "norm"},
            r"norm/scale: expected 4 numbers, as norm/mean has, got \(1,\)",
        ),
        (
            {**params, "conv": {**params["conv"], "bias": jnp.ones(1)}},
            {"conv": "norm"},
            r"conv/bias: expected 4 numbers, as norm/mean has, got \(1,\)",
        ),
        (adopted, {"conv": "norm"}, "conv/input_range is a leaf of hardware"),
    ):
        with pytest.raises(ValueError, match=text):
            fold_batch_norm(given, statistics, norms)
