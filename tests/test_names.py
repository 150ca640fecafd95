"""Names that contain a slash or a tilde, wherever parameters are known by path."""

import functools
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file

import hwtrain
from hwtrain import checkpoint
from hwtrain._arrays import paths
from hwtrain.checkpoint import _manifest as manifests
from hwtrain.checkpoint import trace_graph
from hwtrain.evaluate import population

HARDWARE = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1),
    input_range=hwtrain.InputRangeParameter(init_value=2.0),
    forward=hwtrain.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.2),
    converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
)
X = jax.random.normal(jax.random.key(0), (4, 6))


class Setup(nn.Module):
    """What Flax's WeightNorm names after its layer, in `setup`."""

    def setup(self):
        self.d = nn.WeightNorm(nn.Dense(3))

    def __call__(self, x):
        return self.d(x)


class Spectral(nn.Module):
    """Names of statistics with slashes."""

    @nn.compact
    def __call__(self, x):
        return nn.SpectralNorm(nn.Dense(3, name="d"))(x, update_stats=False)


class Compact(nn.Module):
    """What a user names, and what is stored, with slashes."""

    names: tuple

    @nn.compact
    def __call__(self, x):
        for name in self.names:
            x = nn.Dense(6, name=name)(x)
        return x


class Beside(nn.Module):
    """A parameter whose name is the path of another one."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("a/kernel", nn.initializers.ones, (3,))
        return nn.Dense(3, name="a")(x) * scale


class Items(nnx.Module):
    """Layers by names that only items can have."""

    def __init__(self, names):
        layer = functools.partial(nnx.Linear, 6, 6, rngs=nnx.Rngs(0))
        self.d = nnx.Dict({name: layer() for name in names})
        self.names = names

    def __call__(self, x):
        for name in self.names:
            x = self.d[name](x)
        return x


# A model, and the keys of what lies on crossbars.
LINEN = {
    "weight norm": (nn.WeightNorm(nn.Dense(3)), [("layer_instance",)]),
    "weight norm in setup": (Setup(), [("d", "layer_instance")]),
    "weight norm in a sequence": (
        nn.Sequential([nn.WeightNorm(nn.Dense(3)), nn.relu]),
        [("layers_0", "layer_instance")],
    ),
    "spectral norm": (Spectral(), [("d",)]),
    "a slash": (Compact(("a/b", "a")), [("a/b",), ("a",)]),
    "tildes": (Compact(("a/b", "a~1b", "~", "a~0b")), None),
    "a path as a name": (Beside(), [("a",)]),
}
NAMES = ("a/b", "0", "a~1b", "/", "a")


def made(name):
    """Returns an analog model, its variables and its plan."""
    if name == "nnx":
        model = hwtrain.analogize(Items(NAMES), HARDWARE, rngs=nnx.Rngs(mismatch=1))
        return model, None, hwtrain.plan(model)
    model = hwtrain.analogize(LINEN[name][0], HARDWARE)
    variables = model.init(jax.random.key(1), X)
    return model, variables, hwtrain.plan(model, variables, X)


def layers_of(name):
    if name == "nnx":
        return [("d", item) for item in NAMES]
    model, layers = LINEN[name]
    return [(item,) for item in model.names] if layers is None else layers


def in_chip_mode(model):
    """Returns a copy in chip mode: that of NNX is set in place."""
    model = nnx.clone(model) if isinstance(model, nnx.Module) else model
    return hwtrain.chip_mode(model)


def stored(plan):
    return [weight.stored for weight in plan.weights]


OFTEN = ("weight norm in setup", "a slash")
ALL = pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=() if name in OFTEN else pytest.mark.nightly)
            for name in LINEN
        ),
        "nnx",
    ],
)


@pytest.mark.parametrize(
    "keys", [("a/b",), ("a", "b"), ("a~1b",), ("~", "/", ""), ("~01", "~0/")]
)
def test_a_path_is_split_as_it_was_joined(keys):
    # RFC 6901 has it so: "~" is "~0", and "/" is "~1".
    path = paths.join(keys)
    assert path.count("/") == len(keys) - 1
    assert paths.split(path) == list(keys)
    tree = {"there": 0}
    for key in reversed(keys):
        tree = {key: tree}
    assert list(paths.leaves(tree)) == [f"{path}/there"]
    filled = paths.insert(tree, {f"{path}/~1": 1, f"{path}/there": 2})
    for key in keys:
        filled = filled[key]
    assert filled == {"there": 2, "/": 1}
    kept = paths.drop(tree, lambda found: found != f"{path}/there")
    assert kept == {}


@ALL
def test_plans_rules_and_tables(name):
    model, variables, plan = made(name)
    expected = [paths.join((*keys, "kernel")) for keys in layers_of(name)]
    assert sorted(stored(plan)) == sorted(expected)
    assert len({*stored(plan)}) == len(expected)
    rows = str(hwtrain.inspect(model, variables, X))
    assert all(path.rpartition("/")[0] in rows for path in expected)
    first = paths.join(layers_of(name)[0])
    plain = Items(NAMES) if name == "nnx" else LINEN[name][0]
    rngs = nnx.Rngs(mismatch=1) if name == "nnx" else None
    model = hwtrain.analogize(plain, hwtrain.Rule(first, HARDWARE), rngs=rngs)
    if name != "nnx":
        variables = model.init(jax.random.key(1), X)
    assert stored(hwtrain.plan(model, variables, X)) == [expected[0]]


@ALL
def test_training(name):
    model, variables, plan = made(name)
    tx = hwtrain.optim.hardware_aware(optax.sgd(0.1), plan)
    if name == "nnx":
        optimiser = nnx.Optimizer(model, tx, wrt=nnx.Param)
        before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        grads = nnx.grad(lambda model: jnp.sum(model(X) ** 2))(model)
        optimiser.update(model, grads)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    else:
        before = params = variables["params"]

        def loss(params):
            rngs = {"mismatch": jax.random.key(2)}
            return jnp.sum(
                model.apply({**variables, "params": params}, X, rngs=rngs) ** 2
            )

        updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
        params = optax.apply_updates(params, updates)
    before, after = paths.leaves(before), paths.leaves(params)
    for weight in plan.weights:
        for path in (weight.stored, weight.leaf("input_range")):
            assert np.any(np.asarray(before[path]) != np.asarray(after[path])), path


@ALL
def test_a_checkpoint_and_its_chips(name, tmp_path):
    model, variables, plan = made(name)
    more = {}
    if any(weight.derived for weight in plan.weights):
        more = {"analog": model, "example": (X,)}
    graph = trace_graph(model, variables, X)
    given = model if name == "nnx" else variables
    path = checkpoint.export(
        tmp_path / "c", given, plan, chip_seed=7, graph=graph, **more
    )
    assert checkpoint.verify(path)["passed"]
    found = checkpoint.load(path)
    nominal = (
        variables["params"]
        if variables
        else nnx.to_pure_dict(nnx.state(model, nnx.Param))
    )
    kept = paths.leaves(found.params)
    for leaf, value in paths.leaves(nominal).items():
        np.testing.assert_array_equal(kept[leaf], value)
    # A chip's additional leaves are beside its weights, and nothing else is new.
    chip = found.chip(7)
    inside = [paths.join(keys) for keys in layers_of(name)]
    more = paths.leaves(chip).keys() - kept.keys()
    assert {path.rpartition("/")[0] for path in more} <= {*inside}
    for weight in found.plan.weights:
        moved = np.asarray(paths.leaves(chip)[weight.path] - kept[weight.path])
        assert 0.02 < moved.std() < 2
        assert found.conductances(weight.path, 7)
    metric = lambda y: jnp.abs(y).mean(-1)  # noqa: E731
    if name == "nnx":
        filled = found.into(made(name)[0])
        chex.assert_trees_all_equal(
            nnx.to_pure_dict(nnx.state(filled, nnx.Param)), nominal
        )
        y = in_chip_mode(found.into(made(name)[0], chip=7))(X)
    else:
        y = in_chip_mode(model).apply({**found.variables, "params": chip}, X)
    for values in (variables, found):
        chips = population(
            model, values, [(X,)], metric, chips=[7], key=jax.random.key(3)
        )
        np.testing.assert_allclose(chips.mean, metric(y).mean(), rtol=1e-5)


@pytest.mark.nightly
@ALL
def test_everything_acts(name):
    model, variables, _ = made(name)
    hwtrain.assert_active(model, variables, X[:1])


EARLIER = Path(__file__).parent / "golden/checkpoints/1.2_names"
"""Of a version that joined names by slashes as they were."""

CHIP = {
    ("a/b",): [
        [-0.6742688417434692, 0.0613294318318367, 0.7597827315330505],
        [-0.18056519329547882, 0.11388641595840454, -0.08170894533395767],
        [0.45859384536743164, -1.2996792793273926, 0.041054919362068176],
    ],
    ("c",): [
        [-0.16103680431842804, 0.4696446657180786, -0.834880530834198],
        [-0.8831090331077576, 0.8480475544929504, 0.028613749891519547],
        [0.040923040360212326, 0.17502866685390472, -0.48936131596565247],
        [0.4807881712913513, 0.17429067194461823, -0.49571001529693604],
    ],
    ("x~y",): [
        [-0.5154227614402771, 1.042362093925476],
        [0.05323312431573868, -0.5541435480117798],
        [0.7003573775291443, -0.9597424864768982],
    ],
}


def test_an_earlier_checkpoint_is_read_with_names_as_today(tmp_path):
    assert checkpoint.verify(EARLIER)["passed"]
    found = checkpoint.load(EARLIER)
    assert list(found.plan) == ["a~1b/kernel", "c/effective_kernel", "x~0y/kernel"]
    assert found.plan.state == ("batch_stats/n~1m/mean", "batch_stats/n~1m/var")
    digital = {entry.path for entry in found.plan.digital}
    assert {"WeightNorm_0/c~1kernel~1scale", "n~1m/bias", "x~0y/bias"} <= digital
    assert found.params["WeightNorm_0"].keys() == {"c/kernel/scale"}
    layers = [k for k, what in found.manifest.graph.nodes.items() if what == "layer"]
    assert set(layers) == {"a~1b", "n~1m", "WeightNorm_0", "x~0y"}
    chip = found.chip(7)
    for (name,), kernel in CHIP.items():
        leaf = "effective_kernel" if name == "c" else "kernel"
        columns = len(kernel[0])
        np.testing.assert_array_equal(chip[name][leaf][:, :columns], kernel)
        assert "input_range" in chip[name]
    path = checkpoint.export(tmp_path / "new", found.variables, found.plan)
    again = checkpoint.load(path)
    assert again.plan == found.plan
    chex.assert_trees_all_equal(again.variables, found.variables)
    names = load_file(path / "tensors/0000.safetensors").keys()
    assert "nominal/params/a~1b/kernel" in names


def forged(tmp_path, change):
    path = tmp_path / "forged"
    shutil.copytree(EARLIER, path)
    content = json.loads((path / "manifest.json").read_text("utf-8"))
    change(content)
    content["sha256"] = manifests._digest(content)
    (path / "manifest.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["layers"][0]["weight"].update(path="a/c/kernel"),
        lambda m: m["leaves"][3].update(keys=["params", "a", "b", "bias"]),
        lambda m: m["leaves"][3].update(tensor="nominal/params/a~1c/bias"),
        lambda m: m["state"].append("batch_stats/n/m"),
        lambda m: m["leaves"][3].update(keys=[3, {}]),
        lambda m: m.update(leaves=3),
        lambda m: m.update(prefix="a/b"),
    ],
)
def test_names_of_an_earlier_checkpoint_are_checked(tmp_path, change):
    with pytest.raises(checkpoint.HardwareCheckpointError, match="valid manifest: "):
        checkpoint.load(forged(tmp_path, change))
