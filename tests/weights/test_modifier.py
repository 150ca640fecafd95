import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain
from hwtrain._arrays.random import normal
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._plan.hardware import Hardware
from hwtrain.weights import WeightModifierParameter, levels, noises
from hwtrain.weights.pcm import pcm_noise

KEY = jax.random.key(3)
W = jnp.float32([[0.5, -1.6, 0.0], [0.0, 0.8, -0.3]])
W_MAX = jnp.float32([[0.5, 1.6, 0.3]])
ROUNDING_KEY = jax.random.fold_in(KEY, 1)
ACTIVE = [
    {"type": "add_normal", "std_dev": 0.1},
    {"type": "mult_normal", "std_dev": 0.1},
    {"type": "discretize", "res": 6.0},
    {"type": "discretize", "res": 6.0, "sto_round": True},
    {"type": "discretize_add_normal", "res": 6.0, "std_dev": 0.1},
    {"type": "dorefa", "res": 0.1},
    {"type": "dorefa", "res": 0.1, "sto_round": True},
    {"type": "poly", "std_dev": 1.0},
    {"type": "poly", "std_dev": 1.0, "coeffs": (0.1, 0.2)},
    {"type": "prog_noise", "std_dev": 1.0},
    {"type": "prog_noise", "std_dev": 1.0, "g_max": 12.5},
    {"type": "pcm_noise", "std_dev": 1.0},
    {"type": "pcm_noise", "pcm_t_inference": 60.0},
    {"type": "pcm_noise", "pcm_prob_at_reset": 0.5},
    {"type": "pcm_noise", "pcm_prob_at_gmax": 0.5},
    {"type": "pcm_noise", "pcm_prob_at_random": 0.5},
    {"type": "drop_connect", "pdrop": 0.5},
    {"type": "copy", "pdrop": 0.5},
    {"type": "discretize", "res": 6.0, "pdrop": 0.5},
]


def by_hand(type, **options):
    match type:
        case "add_normal":
            return noises.add_normal(KEY, W, W_MAX, **options)
        case "mult_normal":
            return noises.mult_normal(KEY, W, **options)
        case "discretize":
            return levels.discretize(W, W_MAX, **options)
        case "discretize_add_normal":
            rounded = levels.discretize(W, W_MAX, res=options["res"])
            return rounded + 0.1 * W_MAX * normal(KEY, W.shape)
        case "dorefa":
            return levels.dorefa(W, W_MAX, **options)
        case "poly":
            return noises.poly(KEY, W, W_MAX, **options)
        case "prog_noise":
            return noises.prog_noise(KEY, W, W_MAX, **options)
    raise KeyError(type)


@pytest.mark.parametrize("options", ACTIVE[:11])
def test_every_type_is_its_formula(options):
    modifier = WeightModifierParameter(**options)
    options = dict(options)
    if options.pop("sto_round", False):
        options["key"] = ROUNDING_KEY
    np.testing.assert_array_equal(modifier(KEY, W, W_MAX), by_hand(**options))


def test_pcm_options_reach_the_formula():
    modifier = WeightModifierParameter(
        type="pcm_noise",
        std_dev=0.5,
        g_max=20.0,
        pcm_t_inference=60.0,
        pcm_t0=10.0,
        pcm_zero_thres=1.0,
        pcm_prob_at_reset=0.1,
        pcm_prob_at_gmax=0.2,
        pcm_prob_at_random=0.3,
    )
    expected = pcm_noise(
        KEY,
        W,
        W_MAX,
        std_dev=0.5,
        g_max=20.0,
        t_inference_s=60.0,
        t0_s=10.0,
        zero_threshold=1.0,
        prob_at_reset=0.1,
        prob_at_gmax=0.2,
        prob_at_random=0.3,
    )
    np.testing.assert_array_equal(modifier(KEY, W, W_MAX), expected)


@pytest.mark.parametrize("options", ACTIVE)
def test_every_modifier_changes_weights_and_says_so(options):
    modifier = WeightModifierParameter(**options)
    w = jnp.linspace(-1.0, 1.0, 60).reshape(20, 3)
    result = modifier(KEY, w, jnp.float32([[1.0]]))
    other = modifier(jax.random.key(4), w, jnp.float32([[1.0]]))
    assert modifier.acts
    assert not np.array_equal(result, w)
    assert modifier.draws == (not np.array_equal(result, other))
    chip = Hardware(modifier=modifier)
    assert chip.modifies("train") and chip.draws("train") == modifier.draws
    assert not chip.modifies("eval") and not chip.modifies("chip")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("options", ACTIVE)
def test_gradients_pass_and_jit_is_eager(options):
    modifier = WeightModifierParameter(**options)
    gradient = jax.grad(lambda w: (2 * modifier(KEY, w, W_MAX)).sum())(W)
    np.testing.assert_array_equal(gradient, jnp.full(W.shape, 2.0))
    np.testing.assert_allclose(
        jax.jit(modifier)(KEY, W, W_MAX), modifier(KEY, W, W_MAX), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("options", ACTIVE)
def test_reparameterized_keeps_values(options):
    plain = WeightModifierParameter(**options)
    true = WeightModifierParameter(**options, reparameterized=True)
    np.testing.assert_array_equal(true(KEY, W, W_MAX), plain(KEY, W, W_MAX))


def test_reparameterized_drop_gives_dropped_weights_no_gradient():
    modifier = WeightModifierParameter(
        type="drop_connect", pdrop=0.5, reparameterized=True
    )
    w = jnp.ones((40, 3))
    gradient = jax.grad(lambda w: modifier(KEY, w, W_MAX).sum())(w)
    np.testing.assert_array_equal(gradient, modifier(KEY, w, W_MAX))


@pytest.mark.parametrize("options", ACTIVE)
def test_configurations_round_trip(options):
    modifier = WeightModifierParameter(**options)
    assert from_dict(WeightModifierParameter, to_dict(modifier)) == modifier
    hash(modifier)


@pytest.mark.parametrize("type", ["none", "copy", "drop_connect", "add_normal"])
def test_off_is_exact_and_needs_no_key(type):
    modifier = WeightModifierParameter(type=type)
    assert not modifier.acts and not modifier.draws
    assert modifier(None, W, W_MAX) is W


def test_rounding_needs_no_key_and_draws_need_one():
    rounding_only = WeightModifierParameter(type="discretize", res=6.0)
    np.testing.assert_array_equal(
        rounding_only(None, W, W_MAX), rounding_only(KEY, W, W_MAX)
    )
    with pytest.raises(ValueError, match="needs a JAX key, got None"):
        WeightModifierParameter(type="add_normal", std_dev=0.1)(None, W, W_MAX)


def test_an_assumed_largest_weight_replaces_the_actual_one():
    modifier = WeightModifierParameter(
        type="add_normal", std_dev=0.1, rel_to_actual_wmax=False, assumed_wmax=2.0
    )
    expected = W + 0.2 * normal(KEY, W.shape)
    np.testing.assert_allclose(modifier(KEY, W, W_MAX), expected, rtol=1e-6)


def test_noise_rounding_and_dropping_draw_different_numbers():
    w = jnp.zeros(20_000)
    noisy = WeightModifierParameter(
        type="discretize_add_normal", res=6.0, std_dev=0.1, sto_round=True, pdrop=0.5
    )
    result = np.asarray(noisy(KEY, w, jnp.float32([1.0])))
    kept = result[result != 0]
    # Dropping that shared the noise's numbers would keep one sign only.
    assert abs((kept > 0).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(len(kept))
    assert abs(kept.std() - 0.1) < 4.5 * 0.1 / np.sqrt(2 * len(kept))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "discretize"}, "needs the step of its levels: write res=254"),
        ({"type": "dorefa", "std_dev": 0.1, "res": 0.1}, "std_dev=0.1 does nothing"),
        ({"type": "add_normal", "res": 6.0}, 'res=6.0 does nothing with type="add_n'),
        ({"std_dev": 0.1}, 'std_dev=0.1 does nothing with type="none"'),
        ({"pdrop": 0.1}, "use a type that takes it: .*drop_connect"),
        ({"type": "mult_normal", "per_column": True}, "per_column=True does nothing"),
        ({"type": "poly", "g_max": 20.0}, "takes it: prog_noise, pcm_noise"),
        ({"type": "add_normal", "assumed_wmax": 2.0}, "write rel_to_actual_wmax=False"),
        ({"type": "poly", "coeffs": ()}, "at least c_0"),
        (
            {
                "type": "pcm_noise",
                "pcm_prob_at_reset": 0.7,
                "pcm_prob_at_random": 0.7,
            },
            "must not sum to more than 1; got 1.4",
        ),
        ({"type": "add_normal", "std_dev": -0.1}, "greater than or equal to 0"),
        ({"type": "drop_connect", "pdrop": 1.1}, "less than or equal to 1"),
        (
            {"type": "discretize", "res": 4.0, "per_batch_sample": True},
            "per_batch_sample=True does nothing, because this modifier draws nothing",
        ),
        (
            {"type": "discretize_add_normal", "res": 4.0, "per_vector": True},
            "use a type that takes it: add_normal, mult_normal, poly",
        ),
        (
            {"type": "add_normal", "std_dev": 0.1, "per_vector": True, "pdrop": 0.1},
            "takes no pdrop",
        ),
        (
            {
                "type": "add_normal",
                "std_dev": 0.1,
                "per_vector": True,
                "per_batch_sample": True,
            },
            "takes no per_batch_sample",
        ),
        ({"type": "AddNormal"}, "expected 'none', 'copy', 'add_normal'"),
    ],
)
def test_impossible_configurations_say_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        WeightModifierParameter(**options)


@pytest.mark.parametrize(
    "options",
    [{"type": "discretize", "res": 4.0}, {"type": "pcm_noise", "std_dev": 1.0}],
)
def test_modifiers_reach_both_frameworks(options):
    chip = Hardware(modifier=WeightModifierParameter(**options))
    x, key = jnp.eye(3), jax.random.key(1)
    linen = hwtrain.analogize(nn.Dense(4, use_bias=False), chip)
    variables = jax.jit(linen.init)(jax.random.key(0), x)
    noisy = linen.apply(variables, x, rngs={"mismatch": key})
    nominal = hwtrain.eval_mode(linen).apply(variables, x)
    assert float(jnp.abs(noisy - nominal).max()) > 0.01
    model = hwtrain.analogize(
        nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0)),
        chip,
        rngs=nnx.Rngs(mismatch=1),
    )
    assert float(jnp.abs(model(x) - model.kernel[...]).max()) > 0.01
    if options["type"] == "discretize":
        kernel = variables["params"]["kernel"]
        step = jnp.abs(kernel).max() / 2
        np.testing.assert_allclose(noisy, step * jnp.round(kernel / step), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"type": "add_normal", "std_dev": 0.1}, "add_normal 0.1 (train)"),
        ({"type": "discretize", "res": 6.0}, "discretize res 6 (train)"),
        (
            {"type": "discretize_add_normal", "res": 6.0, "std_dev": 0.1, "pdrop": 0.2},
            "discretize_add_normal 0.1, res 6, drop 0.2 (train)",
        ),
    ],
)
def test_inspect_shows_what_a_modifier_does(options, shown):
    chip = Hardware(modifier=WeightModifierParameter(**options))
    model = hwtrain.analogize(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), chip, rngs=nnx.Rngs(mismatch=1)
    )
    (row,) = hwtrain.inspect(model).rows
    assert shown in row.values()
