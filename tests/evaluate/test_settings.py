"""Chips, times and settings of constants in one call, against one call for each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.evaluate import _on_chips as on_chips
from hwtrain.evaluate import population

X = jax.random.normal(jax.random.key(1), (30, 12))
Y = jax.random.normal(jax.random.key(2), (30, 5))
KEY = jax.random.key(3)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(12, 16, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def distance(outputs, targets):
    return jnp.abs(outputs - targets).mean(-1)


def hardware(**changes):
    chip = hw.presets.pcm()
    forward = hw.IOParameters(out_noise=0.05)
    return dataclasses.replace(chip, forward=forward, **changes)


def model_of(framework, chip):
    if framework == "linen":
        analog = hw.analogize(MLP(), chip)
        return analog, analog.init(jax.random.key(0), X)
    rngs = nnx.Rngs(0, mismatch=0)
    return hw.analogize(Twin(rngs), chip, rngs=rngs), None


def set_in(chip, path, value):
    part, name = path.split(".")
    changed = dataclasses.replace(getattr(chip, part), **{name: value})
    return dataclasses.replace(chip, **{part: changed})


@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize(
    "path, values",
    [
        ("noise_model.prog_noise_scale", (0.5, 1.0, 3.0)),
        ("noise_model.read_noise_scale", (0.5, 3.0)),
        ("forward.out_noise", (0.05, 0.5)),
        ("mapping.weight_scaling_omega", (0.5, 1.0)),
    ],
)
def test_settings_equal_hardware_with_these_numbers(framework, path, values):
    chip = hardware()
    if path.startswith("mapping"):
        chip = dataclasses.replace(
            chip, mapping=hw.MappingParameter(weight_scaling_omega=1.0)
        )
    analog, variables = model_of(framework, chip)
    options = {"chips": 3, "key": KEY, "times_s": (0.0, 86_400.0)}
    found = population(
        analog, variables, [(X, Y)], distance, constants={path: values}, **options
    )
    assert found.values.shape == (3, len(values), 2)
    assert found.constants == {path: values}
    for place, value in enumerate(values):
        other, its = model_of(framework, set_in(chip, path, value))
        alone = population(other, its, [(X, Y)], distance, **options)
        np.testing.assert_allclose(found.values[:, place], alone.values, rtol=2e-5)
        np.testing.assert_array_equal(found.at(place).mean, found.mean[place])
    assert np.ptp(found.values.mean(axis=(0, 2))) > 1e-4


def test_keys_of_one_setting_change_together_and_of_one_layer_alone():
    chip = hardware()
    analog, variables = model_of("linen", chip)

    def run(constants):
        options = {"chips": 2, "key": KEY, "constants": constants}
        return population(analog, variables, [(X, Y)], distance, **options).values

    both = run(
        constants={
            "forward.out_noise": (0.05, 0.3),
            "noise_model.prog_noise_scale": (2.0, 1.0),
        }
    )
    first = run(
        constants={
            "forward.out_noise": (0.05,),
            "noise_model.prog_noise_scale": (2.0,),
        }
    )
    assert both.shape == (2, 2)
    np.testing.assert_allclose(both[:, 0], first[:, 0], rtol=1e-6)
    head = run(constants={"head:forward.out_noise": (0.3,)})
    rules = [
        hw.Rule("head", set_in(chip, "forward.out_noise", 0.3)),
        hw.Rule(".*", chip),
    ]
    other = hw.analogize(MLP(), rules)
    alone = population(other, variables, [(X, Y)], distance, chips=2, key=KEY)
    np.testing.assert_allclose(head[:, 0], alone.values, rtol=1e-5)


def test_several_metrics_batches_and_chunks():
    analog, variables = model_of("linen", hardware())
    metrics = {"near": distance, "far": lambda y, t: -distance(y, t)}
    constants = {"noise_model.prog_noise_scale": (1.0, 4.0)}
    batches = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    for chunk in (1, 4):
        found = population(
            analog,
            variables,
            batches,
            metrics,
            chips=3,
            key=KEY,
            constants=constants,
            chunk=chunk,
        )
        assert found["near"].values.shape == (3, 2)
        np.testing.assert_allclose(
            found["near"].values, -found["far"].values, rtol=1e-6
        )


def test_one_program_serves_all_values():
    analog, variables = model_of("linen", hardware())
    before = on_chips.compiled_totals.__globals__["_cached_totals"].cache_info()
    for values in ((1.0, 2.0), (3.0, 4.0)):
        constants = {"noise_model.prog_noise_scale": values}
        population(
            *(analog, variables, [(X, Y)], distance),
            chips=2,
            key=KEY,
            constants=constants,
        )
    after = on_chips.compiled_totals.__globals__["_cached_totals"].cache_info()
    assert after.misses == before.misses + 1 and after.hits == before.hits + 1


def test_the_table_has_a_row_for_each_setting_and_time():
    analog, variables = model_of("linen", hardware())
    found = population(
        *(analog, variables, [(X, Y)], distance),
        chips=2,
        key=KEY,
        times_s=(0.0, 60.0),
        constants={"forward.out_noise": (0.05, 0.3)},
    )
    lines = str(found).splitlines()
    rows = [line for line in lines if line.startswith("│")]
    assert len(rows) == 4
    assert "0.3" in rows[2] and "1 min" in rows[3]
    assert "forward.out_noise" in str(found)


@pytest.mark.parametrize(
    "constants, expected",
    [
        ({}, "at least one"),
        ({"forward.out_noise": ()}, "at least one"),
        ({"forward.out_noise": 0.3}, "list of values"),
        (
            {"forward.out_noise": (0.1,), "noise_model.prog_noise_scale": (1, 2)},
            "one length",
        ),
        ({"forward.out_nose": (0.1,)}, "out_nose"),
        ({"forward.out_bits": (4.0,)}, "out_bits"),
        ({"forward.out_noise": (0.1, -1.0)}, "greater than or equal to 0"),
        ({"body:forward.out_noise": (0.1,)}, "matches no analog weight"),
        ({"modifier.std_dev": (0.1,)}, "in training only"),
        ({"noise_model.g_max": (20.0,)}, "one number"),
    ],
)
def test_constants_that_do_not_fit_are_refused(constants, expected):
    modifier = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    analog, variables = model_of("linen", hardware(modifier=modifier))
    with pytest.raises(ValueError, match=expected):
        population(
            *(analog, variables, [(X, Y)], distance),
            chips=2,
            key=KEY,
            constants=constants,
        )


def test_a_measured_chip_refuses_numbers_of_its_programming(tmp_path):
    analog, variables = model_of("linen", hardware())
    plan = hw.plan(analog, variables, X)
    hw.export(tmp_path / "chip", variables, plan, chip_seed=0)
    loaded = hw.load(tmp_path / "chip")
    options = {"chips": [0], "key": KEY}
    found = population(
        *(analog, loaded, [(X, Y)], distance),
        constants={"noise_model.prog_noise_scale": (1.0, 4.0)},
        **options,
    )
    assert np.ptp(found.values) > 0  # drawn, so that the number counts


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_number_that_is_off_in_a_layer_cannot_be_traced_there(framework):
    quiet = dataclasses.replace(hardware(), forward=hw.IOParameters(inp_bits=8))
    rules = [hw.Rule("head", quiet), hw.Rule(".*", hardware())]
    for assigned, expected in ((hardware(), True), (rules, False)):
        analog, variables = model_of(framework, assigned)
        plan = hw.plan(analog, variables, *(() if framework == "nnx" else (X,)))
        values = {"forward.out_noise": (0.1, 0.2)}
        assert on_chips.can_be_constants(plan, values) == expected
    bare = [hw.Rule("head", hw.presets.pcm()), hw.Rule(".*", hardware())]
    analog, variables = model_of(framework, bare)
    plan = hw.plan(analog, variables, *(() if framework == "nnx" else (X,)))
    assert on_chips.can_be_constants(plan, values)  # without a periphery, none is off
    assert not on_chips.can_be_constants(plan, {"forward.out_bits": (4, 8)})


@pytest.mark.parametrize("several", [False, True])
def test_until_stops_as_soon_as_the_interval_is_narrow(several):
    analog, variables = model_of("linen", hardware())
    metric = {"near": distance, "one": lambda y, t: y[:, 0]} if several else distance

    def run(chips, until=None):
        found = population(
            *(analog, variables, iter([(X, Y)]), metric),
            chips=chips,
            key=KEY,
            until=until,
            constants={"noise_model.prog_noise_scale": (1.0, 4.0)},
        )
        return found["near"] if several else found

    every = run(96)
    low, high = run(48).interval
    width = float(np.max(high - low) / 2)
    narrow = run(96, until=width)
    assert 16 < len(narrow.seeds) <= 48 and len(narrow.seeds) % 16 == 0
    low, high = narrow.interval
    assert np.all(high - low <= 2 * width * (1 + 1e-9))
    before = dataclasses.replace(narrow, values=narrow.values[:-16])
    low, high = before.interval
    assert np.any(high - low > 2 * width)
    np.testing.assert_allclose(
        narrow.values, every.values[: len(narrow.seeds)], rtol=1e-6
    )
    assert len(run(40, until=1e-12).seeds) == 40


@pytest.mark.parametrize("until", [0.0, -1.0, float("nan")])
def test_until_needs_a_width(until):
    analog, variables = model_of("linen", hardware())
    with pytest.raises(ValueError, match="above 0"):
        population(
            *(analog, variables, [(X, Y)], distance), chips=2, key=KEY, until=until
        )
