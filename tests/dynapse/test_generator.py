"""Mismatch over parameter trees, against Rockpool's numbers and in distribution."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths

# Equal to the last bit, as XLA compiles it for a user.
to_the_bit = pytest.mark.optimised

KEY = jax.random.key(0)


def rockpool_tree(golden):
    """Returns Rockpool's parameters as it gives them to its generator, in float32."""
    tree = golden("rockpool")["mismatch"]["input_tree"]
    return {
        layer: {name: jnp.asarray(v, jnp.float32) for name, v in leaves.items()}
        for layer, leaves in tree.items()
    }


def rockpool_path(name):
    """`['1_DynapSim']['C_ahp']` as ours: `1_DynapSim/C_ahp`."""
    return name.replace("']['", "/").strip("[']")


def rockpool_prototype(golden, tree, name):
    make = {
        "frozen": hw.frozen_mismatch_prototype,
        "dynamic": hw.dynamic_mismatch_prototype,
    }[name]
    return make(tree, compat="rockpool")


def assert_same_draws(deviated, expected, golden):
    """Bit-equal with the JAX that Rockpool was run with.

    Another compiler may or may not contract a product and a sum into one rounding:
    then the last bit of a number is its own.
    """
    ulps = 0 if jax.__version__ == golden("rockpool")["meta"]["jax"] else 1
    deviated = paths.leaves(deviated)
    for name, value in expected.items():
        found = np.asarray(deviated[rockpool_path(name)])
        np.testing.assert_array_max_ulp(found, np.float32(value), maxulp=ulps)


@pytest.mark.parametrize("name", ["frozen", "dynamic"])
def test_compat_prototypes_are_those_of_rockpool(golden, name):
    tree = rockpool_tree(golden)
    expected = golden("rockpool")["mismatch"]["prototypes"][name]
    assert rockpool_prototype(golden, tree, name) == expected


@pytest.mark.sampled(3)
@to_the_bit
@pytest.mark.parametrize("case", range(12))
def test_draws_are_bit_equal_to_rockpool(golden, case):
    tree, data = rockpool_tree(golden), golden("rockpool")["mismatch"]
    case = data["cases"][case]
    generate = hw.mismatch_generator(
        rockpool_prototype(golden, tree, case["prototype"]),
        case["percent_deviation"],
        case["sigma_rule"],
    )
    deviated = generate(tree, jax.random.PRNGKey(case["seed"]))
    assert_same_draws(deviated, case["deviated_selected"], golden)
    chosen = {rockpool_path(name) for name in case["deviated_selected"]}
    for path, leaf in paths.leaves(tree).items():
        if path not in chosen:
            assert paths.leaves(deviated)[path] is leaf, path


@to_the_bit
def test_draws_are_bit_equal_with_the_older_threefry(golden):
    tree = rockpool_tree(golden)
    case = golden("rockpool")["mismatch"]["legacy_nonpartitionable_threefry"]
    generate = hw.mismatch_generator(rockpool_prototype(golden, tree, "frozen"))
    with jax.threefry_partitionable(False):
        deviated = generate(tree, jax.random.PRNGKey(case["seed"]))
    assert_same_draws(deviated, case["deviated_selected"], golden)


@to_the_bit
def test_draws_are_bit_equal_to_tree_map_select_with_rng(golden):
    # Its map adds a normal number. So does ours to zeros, where the largest of a leaf
    # is 1 and sigma is 1: first with a 1 at the end of every leaf, then at its start.
    case = golden("rockpool")["tree_map_select_with_rng"]
    generate = hw.mismatch_generator(
        case["prototype"], percent_deviation=1.0, sigma_rule=1.0, kind="additive"
    )
    tree = jax.tree.map(
        np.float32, case["tree"], is_leaf=lambda leaf: isinstance(leaf, list)
    )
    chosen = paths.leaves(case["prototype"])

    def drawn(index):
        def one(leaf):
            zeros = np.zeros_like(leaf)
            zeros.flat[index] = 1
            return zeros

        key = jax.random.PRNGKey(case["seed"])
        return paths.leaves(generate(jax.tree.map(one, tree), key))

    first, last = drawn(0), drawn(-1)
    for path, leaf in paths.leaves(tree).items():
        expected = case["out"]
        for name in path.split("/"):
            expected = expected[name]
        draws = np.zeros_like(leaf)
        if chosen[path]:
            draws = np.append(last[path][:-1], first[path][-1])
        np.testing.assert_array_equal(leaf + draws, np.float32(expected), path)


@to_the_bit
def test_a_chip_in_amperes_is_the_reference_constructor(golden):
    data = golden("rockpool")["constructor_percent_mismatch"]
    layer = rockpool_tree(golden)["1_DynapSim"]
    prototype = hw.frozen_mismatch_prototype(layer, compat="rockpool")
    key = jnp.asarray(data["effective_key"], jnp.uint32)
    chip = hw.mismatch_generator(prototype, data["percent_mismatch"])(layer, key)
    assert_same_draws(chip, data["params"], golden)


@pytest.mark.nightly
@to_the_bit
def test_least_ratio_keeps_values_physical():
    tree = {"I": jnp.concatenate([jnp.ones(5000), -jnp.ones(5000), jnp.zeros(5)])}
    for kind in ("multiplicative", "additive"):
        wild = hw.mismatch_generator({"I": True}, 1.0, 1.0, kind=kind)
        kept = hw.mismatch_generator({"I": True}, 1.0, 1.0, kind=kind, least_ratio=0.1)
        free, held = wild(tree, KEY)["I"], kept(tree, KEY)["I"]
        nominal = tree["I"]
        changed = np.asarray(free * nominal < 0.1) & np.asarray(nominal != 0)
        assert 1000 < changed.sum() < 3000  # P(xi < -0.9) = 18.4 %
        np.testing.assert_allclose(held[changed], 0.1 * nominal[changed])
        np.testing.assert_array_equal(held[~changed], free[~changed])


def test_the_sigma_rule_is_stated_in_words():
    prototype = {"w": True, "b": False}
    text = repr(hw.mismatch_generator(prototype))
    assert "1 of 2 leaves" in text
    assert (
        "30 % deviation at 3 sigma: standard deviation 10 %, 99.7 % of devices "
        "within 30 %" in text
    )
    assert "5 % deviation at 1 sigma: standard deviation 5 %, 68.3 %" in repr(
        hw.mismatch_generator(prototype, 0.05, 1.0)
    )


@pytest.mark.parametrize(
    ("kind", "expected_mean", "expected_std"),
    [
        # The moments of theta (1 + s xi), theta + s A xi and theta exp(s xi).
        ("multiplicative", -2.0, 0.4),
        ("additive", -2.0, 0.2 * 3.0),
        (
            "log_normal",
            -2.0 * math.exp(0.02),
            2.0 * math.exp(0.02) * math.sqrt(math.exp(0.04) - 1),
        ),
    ],
)
def test_distributions(kind, expected_mean, expected_std):
    n = 40_000
    tree = {"w": jnp.full(n, -2.0).at[0].set(3.0)}
    generate = hw.mismatch_generator({"w": True}, 0.4, 2.0, kind=kind)
    drawn = np.asarray(generate(tree, KEY)["w"][1:])
    z = 5 / math.sqrt(n)
    assert abs(drawn.mean() - expected_mean) < z * expected_std
    # The kurtosis of the log-normal is 4 at most here: its std deviates by that much.
    assert abs(drawn.std() / expected_std - 1) < z


def test_the_logarithm_of_a_current_deviates_by_sigma():
    n = 40_000
    tree = {"log_Itau_mem": jnp.full(n, 0.7), "log_scale": jnp.ones(1)}
    prototype = {"log_Itau_mem": True, "log_scale": True}
    chip = hw.mismatch_generator(prototype, 0.6)(tree, KEY)
    drawn = np.asarray(chip["log_Itau_mem"]) - 0.7
    assert abs(drawn.mean()) < 5 * 0.2 / math.sqrt(n)
    assert abs(drawn.std() - 0.2) < 5 * 0.2 / math.sqrt(2 * n)
    # Not a quantity of a DynapSim: an ordinary leaf.
    tree["log_scale"] = jnp.zeros(1)
    zero = hw.mismatch_generator(prototype, 0.6)(tree, KEY)
    assert float(zero["log_scale"][0]) == 0


def test_each_parameter_has_its_deviation():
    n = 20_000
    tree = {"cell": {"w": jnp.ones(n), "v": jnp.ones(n)}, "kernel": jnp.ones(n)}
    generate = hw.mismatch_generator(
        hw.select(tree, ".*"), {"cell/w": 0.3, "cell/.*": 0.9, "kernel": 0.0}
    )
    chip = generate(tree, KEY)
    tolerance = 5 / math.sqrt(2 * n)
    assert abs(chip["cell"]["w"].std() / 0.1 - 1) < tolerance
    assert abs(chip["cell"]["v"].std() / 0.3 - 1) < tolerance
    np.testing.assert_array_equal(chip["kernel"], tree["kernel"])
    assert "standard deviation 30 %" in repr(generate)


def test_dtypes_integers_and_functions_stay():
    tree = {
        "half": jnp.ones(8, jnp.bfloat16),
        "full": np.ones(8, np.float32),
        "number": 2.0,
        "steps": jnp.arange(3),
        "activation": jnp.tanh,
    }
    prototype = hw.select(tree, ".*")
    assert prototype == {
        "half": True,
        "full": True,
        "number": True,
        "steps": False,
        "activation": False,
    }
    chip = hw.mismatch_generator(prototype)(tree, KEY)
    assert chip["half"].dtype == jnp.bfloat16 and chip["full"].dtype == jnp.float32
    assert chip["steps"] is tree["steps"] and chip["activation"] is tree["activation"]
    assert (chip["half"] != 1).any() and chip["number"] != 2.0
    # The draw of the narrow leaf is the float32 one, rounded.
    wide = {**tree, "half": jnp.ones(8)}
    same = hw.mismatch_generator(prototype)(wide, KEY)["half"]
    np.testing.assert_array_equal(chip["half"], same.astype(jnp.bfloat16))


def test_narrow_and_wide_floats_keep_their_dtype():
    generate = hw.mismatch_generator({"w": True}, {"w": 0.3})
    narrow = generate({"w": jnp.full(8, 16.0, jnp.float8_e4m3fn)}, KEY)["w"]
    assert narrow.dtype == jnp.float8_e4m3fn and (narrow.astype(float) != 16.0).any()
    with jax.enable_x64(True):
        value = 1 + 2.0**-40  # lost in float32
        same = hw.mismatch_generator({"w": True}, 0.0)({"w": np.full(3, value)}, KEY)
        assert same["w"].dtype == np.float64
        np.testing.assert_array_equal(same["w"], value)
        drawn = generate({"w": np.ones(3)}, KEY)["w"]
    single = generate({"w": jnp.ones(3)}, KEY)["w"]
    np.testing.assert_allclose(drawn, single, rtol=1e-7)


class Net(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))


def test_linen_nnx_and_plain_trees_draw_the_same():
    model = Net()
    kernel, bias = model.hidden.kernel[...], model.hidden.bias[...]
    plain = {"hidden": {"kernel": kernel, "bias": bias}}
    boxed = {"hidden": {"kernel": nn.Partitioned(kernel, (None, None)), "bias": bias}}
    state = nnx.state(model, nnx.Param)
    drawn = [
        hw.mismatch_generator(hw.dynamic_mismatch_prototype(tree))(tree, KEY)
        for tree in (plain, boxed, state, model)
    ]
    expected = drawn[0]["hidden"]["kernel"]
    assert (expected != kernel).all()
    np.testing.assert_array_equal(drawn[1]["hidden"]["kernel"].value, expected)
    np.testing.assert_array_equal(drawn[2]["hidden"]["kernel"][...], expected)
    np.testing.assert_array_equal(drawn[3].hidden.kernel[...], expected)
    np.testing.assert_array_equal(model.hidden.kernel[...], kernel)
    np.testing.assert_array_equal(drawn[3].hidden.bias[...], bias)


def test_a_plan_says_which_kernels_are_on_crossbars():
    x = jnp.ones((1, 3))
    module = nn.Sequential([nn.Dense(4), nn.Dense(2)])
    analog = hw.analogize(module, hw.Rule("layers_1", hw.Hardware()))
    variables = jax.jit(analog.init)(KEY, x)
    plan = hw.plan(analog, variables, x)
    for make in (hw.frozen_mismatch_prototype, hw.dynamic_mismatch_prototype):
        with_plan = paths.leaves(make(variables, plan=plan))
        assert [path for path, on in with_plan.items() if on] == [
            "params/layers_1/kernel"
        ]
        without = paths.leaves(make(variables["params"]))
        assert [path for path, on in without.items() if on] == [
            "layers_0/kernel",
            "layers_1/kernel",
        ]


class TwoLayers(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))


def test_an_analog_nnx_model_knows_its_kernels():
    model = TwoLayers(nnx.Rngs(0))
    analog = hw.analogize(model, hw.Rule("second", hw.Hardware()), name="encoder")
    for make in (hw.frozen_mismatch_prototype, hw.dynamic_mismatch_prototype):
        assert [p for p, on in paths.leaves(make(model)).items() if on] == [
            "first/kernel",
            "second/kernel",
        ]
        prototype = make(analog)
        chosen = [path for path, on in paths.leaves(prototype).items() if on]
        assert chosen == ["second/kernel"]
        params = nnx.state(analog, nnx.Param)
        assert make(params, plan=hw.plan(analog)) == prototype
    chip = hw.mismatch_generator(prototype)(analog, KEY)
    assert (chip.second.kernel[...] != model.second.kernel[...]).all()
    np.testing.assert_array_equal(chip.first.kernel[...], model.first.kernel[...])
    # The chip is an analog model still, with the mode and the plan of the nominal one.
    assert hw.plan(chip) == hw.plan(analog)
    x = jnp.ones((1, 3))
    expected = chip.first(x) @ chip.second.kernel[...] + chip.second.bias[...]
    np.testing.assert_allclose(hw.eval_mode(chip)(x), expected, rtol=1e-6)


def test_chips_are_a_mapped_axis_and_levels_do_not_recompile():
    tree = {"w": jnp.ones((3, 4))}
    generate = hw.mismatch_generator({"w": True})
    keys = jax.random.split(KEY, 5)
    chips = jax.vmap(generate, in_axes=(None, 0))(tree, keys)
    for chip in range(5):
        alone = generate(tree, keys[chip])["w"]
        np.testing.assert_allclose(chips["w"][chip], alone, rtol=1e-6)
    with jax.no_tracing():
        hw.mismatch_generator({"w": True}, 0.5)(tree, KEY)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_neighbours_are_correlated_as_stated(share):
    width, length, chips = 4, 2.0, 20_000
    spatial = hw.SpatialCorrelation(width=width, length=length, share=share)
    generate = hw.mismatch_generator({"I": True}, 1.0, 1.0, correlation=spatial)
    tree = {"I": jnp.ones((chips, 10))}  # two rows of four, one of two
    xi = np.asarray(generate(tree, KEY)["I"]) - 1
    x, y = np.arange(10) % width, np.arange(10) // width
    distance = abs(x[:, None] - x) + abs(y[:, None] - y)
    expected = share * np.exp(-distance / length) + (1 - share) * np.eye(10)
    found = xi.T @ xi / chips
    # The standard error of a covariance of normals is at most sqrt(2 / N).
    assert abs(found - expected).max() < 5 * math.sqrt(2 / chips)
    assert "length=2.0" in repr(generate)


class Twins(NamedTuple):
    """A node that calls both of its children the same."""

    one: jax.Array
    two: jax.Array


jax.tree_util.register_pytree_with_keys(
    Twins,
    lambda node: ([(jax.tree_util.DictKey("twin"), x) for x in node], None),
    lambda _, children: Twins(*children),
)


def test_structures_are_compared_by_path():
    generate = hw.mismatch_generator({"a": True, "b": False})
    with pytest.raises(ValueError, match=r"only the prototype has \['b'\], only the"):
        generate({"a": jnp.ones(2), "c": jnp.ones(2)}, KEY)
    with pytest.raises(ValueError, match="selects 'a'.*floating-point.*int32"):
        generate({"a": jnp.arange(2), "b": jnp.ones(2)}, KEY)
    with pytest.raises(ValueError, match="key must be a JAX key.*got 0"):
        generate({"a": jnp.ones(2), "b": jnp.ones(2)}, 0)
    slash = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    chosen = {"a/b": True, "a": {"b": False}}
    assert hw.select(slash, "a~1b") == chosen
    assert hw.select(slash, "a/b") == {"a/b": False, "a": {"b": True}}
    found = hw.mismatch_generator(chosen)(slash, KEY)
    assert (found["a/b"] != 1).all() and (found["a"]["b"] == 1).all()
    with pytest.raises(ValueError, match=r"two leaves of the tree .* \['twin'\]"):
        hw.select(Twins(jnp.ones(2), jnp.ones(2)), ".*")
    spatial = hw.SpatialCorrelation(width=2, length=1.0)
    generate = hw.mismatch_generator({"gain": np.True_}, correlation=spatial)
    with pytest.raises(ValueError, match=r"\['gain'\] are scalars"):
        generate({"gain": jnp.ones(())}, KEY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prototype": {"a": 1.0}}, "tree of booleans.*'a': 1.0"),
        ({"prototype": {"a": False}}, "nothing in it is True"),
        ({"percent_deviation": -0.1}, "0 or more.*-0.1"),
        ({"percent_deviation": {"b": 0.1}}, "no pattern for 'a'"),
        ({"percent_deviation": {"a": 0.1, ".*": 0.2}}, r"'\.\*' wins nowhere"),
        ({"sigma_rule": 0.0}, "sigma_rule.*greater than 0"),
        ({"kind": "normal"}, "kind must be one of"),
        ({"least_ratio": 1.0}, r"in \[0, 1\)"),
        ({"kind": "log_normal", "least_ratio": 0.0}, "does nothing"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        hw.mismatch_generator(**{"prototype": {"a": True}} | arguments)


def test_bad_prototypes():
    tree = {"hidden": {"bias": jnp.ones(3)}}
    with pytest.raises(ValueError, match="'kernel' matches no floating-point leaf"):
        hw.select(tree, "kernel")
    with pytest.raises(ValueError, match="select nothing.*neither a DynapSim"):
        hw.frozen_mismatch_prototype(tree)
    with pytest.raises(ValueError, match="Dense is a Linen model.*model.init.*plan="):
        hw.frozen_mismatch_prototype(nn.Dense(3))
    with pytest.raises(ValueError, match='None or "rockpool"'):
        hw.dynamic_mismatch_prototype({"kernel": jnp.ones((2, 2))}, compat="x")
    for bad in ({"width": 0, "length": 1.0}, {"width": 1, "length": 1.0, "share": 0.0}):
        with pytest.raises(ValueError, match="SpatialCorrelation"):
            hw.SpatialCorrelation(**bad)
