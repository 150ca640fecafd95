"""Export and import of an NNX model with all its variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hwtrain
from hwtrain._flax.functional import as_function
from hwtrain.checkpoint import HardwareCheckpointError

X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
HARDWARE = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1),
    input_range=hwtrain.InputRangeParameter(),
    forward=hwtrain.IOParameters(out_bits=6, out_bound=8.0, v_offset_std=0.1),
    mapping=hwtrain.MappingParameter(weight_scaling_omega=1.0),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.2),
    converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
)


class Count(nnx.Variable):
    pass


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(6, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, momentum=0.1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)
        self.calls = Count(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        return self.head(self.dropout(jnp.tanh(self.norm(self.layers[0](x)))))


def model(seed):
    rngs = nnx.Rngs(seed, mismatch=1)
    return hwtrain.analogize(Net(rngs), HARDWARE, rngs=rngs)


@pytest.fixture(scope="module")
def trained():
    analog = model(0)
    for _ in range(3):
        analog(X)  # moves the statistics
    return analog


def test_a_model_comes_back_whole(trained, tmp_path):
    path = hwtrain.export(tmp_path / "net", trained, chip_seed=3)
    checkpoint = hwtrain.load(path)
    found = checkpoint.variables
    assert found.keys() == {"params", "batch_stats", "Count"}
    assert found["batch_stats"].keys() == {"norm"}
    assert int(found["Count"]["calls"]) == 3
    for leaves in (found["params"], found["batch_stats"]):
        assert "dropout" not in leaves and "analog_stream" not in leaves
    back = checkpoint.into(model(5))
    quiet = hwtrain.eval_mode(nnx.clone(trained))
    np.testing.assert_array_equal(hwtrain.eval_mode(back)(X), quiet(X))
    # Streams are those of the model that was filled.
    assert back.dropout.rngs.key[...] == model(5).dropout.rngs.key[...]


def test_the_state_of_a_model_is_the_model(trained, tmp_path):
    plan = hwtrain.plan(trained)
    one = hwtrain.export(tmp_path / "model", trained)
    two = hwtrain.export(tmp_path / "state", nnx.state(trained), plan)
    assert (one / "manifest.json").read_text() == (two / "manifest.json").read_text()


def test_a_chip_is_that_of_the_files(trained, tmp_path):
    checkpoint = hwtrain.load(hwtrain.export(tmp_path / "net", trained, chip_seed=3))
    chip = hwtrain.chip_mode(checkpoint.into(model(5), chip=3))
    by_hand = hwtrain.chip_mode(nnx.clone(trained))
    nnx.update(by_hand, checkpoint.chip(3))
    np.testing.assert_array_equal(chip(X), by_hand(X))
    nominal = hwtrain.chip_mode(checkpoint.into(model(5)))
    assert np.abs(chip(X) - nominal(X)).max() > 0.01


def studied(name, analog, variables=None):
    """Returns what a study of a model finds, as numbers."""
    if name == "population":
        found = hwtrain.evaluate.population(
            analog,
            variables,
            [(X,)],
            lambda y: y.mean(-1),
            chips=2,
            key=jax.random.key(1),
        )
        return found.values
    function, tree = as_function(analog, name, variables)
    return function(tree, jax.random.key(2), X)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ["population", "chip", "eval"])
@pytest.mark.parametrize("given", ["checkpoint", "state", "parameters"])
def test_another_model_is_studied_with_all_that_is_given(
    trained, tmp_path, name, given
):
    checkpoint = hwtrain.load(hwtrain.export(tmp_path / "net", trained))
    variables = {
        "checkpoint": checkpoint if name == "population" else checkpoint.variables,
        "state": nnx.state(trained, nnx.Not(nnx.RngState)),
        "parameters": checkpoint.params,
    }
    other = model(5)
    other.eval()
    same = nnx.clone(trained)
    same.eval()
    if given == "parameters":  # with statistics of its own
        own = nnx.state(other, nnx.Not(nnx.Param))
        nnx.update(same, own)
    found = studied(name, other, variables[given])
    np.testing.assert_allclose(found, studied(name, same), rtol=1e-6, atol=1e-6)


def test_another_model_is_refused_by_what_differs(trained, tmp_path):
    checkpoint = hwtrain.load(hwtrain.export(tmp_path / "net", trained))
    plain = Net(nnx.Rngs(0))
    with pytest.raises(HardwareCheckpointError, match="no params/head/input_range"):
        checkpoint.into(plain)
    other = model(0)
    other.more = nnx.Param(jnp.zeros(2))
    with pytest.raises(HardwareCheckpointError, match="checkpoint has no params/more"):
        checkpoint.into(other)
    other = model(0)
    other.head.bias = nnx.Param(jnp.zeros(4))
    with pytest.raises(HardwareCheckpointError, match="head/bias has the shape"):
        checkpoint.into(other)
    with pytest.raises(HardwareCheckpointError, match="A Linen model holds no"):
        checkpoint.into("no model")


def test_a_plan_is_needed_where_nothing_holds_it(trained, tmp_path):
    with pytest.raises(HardwareCheckpointError, match="needs the plan of the model"):
        hwtrain.export(tmp_path / "net", nnx.state(trained))
    with pytest.raises(HardwareCheckpointError, match="this is a Net"):
        hwtrain.export(tmp_path / "net", Net(nnx.Rngs(0)))
    assert not (tmp_path / "net").exists()
    assert jax.tree.leaves(nnx.state(trained))


class Normed(nnx.Module):
    """A layer that multiplies by what is made of its weights."""

    def __init__(self, seed, size=3):
        rngs = nnx.Rngs(seed)
        linear = nnx.Linear(6, size, rngs=rngs)
        self.normed = nnx.WeightNorm(linear, rngs=rngs)

    def __call__(self, x):
        return self.normed(x)


def normed(seed, **kwargs):
    rngs = nnx.Rngs(mismatch=1)
    return hwtrain.analogize(Normed(seed, **kwargs), HARDWARE, rngs=rngs)


def test_a_model_is_its_own_analog(tmp_path):
    analog = normed(0)
    whole = hwtrain.export(tmp_path / "a", analog, analog=analog, example=(X,))
    # Another model of the same plan has other values: those of the first are exported.
    twin = hwtrain.export(tmp_path / "b", analog, analog=normed(7), example=(X,))
    alone = hwtrain.export(tmp_path / "c", analog, example=(X,))
    manifests = [(path / "manifest.json").read_bytes() for path in (whole, twin, alone)]
    assert len({*manifests}) == 1
    with pytest.raises(HardwareCheckpointError, match=r"write export\(path, model, ex"):
        hwtrain.export(tmp_path / "d", analog)
    with pytest.raises(HardwareCheckpointError, match="analog= is another model"):
        hwtrain.export(tmp_path / "d", analog, analog=normed(0, size=4), example=(X,))
    with pytest.raises(HardwareCheckpointError, match="this Normed is a plain one"):
        plan = hwtrain.plan(analog)
        hwtrain.export(tmp_path / "d", Normed(0), plan, analog=analog, example=(X,))
    assert not (tmp_path / "d").exists()
