import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._plan.hardware import Hardware
from hwtrain.devices import (
    BitSlicedConductanceConverter,
    CustomPairConductanceConverter,
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
)

CLASSES = {
    "SingleDeviceConductanceConverter": SingleDeviceConductanceConverter,
    "SinglePairConductanceConverter": SinglePairConductanceConverter,
    "NPairConductanceConverter": NPairConductanceConverter,
    "DualPairConductanceConverter": DualPairConductanceConverter,
    "CustomPairConductanceConverter": CustomPairConductanceConverter,
}
LINE = ((0.0, 0.0, 0.0, 12.5, 25.0), (25.0, 12.5, 0.0, 0.0, 0.0))
EVERY = [
    SingleDeviceConductanceConverter(),
    SinglePairConductanceConverter(g_min=1.0),
    NPairConductanceConverter(f_lst=(1.0, 2.0, 3.0), g_min=0.1, g_max=15.0),
    DualPairConductanceConverter(f_lst=(1.0, 3.0)),
    CustomPairConductanceConverter(f_lst=(1.0,), g_lst=LINE),
]
PER_COLUMN = [
    type(converter)(**{**to_dict(converter), "per_column": True}) for converter in EVERY
]
W = jax.random.normal(jax.random.key(0), (6, 4)) * jnp.float32([0.1, 1.0, 0.3, 3.0])


def build(case):
    fields = ("g_max", "g_min", "f_lst", "g_lst")
    options = {f: case[f] for f in fields if case.get(f) is not None}
    if "g_lst" in options:
        options["g_lst"] = [[float(g) for g in curve] for curve in options["g_lst"]]
    return CLASSES[case["class"]](**options)


def test_conductances_agree_with_the_reference(golden):
    done = 0
    for name, case in golden("aihwkit_weights")["converters"].items():
        # Fusion is a column-wise pair, below; a constant matrix in one device is NaN.
        if name.startswith("fusion") or "constant" in name:
            continue
        w = jnp.float32(case["weights"]).T
        expected = np.float32(case["conductances"])
        if expected.ndim == 2:
            expected = expected[None]
        g, params = build(case).convert_to_conductances(w)
        assert len(g) == len(expected), name
        for ours, theirs in zip(g, expected):
            atol = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(ours, theirs.T, atol=atol, err_msg=name)
        scale = case["params"]["scale_ratio"]
        np.testing.assert_allclose(params["scale_ratio"], scale, rtol=1e-6)
        back = build(case).convert_back_to_weights(g, params)
        # Custom curves meet at a device's range, where 25 - 25 cancels.
        atol = 1e-5 * max(np.abs(w).max(), 1e-30)
        np.testing.assert_allclose(back, w, atol=atol, err_msg=name)
        done += 1
    assert done == 54


def test_a_pair_per_column_holds_what_fusion_holds(golden):
    # The reference's export for Fusion stores |w| scaled by each output's maximum: the
    # device of a column-wise pair that is on.
    for name in ("fusion/default/W45", "fusion/gmax25/W_ASYM"):
        case = golden("aihwkit_weights")["converters"][name]
        converter = SinglePairConductanceConverter(
            g_max=float(case["g_max"]), per_column=True
        )
        g, _ = converter.convert_to_conductances(jnp.float32(case["weights"]).T)
        expected = np.float32(case["conductances"][0]).T
        np.testing.assert_allclose(g[0] + g[1], expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("converter", EVERY + PER_COLUMN, ids=repr)
def test_weights_come_back_and_conductances_stay_in_range(converter):
    g, params = converter.convert_to_conductances(W)
    for one in g:
        assert one.shape == W.shape
        assert one.min() >= converter.g_min - 1e-5
        assert one.max() <= converter.g_max * (1 + 1e-6)
    back = converter.convert_back_to_weights(g, params)
    np.testing.assert_allclose(back, W, atol=2e-6 * float(jnp.abs(W).max()))


@pytest.mark.parametrize("converter", PER_COLUMN, ids=repr)
def test_per_column_is_each_column_alone(converter):
    g, params = converter.convert_to_conductances(W)
    assert params["scale_ratio"].shape == (1, 4)
    for column in range(4):
        alone, _ = converter.convert_to_conductances(W[:, column : column + 1])
        for whole, one in zip(g, alone):
            np.testing.assert_allclose(whole[:, column], one[:, 0], rtol=1e-6)
    # The column of the largest weight would look the same without per_column.
    assert len({float(k) for k in params["scale_ratio"][0]}) == 4


@pytest.mark.parametrize("converter", EVERY + PER_COLUMN, ids=repr)
def test_jit_and_vmap_over_tiles(converter):
    tiles = jnp.stack([W, 2 * W, -W])
    mapped, params = jax.jit(jax.vmap(converter.convert_to_conductances))(tiles)
    back = jax.vmap(converter.convert_back_to_weights)(mapped, params)
    np.testing.assert_allclose(back, tiles, atol=2e-6 * float(jnp.abs(tiles).max()))
    for index, tile in enumerate(tiles):
        alone, _ = converter.convert_to_conductances(tile)
        chex.assert_trees_all_close(
            [g[index] for g in mapped], alone, rtol=1e-5, atol=1e-5
        )


@pytest.mark.sampled
@pytest.mark.parametrize("converter", EVERY + PER_COLUMN, ids=repr)
@pytest.mark.parametrize(
    "weights",
    [jnp.zeros((3, 2)), jnp.full((3, 2), -0.7), W.at[:, 1].set(0), jnp.full((1, 1), 2)],
    ids=["zeros", "constant", "zero column", "one element"],
)
def test_degenerate_weights_are_finite_and_come_back(converter, weights):
    g, params = converter.convert_to_conductances(weights)
    chex.assert_tree_all_finite((g, params))
    back = converter.convert_back_to_weights(g, params)
    np.testing.assert_allclose(back, weights, atol=2e-6 * 5)


def test_equal_weights_in_one_device_keep_the_scale_of_the_largest():
    converter = SingleDeviceConductanceConverter(g_min=5.0, g_max=25.0)
    (g,), params = converter.convert_to_conductances(jnp.full((3, 2), -0.5))
    np.testing.assert_array_equal(g, jnp.full((3, 2), 5.0))
    assert params["scale_ratio"] == 40.0


@pytest.mark.parametrize("converter", EVERY, ids=repr)
def test_bfloat16_weights_become_float32_conductances(converter):
    g, _ = converter.convert_to_conductances(W.astype(jnp.bfloat16))
    assert {one.dtype for one in g} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("converter", EVERY, ids=repr)
def test_the_round_trip_has_the_gradient_of_the_identity(converter):
    def round_trip(w):
        return converter.convert_back_to_weights(*converter.convert_to_conductances(w))

    # Away from where one pair is full and the next one starts, which is a kink.
    w = jnp.float32([[0.29, -0.6], [0.2, -0.05]])
    _, slope = jax.jvp(round_trip, (w,), (jnp.ones_like(w),))
    np.testing.assert_allclose(slope, jnp.ones_like(w), atol=1e-5)


SLICED = BitSlicedConductanceConverter(bits=(2, 3), per_column=True)


@pytest.mark.parametrize("converter", [*EVERY, *PER_COLUMN, SLICED], ids=repr)
def test_configurations_round_trip_in_a_chip(converter):
    chip = Hardware(converter=converter)
    assert from_dict(Hardware, to_dict(chip)) == chip
    hash(chip)


def test_a_converter_is_told_by_its_type():
    data = {"converter": {"type": "dual_pair", "f_lst": [1.0, 2.0]}}
    chip = from_dict(Hardware, data)
    assert chip.converter == DualPairConductanceConverter(f_lst=(1.0, 2.0))
    with pytest.raises(ValueError, match="'type'"):
        from_dict(Hardware, {"converter": {"type": "tripel"}})


@pytest.mark.parametrize("converter", EVERY, ids=repr)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_an_error(converter, bad):
    with pytest.raises(ValueError, match=r"of shape \(6, 4\), 1 are NaN or infinite"):
        converter.convert_to_conductances(W.at[2, 1].set(bad))


@pytest.mark.parametrize("converter", EVERY, ids=repr)
def test_what_comes_back_must_be_complete(converter):
    g, params = converter.convert_to_conductances(W)
    with pytest.raises(ValueError, match="conductance.*; got 7"):
        converter.convert_back_to_weights([*g, *[g[0]] * 7][:7], params)
    with pytest.raises(ValueError, match=r"params must hold scale_ratio.*keys \[\]"):
        converter.convert_back_to_weights(g, {})


def curved(x):
    x = np.asarray(x)
    return tuple(25 * np.where(x > 0, x, 0)), tuple(25 * np.where(x < 0, -x, 0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: SinglePairConductanceConverter(g_max=5.0, g_min=5.0),
            "g_min must be below g_max, got g_min=5.0 µS",
        ),
        (lambda: SinglePairConductanceConverter(g_max=-1.0), "greater than 0"),
        (lambda: SinglePairConductanceConverter(g_min=-1.0), "or equal to 0"),
        (lambda: SingleDeviceConductanceConverter(g_min=99.0), "must be below g_max"),
        (lambda: NPairConductanceConverter(f_lst=2.0), "expected a tuple, got 2.0"),
        (lambda: NPairConductanceConverter(f_lst=(2.0, -1.0)), "greater than 0"),
        (lambda: NPairConductanceConverter(f_lst=(0.0,)), "greater than 0"),
        (lambda: NPairConductanceConverter(f_lst=()), "at least one entry"),
        (
            lambda: DualPairConductanceConverter(f_lst=(1.0, 2.0, 3.0)),
            "two factors, got .* use NPairConductanceConverter",
        ),
        (
            lambda: CustomPairConductanceConverter(f_lst=(1.0,), g_lst=(LINE[0],)),
            "got 1 curves and 1 factors",
        ),
        (
            lambda: CustomPairConductanceConverter(
                f_lst=(1.0,), g_lst=(LINE[0], (25.0, 0.0))
            ),
            r"equally many points; got \[5, 2\]",
        ),
        (
            lambda: CustomPairConductanceConverter(f_lst=(1.0,), g_lst=LINE, g_max=9.0),
            "must stay in .* they reach from 0.0 to 25.0",
        ),
        (
            lambda: CustomPairConductanceConverter(
                f_lst=(1.0,), g_lst=(LINE[0], LINE[0])
            ),
            "not invertible",
        ),
        (
            # Right at the five points -1, -1/2, 0, 1/2, 1 that the reference tests.
            lambda: CustomPairConductanceConverter(
                f_lst=(1.0,),
                g_lst=curved([-1, -0.9, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]),
            ),
            "not invertible: of the largest weight, -0.75 becomes -0.9",
        ),
    ],
)
def test_impossible_converters_say_the_way_out(build, message):
    with pytest.raises(ValueError, match=message):
        build()
