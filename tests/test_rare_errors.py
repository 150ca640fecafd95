"""Errors of which no other test is the place."""

import enum

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
import hwtrain.train
from hwtrain.checkpoint import _destination as destination
from hwtrain.dynapse import SpatialCorrelation
from hwtrain.evaluate import Population, cost, population
from hwtrain.evaluate._plots import plot_over_time
from hwtrain.periphery import ComparatorOffsets
from hwtrain.train import _search

X = jnp.ones((2, 3))


def dense(hardware):
    analog = hw.analogize(nn.Dense(4), hardware)
    return analog, analog.init(jax.random.key(0), X)


def evaluated(**options):
    analog, variables = dense(hw.presets.pcm())
    error = lambda y, label: jnp.mean((y - label) ** 2, -1)  # noqa: E731
    given = {"chips": 1, "key": jax.random.key(0), **options}
    return population(analog, variables, [(X, jnp.ones((2, 4)))], error, **given)


def calibrated(**options):
    analog, variables = dense(hw.Hardware(input_range=hw.InputRangeParameter()))
    return hw.calibrate(analog, variables, [(X,)], **options)


def lora():
    layer = nnx.LoRA(3, 2, 4, rngs=nnx.Rngs(0), base_module="none")
    return hw.analogize(layer, hw.presets.pcm(), rngs=nnx.Rngs(mismatch=1))(X)


def plotted(tmp_path):
    found = Population(values=np.ones(3), seeds=(0, 1, 2))
    plot_over_time(found, tmp_path / "a.png", metric="accuracy", title="chips")


def no_constants():
    Population(values=np.ones(3), seeds=(0, 1, 2)).at(0)


def of_another_model():
    analog, variables = dense(hw.presets.pcm())
    plan = hw.plan(analog, variables, X)
    return hw.frozen_mismatch_prototype({"other": jnp.ones((2, 2))}, plan=plan)


class OfTime(nn.Module):
    @nn.compact
    def __call__(self, t):
        return nn.Dense(2)(jnp.ones((1, 3)) * t)


def of_a_number():
    analog = hw.analogize(OfTime(), hw.presets.pcm())
    variables = analog.init(jax.random.key(0), 1.0)
    return cost(analog, variables, 1.0, constants=hw.CostParameter(source="none"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: calibrated(std_alpha=0.0), "std_alpha and max_samples must be posit"),
        (lambda: calibrated(max_samples=0), "got std_alpha=.*, max_samples=0"),
        (lora, "`self.base_module` must be callable"),
        (lambda: evaluated(until=0.0), "until must be a width above 0, or None; got 0"),
        (no_constants, "this population was evaluated without constants"),
        (of_a_number, "no array with axes: pass examples=1"),
        (of_another_model, r"the plan has \['kernel'\], the tree does not"),
        (
            lambda: ComparatorOffsets(bound=1.0, steps=3, offset_std=0.1),
            "steps=3 leaves no level at zero .*, such as 4",
        ),
        (
            lambda: SpatialCorrelation(width=2, length=1.0).normal(
                jax.random.key(0), ()
            ),
            "a scalar has no place on a chip",
        ),
    ],
)
def test_a_call_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: hw.train.resolve("work.py"),
            "expected a function, as path",
        ),
        (lambda: hw.train.resolve("work.py:"), "or as module:function of an installed"),
        (lambda: hw.chip_key("a"), "seed must be a whole number; got 'a'"),
        (lambda: hw.chip_key(1.5), "seed must be a whole number; got 1.5"),
        (lambda: hw.chip_key(True), "seed must be a whole number; got True"),
        (lambda: hw.chip_key(jnp.float32(1)), "seed must be a whole number"),
        (lambda: programmed(0), r"a JAX key, such as .* got 0"),
        (lambda: programmed(jnp.ones(2)), "a JAX key, such as .* hwtrain.chip_key"),
        (lambda: aware(optax.adam), r"such as optax.adam\(1e-3\); got <function"),
        (
            lambda: hw.optim.hardware_aware(optax.adam(1e-3), hw.presets.pcm()),
            "takes the plan of a model.*; got Hardware",
        ),
    ],
)
def test_an_argument_of_another_kind(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def programmed(key):
    analog, variables = dense(hw.presets.pcm())
    plan = hw.plan(analog, variables, X)
    return hw.program_chip(variables["params"], plan, key)


def aware(base):
    analog, variables = dense(hw.presets.pcm())
    return hw.optim.hardware_aware(base, hw.plan(analog, variables, X))


@pytest.mark.parametrize("seed", [np.int64(2**32 + 5), np.int64(-1), jnp.array(-1)])
def test_seeds_of_chips_out_of_range(seed):
    with pytest.raises(ValueError, match=r"a chip's seed must be in \[0, 2\^32\)"):
        hw.chip_key(seed)


class Three(enum.IntEnum):
    SEED = 3


@pytest.mark.parametrize(
    "seed", [3, np.int64(3), jnp.uint32(3), jnp.int32(3), Three.SEED]
)
def test_seeds_of_chips_of_all_types(seed):
    key = jax.random.key(3, impl="threefry2x32")
    for found in (hw.chip_key(seed), jax.jit(hw.chip_key)(seed)):
        assert (jax.random.key_data(found) == jax.random.key_data(key)).all()


def test_a_plot_over_time_needs_times(tmp_path):
    with pytest.raises(ValueError, match="needs a population with times_s; got none"):
        plotted(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_search_without_optuna_names_the_extra(monkeypatch):
    monkeypatch.setattr(_search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'hwtrain\[search\]'"):
        _search.require_optuna()


def test_a_noise_model_that_programs_no_devices():
    @hw.register("noise_model", "of_arrays")
    class OfArrays(hw.NoiseModel):
        g_max: float = 25.0

        def programming_sigma(self, g):
            return 0.0 * g

        def program(self, key, g_target):
            return g_target

    try:
        chip = hw.Hardware(
            converter=hw.SinglePairConductanceConverter(), noise_model=OfArrays()
        )
        analog, variables = dense(chip)
        plan = hw.plan(analog, variables, X)
        with pytest.raises(ValueError, match="OfArrays.program should return a Prog"):
            hw.program_chip(variables["params"], plan, hw.chip_key(0))
    finally:
        hw._parts.registry.forget("noise_model", "of_arrays")


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path):
    out = tmp_path / "chip"
    with pytest.raises(ValueError, match="chip was created in the meantime"):
        with destination.new(out, folder=True) as partial:
            (partial / "a.txt").write_text("mine")
            out.mkdir()
    assert [*tmp_path.iterdir()] == [out] and not [*out.iterdir()]
