"""A model's parameter with the name of a leaf stays the model's, or is refused."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._flax.nnx import layers
from hwtrain._flax.signal_side import initial_leaves
from hwtrain._plan import leaf_names
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.weight import AnalogWeight

NAMES = leaf_names.names_when("model", "chip")
FRAMEWORKS = ("linen", "nnx")
NOISE = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
NOISY = Hardware(modifier=NOISE)
X = jnp.ones((2, 4))


class Linen(nn.Module):
    """A user-defined layer with parameters named like leaves."""

    called: str
    place: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="dense")(x)
        if self.place == "alone":
            return x * self.param(self.called, nn.initializers.ones, (4,))
        return OfLinen(self.called, name="own")(x)


class OfLinen(nn.Module):
    called: str

    @nn.compact
    def __call__(self, x):
        x = x @ self.param("kernel", nn.initializers.ones, (4, 4))
        return x * self.param(self.called, nn.initializers.ones, (1, 4))


class OfNnx(nnx.Module):
    def __init__(self, called, place):
        self.dense = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.called = called
        self.own = own = self if place == "alone" else Plain()
        if place == "alone":
            del self.own
        setattr(own, called, nnx.Param(jnp.ones((4,) if place == "alone" else (1, 4))))
        own.called = called

    def __call__(self, x):
        x = self.dense(x)
        if hasattr(self, "own"):
            return self.own(x)
        return x * getattr(self, self.called)[...]


class Plain(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones((4, 4)))

    def __call__(self, x):
        return x @ self.kernel[...] * getattr(self, self.called)[...]


class SharedScope(nn.Module):
    """A module with a parameter in the scope of the layer that it uses."""

    called: str

    def setup(self):
        self.dense = nn.Dense(4)
        nn.share_scope(self, self.dense)

    @nn.compact
    def __call__(self, x):
        return self.dense(x * self.param(self.called, nn.initializers.ones, (4,)))


class Scaled(nnx.Linear):
    """A layer with an additional parameter, which its caller uses."""

    def __init__(self, called):
        super().__init__(4, 4, rngs=nnx.Rngs(0))
        setattr(self, called, nnx.Param(jnp.ones((4,))))


class Around(nnx.Module):
    def __init__(self, called):
        self.layer, self.called = Scaled(called), called

    def __call__(self, x):
        return self.layer(x * getattr(self.layer, self.called)[...])


def made(framework, plain, hardware):
    """Returns an analog model, its parameters, its plan, and its outputs."""
    if framework == "linen":
        analog = hw.analogize(plain, hardware)
        params = analog.init(jax.random.key(0), X)["params"]
        plan = hw.plan(analog, params, X)
        return (
            analog,
            params,
            plan,
            lambda mode: mode(analog).apply(
                {"params": params}, X, rngs={"mismatch": jax.random.key(0)}
            ),
        )
    analog = hw.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=0))
    params = nnx.to_pure_dict(nnx.state(analog, nnx.Param))
    return analog, params, hw.plan(analog), lambda mode: mode(analog)(X)


def users(framework, called, place, hardware=NOISY):
    plain = (Linen if framework == "linen" else OfNnx)(called, place)
    return made(framework, plain, hardware)


def check_trained_and_exported(params, plan, path, tmp_path):
    tx = hw.optim.hardware_aware(optax.sgd(1.0), plan)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    np.testing.assert_array_equal(paths.leaves(updates)[path], -1.0)

    own = jax.tree.map(lambda leaf: leaf, params)
    own = paths.insert(own, {path: 3 * paths.leaves(own)[path]})
    hw.export(tmp_path / "chip", {"params": own}, plan)
    loaded = paths.leaves(hw.load(tmp_path / "chip").params)
    np.testing.assert_array_equal(loaded[path], 3.0)


@pytest.mark.sampled
@pytest.mark.parametrize("place", ["alone", "own"])
@pytest.mark.parametrize("called", NAMES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_parameter_with_the_name_of_a_leaf_stays_the_models(
    framework, called, place, tmp_path
):
    ranged = dataclasses.replace(NOISY, input_range=hw.InputRangeParameter())
    analog, params, plan, _ = users(framework, called, place, ranged)
    path = called if place == "alone" else f"own/{called}"
    assert path in {entry.path for entry in plan.digital}
    example = (X,) if framework == "linen" else ()
    found = hw.inspect(analog, *([params] if example else []), *example)
    assert path in dict(found.digital)

    stripped = hw.strip(params, plan)
    assert {*paths.leaves(stripped)} >= {path, "dense/kernel"}
    assert "dense/probe" not in paths.leaves(stripped)
    completed = hw.adopt(analog, stripped, *example)
    assert paths.leaves(completed).keys() == paths.leaves(params).keys()

    check_trained_and_exported(params, plan, path, tmp_path)


@pytest.mark.sampled
@pytest.mark.parametrize("called", NAMES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_rule_reaches_a_parameter_with_the_name_of_a_leaf(framework, called):
    rules = [hw.Rule(params=f"own/{called}", hardware=NOISY)]
    *_, plan, call = users(framework, called, "own", rules)
    assert list(plan) == [f"own/{called}"]
    assert np.abs(call(hw.train_mode) - call(hw.eval_mode)).max() > 1e-3


@pytest.mark.sampled
@pytest.mark.parametrize("called", NAMES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_beside_an_analog_kernel_whose_hardware_has_no_such_leaf(
    framework, called, tmp_path
):
    plain = SharedScope(called) if framework == "linen" else Around(called)
    _, params, plan, call = made(framework, plain, NOISY)
    path = called if framework == "linen" else f"layer/{called}"
    assert path in {entry.path for entry in plan.digital}
    assert path in paths.leaves(hw.strip(params, plan))
    check_trained_and_exported(params, plan, path, tmp_path)
    assert np.abs(call(hw.train_mode) - call(hw.eval_mode)).max() > 1e-3


MAPPED = hw.MappingParameter(weight_scaling_omega=1.0)
ADDS = {
    "input_range": Hardware(input_range=hw.InputRangeParameter()),
    "probe": Hardware(input_range=hw.InputRangeParameter()),
    "mapping_scale": Hardware(forward=hw.IOParameters(inp_bits=8), mapping=MAPPED),
    "output_scale": Hardware(mapping=hw.MappingParameter(learn_out_scaling=True)),
    "clip_bound": Hardware(clip=hw.WeightClipParameter(type="learnable_per_channel")),
    "chip_key": Hardware(forward=hw.IOParameters(v_offset_std=0.1)),
    "on_levels": Hardware(
        modifier=hw.WeightModifierParameter(
            type="discretize", res=0.1, enable_during_test=True
        )
    ),
    "noise_key": NOISY,
    "noise_strength": NOISY,
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("called", ADDS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_beside_an_analog_kernel_whose_hardware_has_it_is_refused(framework, called):
    plain = SharedScope(called) if framework == "linen" else Around(called)
    path = called if framework == "linen" else f"layer/{called}"
    with pytest.raises(ValueError, match=f"{path} is a name that the model itself"):
        made(framework, plain, ADDS[called])
    # The way out that the message names.
    layer = "" if framework == "linen" else "layer"
    rules = [hw.Rule(layer, None), hw.Rule(params=path, hardware=NOISY)]
    *_, plan, _ = made(framework, plain, rules)
    assert list(plan) == [path]


def test_what_an_nnx_layer_calls_so_without_being_a_parameter_is_refused():
    class Probing(nnx.Linear):
        def probe(self):
            return 1

    with pytest.raises(ValueError, match="probe is a name that the model itself uses"):
        hw.analogize(Probing(4, 4, rngs=nnx.Rngs(0)), ADDS["probe"])


def test_a_parameter_of_a_user_under_lifted_transforms():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            y = OfLinen("probe")(nn.Dense(4)(carry))
            return nn.remat(OfLinen)("input_range")(y), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            rngs, axes = {"params": True}, {"params": 0}
            scan = nn.scan(Step, variable_axes=axes, split_rngs=rngs, length=2)
            return scan(name="steps")(x, None)[0]

    _, _, plan, _ = made("linen", Stack(), ADDS["probe"])
    digital = {entry.path for entry in plan.digital}
    names = {path for path in digital if leaf_names.named_as_leaf(path)}
    assert {path.rpartition("/")[2] for path in names} == {"probe", "input_range"}
    assert len(names) == 2
    assert list(plan) == ["steps/Dense_0/kernel"]


RANGES = {"input_range": jnp.ones((1, 2)), "probe": jnp.zeros((1, 2, 6))}
KERNEL = {"kernel": jnp.ones((4, 4))}


@pytest.mark.parametrize(
    ("beside", "left"),
    [
        (RANGES, ()),
        ({**RANGES, "mapping_scale": jnp.ones((1, 4))}, ()),
        ({"chip_key": jnp.ones(2, jnp.uint32)}, ()),
        ({**RANGES, "on_levels": jnp.ones(())}, ()),
        ({"probe": jnp.ones((1, 2, 6))}, ("probe",)),
        ({"input_range": jnp.ones((1, 1))}, ("input_range",)),
        ({**RANGES, "probe": jnp.zeros((4, 6))}, ("input_range", "probe")),
        ({"mapping_scale": jnp.ones(4)}, ("mapping_scale",)),
        ({"output_scale": jnp.ones(4)}, ("output_scale",)),
        ({"chip_key": jnp.ones((1, 2))}, ("chip_key",)),
    ],
)
def test_without_a_plan_strip_takes_what_shows_that_it_is_a_leaf(beside, left):
    stripped = hw.strip({"layer": {**KERNEL, **beside}, "probe": {"probe": KERNEL}})
    assert {*stripped["layer"]} == {"kernel", *left}
    assert stripped["probe"] == {"probe": KERNEL}


@pytest.mark.parametrize("name", ["mapping_scale", "output_scale", "on_levels"])
def test_without_a_plan_strip_refuses_what_shows_nothing(name):
    leaf = jnp.ones((1, 4))
    with pytest.raises(ValueError, match=rf"{name}.*hwtrain.strip\(params, plan\)"):
        hw.strip({**KERNEL, name: leaf})


def test_without_a_plan_strip_sees_types_of_an_nnx_state():
    model = Scaled("mapping_scale")
    stored = hw.WeightClipParameter(type="fixed_value", fixed_value=1.0)
    inner = hw.analogize(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), Hardware(clip=stored))

    class Both(nnx.Module):
        def __init__(self):
            self.plain, self.analog = model, inner

    stripped = paths.leaves(hw.strip(nnx.state(Both(), nnx.Param)))
    assert "plain/mapping_scale" in stripped
    assert "analog/kernel" in stripped
    assert "analog/mapping_scale" not in stripped


def test_strip_with_a_plan_that_does_not_reach_a_layer_says_so():
    class TwoWays(nn.Module):
        def setup(self):
            self.encoder, self.decoder = nn.Dense(4), nn.Dense(4)

        def __call__(self, x):
            return self.encoder(x)

        def both(self, x):
            return self.decoder(self.encoder(x))

    analog = hw.analogize(TwoWays(), ADDS["probe"])
    params = analog.init(jax.random.key(0), X, method="both")["params"]
    part = hw.plan(analog, params, X)
    with pytest.raises(ValueError, match="Unite the plans"):
        hw.strip(params, part)
    whole = hw.plan(analog, params, X, method="both")
    assert {*hw.strip(params, part | whole)["decoder"]} == {"kernel", "bias"}


def test_the_names_are_those_of_the_leaves_that_hardware_makes():
    def leaves_of(**parts):
        weight = AnalogWeight(
            path="kernel",
            kind="dense",
            layer="Dense",
            shape=(4, 4),
            rows=(0,),
            columns=(1,),
            hardware=Hardware(**parts),
            rule="",
            ranged="input_range" in parts,
        )
        leaves = initial_leaves(weight, jnp.ones((4, 4)))
        assert leaves.keys() == weight.leaf_shapes.keys()
        return leaves.keys()

    scaled = hw.MappingParameter(learn_out_scaling=True)
    made = leaves_of(
        input_range=hw.InputRangeParameter(),
        remap=hw.WeightRemapParameter(type="layerwise_symmetric"),
        mapping=scaled,
    ) | leaves_of(clip=hw.WeightClipParameter(type="learnable_per_channel"))
    assert made == {*leaf_names.names_when("model")}
    assert {*layers.TYPES} == {*NAMES}


def test_variables_of_leaves_have_the_types_that_pickles_name():
    kinds = (
        "InputRange Probe MappingScale OutputScale ClipBound ChipKey OnLevels OfChip"
    )
    for name in (*kinds.split(), "OfChip"):
        kind = getattr(layers, name)
        assert pickle.loads(pickle.dumps(kind)) is kind in layers.OUR_TYPES
