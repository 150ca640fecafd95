"""Rules: precedence, and the error for a rule that decides for no layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain import Rule
from hwtrain.checkpoint import HardwareCheckpointError

NOISE = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
CHIP, OTHER = hw.Hardware(modifier=NOISE), hw.Hardware()
X = jnp.ones((2, 6))


class OwnDense(nn.Dense):
    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        return 2 * x @ self.param("kernel", self.kernel_init, shape)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        gain = self.param("gain", nn.initializers.ones, (6, 6))
        x = nn.Dense(6, name="encoder")(x @ gain)
        x = nn.LayerNorm(name="norm")(x)
        x = OwnDense(6, name="own")(x)
        return nn.Dense(3, name="head")(x)


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.gain = nnx.Param(jnp.ones((6, 6)))
        self.encoder = nnx.Linear(6, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.encoder(x @ self.gain[...])))


def linen_plan(rules):
    analog = hw.analogize(Model(), rules)
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    return hw.plan(analog, params, X)


def nnx_plan(rules):
    return hw.plan(hw.analogize(Plain(nnx.Rngs(0)), rules))


@pytest.fixture(params=[linen_plan, nnx_plan])
def plan(request):
    return request.param


def test_one_hardware_takes_every_layer_and_leaves_the_rest(plan):
    found = plan(CHIP)
    assert set(found) == {"encoder/kernel", "head/kernel"}
    reasons = {entry.path: entry.reason for entry in found.digital}
    assert "added digitally" in reasons["head/bias"]
    assert "LayerNorm" in reasons["norm/scale"]


def test_a_layer_that_overrides_the_call_stays_digital_and_says_so():
    reasons = {entry.path: entry.reason for entry in linen_plan(CHIP).digital}
    assert "overrides Dense.__call__" in reasons["own/kernel"]


def test_the_first_rule_that_matches_wins(plan):
    found = plan([Rule("head", OTHER), Rule(".*", CHIP)])
    assert found["head/kernel"].hardware == OTHER
    assert found["encoder/kernel"].hardware == CHIP
    assert found["encoder/kernel"].rule == "Rule('.*')"


def test_what_no_rule_matches_or_none_keeps_is_digital(plan):
    found = plan([Rule("encoder", CHIP)])
    assert set(found) == {"encoder/kernel"}
    assert {d.path: d.reason for d in found.digital}["head/kernel"] == "no rule matches"
    found = plan([Rule("head", None), Rule(".*", CHIP)])
    reasons = {entry.path: entry.reason for entry in found.digital}
    assert reasons["head/kernel"] == "Rule('head') keeps it digital"


def test_rules_may_end_with_the_hardware_of_all_other_layers(plan):
    found = plan([Rule("head", OTHER), CHIP])
    assert found["head/kernel"].hardware == OTHER
    assert found["encoder/kernel"].hardware == CHIP
    # As with one hardware for all: what is no layer stays digital.
    assert set(found) == {"encoder/kernel", "head/kernel"}
    assert set(plan([Rule("head", None), CHIP])) == {"encoder/kernel"}
    # It need not be used, as a rule must be.
    assert set(plan([Rule(".*", OTHER), CHIP])) == {"encoder/kernel", "head/kernel"}
    with pytest.raises(ValueError, match="which may end with the Hardware of all"):
        plan([CHIP, Rule("head", OTHER)])


def test_parameters_by_rule(plan):
    rules = [
        Rule(params="gain", rows=0, columns=1, hardware=CHIP),
        Rule(params="head/bias", hardware=CHIP),
        Rule(".*", CHIP),
    ]
    found = plan(rules)
    gain, bias = found["gain"], found["head/bias"]
    assert (gain.kind, gain.rows, gain.columns) == ("raw", (0,), (1,))
    assert (bias.kind, bias.rows, bias.columns) == ("raw", (), (0,))
    assert found["head/kernel"].kind == "dense"


def test_the_noise_of_a_raw_parameter_is_on():
    analog = hw.analogize(Model(), Rule(params="gain", hardware=CHIP))
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    x = jax.random.normal(jax.random.key(5), (2, 6))
    outputs = [
        analog.apply(variables, x, rngs={"mismatch": jax.random.key(k)}) for k in (1, 2)
    ]
    assert not np.allclose(*outputs)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("encodr", CHIP)], "matches no layer.*'encoder', 'head'"),
        ([Rule("enc", CHIP)], "must match the whole path"),
        ([Rule("norm", CHIP)], "cannot be analog: 'norm' .LayerNorm"),
        ([Rule(".*", CHIP), Rule("head", OTHER)], "earlier rules win .'head'"),
        ([Rule(params="gains", hardware=CHIP)], "matches no parameter.*'gain'"),
        (
            [Rule(params="gain", rows=3, hardware=CHIP)],
            r"rows=3 is not an axis of gain, whose shape is \(6, 6\)",
        ),
    ],
)
def test_a_rule_that_does_nothing_is_an_error(plan, rules, message):
    with pytest.raises(ValueError, match=message):
        plan(rules)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule(), "either a pattern for layers or params="),
        (lambda: Rule("a", CHIP, params="b"), "either a pattern"),
        (lambda: Rule("a", CHIP, rows=0), "leave them out"),
        (lambda: Rule("(", CHIP), "is not a regular expression"),
        (lambda: Rule("a", {"modifier": 1}), "must be a Hardware"),
        (lambda: hw.analogize(Model(), 3), "one Hardware for all layers, or a seq"),
        (lambda: hw.analogize(Model(), ["a"]), "one Hardware for all layers, or a seq"),
        (lambda: hw.analogize(lambda x: x, CHIP), "takes a flax.linen.Module or a"),
        (lambda: hw.analogize(Model(), CHIP, rngs=nnx.Rngs(0)), "is for NNX"),
        (lambda: hw.plan(hw.analogize(Model(), CHIP)), "are known only by a call"),
        (lambda: hw.plan(Model(), {}, X), "is not analog"),
    ],
)
def test_wrong_arguments_name_the_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule(3, CHIP), "a Rule's pattern must be text, .*; got 3"),
        (lambda: Rule(params=("a", "b"), hardware=CHIP), r"must be text.*\('a', 'b'\)"),
        (
            lambda: hw.analogize(Model(), [CHIP, Rule("head", None)]),
            "got a Hardware before the end: write it last, or as Rule",
        ),
        (lambda: hw.analogize(Model(), hw.presets.pcm), r"Call it: pcm\(\)"),
        (lambda: hw.analogize(Model(), [("a", CHIP)]), r"got tuple: \('a', Hardware"),
        (lambda: hw.analogize(Model(), {"forward": {}}), "got dict: {'forward'"),
    ],
)
def test_arguments_of_another_kind_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stack_axis_that_does_not_lead_is_an_error():
    class Stacked(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.vmap(
                nn.Dense,
                variable_axes={"params": 1},
                split_rngs={"params": True},
                in_axes=None,
                axis_size=3,
            )(4, use_bias=False)(x)

    analog = hw.analogize(Stacked(), CHIP)
    with pytest.raises(ValueError, match="Stack on axis 0"):
        variables = analog.init(jax.random.key(0), X)
        hw.plan(analog, variables, X)


def test_inspect_tells_what_is_on_and_what_is_not():
    chip = hw.Hardware(
        modifier=NOISE,
        clip=hw.WeightClipParameter(type="layer_gaussian", sigma=2.0),
        input_range=hw.InputRangeParameter(),
        mapping=hw.MappingParameter(max_input_size=4, weight_scaling_omega=1.0),
        mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.2),
        converter=hw.SinglePairConductanceConverter(g_max=20.0),
    )
    analog = hw.analogize(Model(), chip)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    found = hw.inspect(analog, variables, X)
    row = {row["weight"]: row for row in found.rows}["head/kernel"]
    assert row["weight noise"] == "add_normal 0.1 (train)"
    assert row["clip"] == "layer_gaussian 2 std"
    assert row["input range"] == "3, not initialised from data"
    assert row["mismatch"] == "mult_normal 0.2"
    assert row["conductances"] == "single_pair, 0 to 20 µS"
    assert row["tiles"].startswith("2x1 of 3x3")
    assert found.totals["tiles"] == 4
    assert found.totals["analog weights"] == 6 * 6 + 6 * 3
    assert "norm/scale" in str(found)
    twin = hw.inspect(hw.analogize(Plain(nnx.Rngs(0)), chip))
    assert {r["weight"] for r in twin.rows} == {"encoder/kernel", "head/kernel"}


class OwnProduct(nn.Module):
    """A layer of the user's own, and one that is known."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (4, 3))
        tau = self.param("tau", nn.initializers.ones, (3,))
        return nn.Dense(4, name="known")(x) @ w * tau


def test_a_layer_that_is_not_known_says_how_its_arrays_get_on_hardware(tmp_path):
    x = jnp.ones((2, 4))
    quiet = hw.Hardware()
    analog = hw.analogize(nn.Sequential([OwnProduct()]), quiet)
    variables = analog.init(jax.random.key(0), x)
    found = dict(hw.inspect(analog, variables, x).digital)
    why = "OwnProduct: this type of layer stays digital"
    way_out = "Rule(params=...) puts the array itself on hardware"
    assert found["layers_0/w"] == f"{why}; {way_out}"
    assert found["layers_0/tau"] == why  # no matrix
    assert "Rule" not in found["layers_0/known/bias"]
    plan = hw.plan(analog, variables, x)
    match = (
        r"no weight of the plan \(layers_0/known/kernel\) has a frozen mismatch.*"
        r"Rule\(params=\.\.\., rows=\.\.\., columns=\.\.\.\)"
    )
    with pytest.raises(HardwareCheckpointError, match=match):
        hw.export(tmp_path / "chip", variables, plan, chip_seed=0)
