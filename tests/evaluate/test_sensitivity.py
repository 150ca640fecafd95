"""Sensitivity of each layer, against chips assembled by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.evaluate import Sensitivity, population, sensitivity

X = jax.random.normal(jax.random.key(1), (20, 6))
Y = jnp.arange(20) % 3
LAYERS = ("first", "second", "head")


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="first")(x))
        x = nn.relu(nn.Dense(8, name="second")(x))
        return nn.Dense(3, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.second = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))))


def score(outputs, labels):
    """The output for the right label: smooth, so that every change is seen."""
    return jnp.take_along_axis(outputs, labels[:, None], axis=-1)[:, 0]


def mismatch(std_dev=0.3):
    return hw.MismatchParameter(type="mult_normal", std_dev=std_dev)


def rules(second=None):
    """The head is on no hardware that differs from chip to chip."""
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    return [
        hw.Rule("first", hw.Hardware(mismatch=mismatch())),
        hw.Rule("second", second or hw.Hardware(mismatch=mismatch(0.1))),
        hw.Rule("head", hw.Hardware(modifier=noise, mismatch=mismatch(0.0))),
    ]


def models(second=None):
    """Returns the same analog model in both frameworks, and parameters for both."""
    plain = jax.jit(Linen().init)(jax.random.key(0), X)["params"]
    linen = hw.analogize(Linen(), rules(second))
    model = hw.analogize(Nnx(nnx.Rngs(0)), rules(second), rngs=nnx.Rngs(mismatch=0))
    return [(linen, hw.adopt(linen, plain, X)), (model, hw.adopt(model, plain))]


def by_hand(params, seed, on):
    """Returns the score of a NumPy model where the layers `on` are the chip's."""
    key = hw.chip_key(seed)
    plan = hw.plan(hw.analogize(Linen(), rules()), params, X)
    chip = hw.apply_mismatch(params, plan, key)
    x = np.asarray(X, np.float64)
    for name in LAYERS:
        tree = chip if name in on else params
        kernel, bias = tree[name]["kernel"], tree[name]["bias"]
        x = x @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
        x = x if name == "head" else np.maximum(x, 0)
    return x[np.arange(len(x)), np.asarray(Y)].mean()


@pytest.mark.parametrize("framework", [0, 1], ids=["linen", "nnx"])
def test_each_case_is_a_chip_made_by_hand(framework):
    model, params = models()[framework]
    batches = [(X[:12], Y[:12]), (X[12:], Y[12:])]
    seeds = (0, 3, 7)
    options = {"chips": seeds, "key": jax.random.key(2)}
    found = sensitivity(model, params, batches, score, better="lower", **options)
    # The head's mismatch is zero: nothing of it differs.
    assert found.layers == ("first", "second") and found.seeds == seeds
    plain = hw.strip(params)
    for chip, seed in enumerate(seeds):
        cases = {
            (): found.nominal,
            ("first", "second"): found.whole,
            ("first",): found.alone[0],
            ("second",): found.alone[1],
        }
        for on, values in cases.items():
            expected = by_hand(plain, seed, on)
            # Scores of order one may cancel in their mean: float32 leaves some eps.
            np.testing.assert_allclose(
                values[chip], expected, rtol=1e-4, atol=1e-6, err_msg=on
            )
    # Of two layers, all but one is the other.
    np.testing.assert_allclose(found.others, found.alone[::-1], rtol=1e-6)
    whole = population(model, params, batches, score, **options)
    np.testing.assert_allclose(found.whole, whole.values, rtol=1e-6)
    # It is on: the layers differ, and by their own amounts.
    spread = found.alone.std(axis=1)
    assert spread[0] > 0 and spread[1] > 0 and found.nominal.std() < 1e-6
    assert found.better == "lower"
    np.testing.assert_allclose(
        found.cost, found.alone.mean(axis=1) - found.nominal.mean()
    )
    np.testing.assert_allclose(found.gain, found.whole.mean() - found.others.mean(1))


@pytest.mark.parametrize("framework", [0, 1], ids=["linen", "nnx"])
def test_conductances_drift_where_they_are_a_chips(framework):
    model, params = models(hw.presets.pcm())[framework]
    options = {"chips": 3, "key": jax.random.key(2)}
    fresh, late = (
        sensitivity(model, params, [(X, Y)], score, t_s=t_s, **options)
        for t_s in (0.0, 1e7)
    )
    np.testing.assert_allclose(fresh.nominal, late.nominal, rtol=1e-6)
    np.testing.assert_allclose(fresh.alone[0], late.alone[0], rtol=1e-6)
    assert (abs(fresh.alone[1] - late.alone[1]) > 1e-4).all()
    whole = population(model, params, [(X, Y)], score, times_s=(1e7,), **options)
    np.testing.assert_allclose(late.whole, whole.values[:, 0], rtol=1e-6)
    assert late.t_s == 1e7


@pytest.mark.sampled(2)
@pytest.mark.parametrize("framework", [0, 1], ids=["linen", "nnx"])
@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_a_factor_of_each_column_over_several_tiles(framework, omega):
    chip = dataclasses.replace(
        hw.presets.pcm(),
        drift_compensation=hw.PerColumnDriftCompensation(),
        forward=hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0),
        mapping=hw.MappingParameter(
            max_input_size=4, max_output_size=4, weight_scaling_omega=omega
        ),
    )
    model, params = models(chip)[framework]
    options = {"chips": 2, "key": jax.random.key(2)}
    found = sensitivity(model, params, [(X, Y)], score, t_s=1e6, **options)
    whole = population(model, params, [(X, Y)], score, times_s=(1e6,), **options)
    np.testing.assert_allclose(found.whole, whole.values[:, 0], rtol=1e-6)
    assert (abs(found.alone - found.nominal) > 1e-6)[1].all()


def test_a_checkpoint_and_its_chips(tmp_path):
    model, params = models()[0]
    plan = hw.plan(model, params, X)
    hw.export(tmp_path / "out", {"params": params}, plan, chip_seed=3)
    options = {"chips": (3,), "key": jax.random.key(2)}
    found, expected = (
        sensitivity(model, variables, [(X, Y)], score, **options)
        for variables in (hw.load(tmp_path / "out"), params)
    )
    np.testing.assert_allclose(found.alone, expected.alone, rtol=1e-5)


def test_all_cases_are_one_program():
    model, params = models()[0]
    traced = []

    def metric(outputs, labels):
        traced.append(1)
        return score(outputs, labels)

    options = {"chips": 2, "key": jax.random.key(2)}
    for _ in range(2):
        sensitivity(model, params, [(X, Y), (X + 1, Y)], metric, **options)
    assert len(traced) == 1


def test_a_model_whose_chips_are_all_alike():
    analog = hw.analogize(Linen(), hw.Hardware(mismatch=mismatch(0.0)))
    params = jax.jit(analog.init)(jax.random.key(0), X)["params"]
    options = {"chips": 2, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match="no layer of this model differs.*mismatch"):
        sensitivity(analog, params, [(X, Y)], score, **options)
    model, params = models()[0]
    with pytest.raises(ValueError, match="sensitivity needs at least one chip"):
        sensitivity(model, params, [(X, Y)], score, chips=0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="would change nothing"):
        sensitivity(model, params, [(X, Y)], score, t_s=1.0, **options)


def found_of(rng, chips=5, better="higher"):
    """Returns a made-up result of layers a, b, c of costs 1, 5 and 3, in the mean."""
    base = rng.normal(90, 2, chips)
    sign = 1 if better == "higher" else -1
    lost = np.array([[1.0], [5.0], [3.0]]) + rng.normal(0, 0.1, (3, chips))
    return Sensitivity(
        layers=("a", "b", "c"),
        nominal=base,
        whole=base - sign * lost.sum(axis=0),
        alone=base - sign * lost,
        others=base - sign * (lost.sum(axis=0) - lost),
        seeds=tuple(range(chips)),
        better=better,
    )


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_cost_is_a_worsening_and_the_costliest_layer_comes_first(better):
    found = found_of(np.random.default_rng(0), better=better)
    np.testing.assert_allclose(found.cost, [1, 5, 3], atol=0.2)
    np.testing.assert_allclose(found.gain, found.cost)
    assert found.order.tolist() == [1, 2, 0] and "costliest='b'" in repr(found)
    table = found.table(".3f")
    columns = {column.header: list(column.cells) for column in table.columns}
    assert list(columns) == [
        "on the chip",
        "this alone",
        "costs",
        "all but this",
        "gain",
    ]
    assert columns["on the chip"] == ["b", "c", "a"]
    assert f"{better} is better" in str(table.caption)
    # t(4) = 2.7764 at 97.5 %; chips differ by 2, and what a layer costs on them by 0.1.
    for row, layer in enumerate([1, 2, 0]):
        lost = abs(found.nominal - found.alone[layer])
        half = 2.776445 * np.sqrt(((lost - lost.mean()) ** 2).sum() / 4 / 5)
        said = f"{lost.mean():.3f} ± {half:.3f}"
        assert columns["costs"][row] == columns["gain"][row] == said
        assert columns["this alone"][row] == f"{found.alone[layer].mean():.3f}"
        assert columns["all but this"][row] == f"{found.others[layer].mean():.3f}"


def test_one_chip_has_no_interval():
    table = found_of(np.random.default_rng(0), chips=1).table()
    cells = [cell for column in table.columns for cell in column.cells]
    assert "±" not in "".join([*cells, str(table.caption)])


@pytest.mark.parametrize("chips", [1, 2])
def test_a_cost_that_rounds_to_zero_has_no_sign(chips):
    found = dataclasses.replace(
        found_of(np.random.default_rng(0), chips=chips),
        nominal=np.full(chips, 90.0),
        alone=np.full((3, chips), 90.001),
    )
    costs = found.table(".2f").columns[2]
    assert set(costs.cells) == {"0.00" if chips == 1 else "0.00 ± 0.00"}


def test_another_direction_is_refused():
    model, params = models()[0]
    options = {"chips": 2, "key": jax.random.key(0), "better": "more"}
    with pytest.raises(ValueError, match='better must be "higher" or "lower"'):
        sensitivity(model, params, [(X, Y)], score, **options)
    with pytest.raises(ValueError, match='better must be "higher" or "lower"'):
        found_of(np.random.default_rng(0), better="more")


def test_costs_by_hand():
    found = Sensitivity(
        layers=("a", "b"),
        nominal=np.array([90.0, 90.0]),
        whole=np.array([60.0, 70.0]),
        alone=np.array([[70.0, 74.0], [88.0, 90.0]]),
        others=np.array([[86.0, 88.0], [69.0, 69.0]]),
        seeds=(0, 1),
    )
    np.testing.assert_allclose(found.cost, [18.0, 1.0])
    np.testing.assert_allclose(found.gain, [22.0, 4.0])
