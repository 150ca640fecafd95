"""The gradient of a chip's accuracy with respect to its constants."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hwtrain
from hwtrain import train

RECIPE = Path(__file__).parents[2] / "recipes" / "chip_design.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("chip_design", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_relaxed_accuracy_tends_to_the_accuracy(recipe, monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 10)), rng.integers(0, 10, 500)
    logits[np.arange(500), labels] += 1.0
    expected = 100 * np.mean(logits.argmax(-1) == labels)
    monkeypatch.setattr(recipe, "TEMPERATURE", 1e-4)
    hard, relaxed = recipe.accuracies(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose([hard, relaxed], expected, rtol=1e-3)


@pytest.mark.nightly
def test_the_gradient_is_that_of_differences_for_each_constant(recipe):
    config = train.read_config(recipe.CONFIG)
    # With levels, accuracy is a staircase, and its gradient a straight-through one.
    smooth = dataclasses.replace(recipe.FORWARD, inp_bits=None, out_bits=None)
    hardware = dataclasses.replace(
        config.hardware, forward=smooth, mapping=recipe.MAPPING
    )
    analog = hwtrain.chip_mode(hwtrain.analogize(recipe.network(), hardware))
    (x, y), _ = recipe.data()
    x, y = x[:200], y[:200]
    variables = analog.init(jax.random.key(0), x[:1])
    plan = hwtrain.plan(analog, variables, x[:1])

    @jax.jit
    def relaxed(factors):
        logits = recipe.on_chip(analog, plan, variables, x, 3, factors)
        return recipe.accuracies(logits, y)[1]

    ones = np.ones(len(recipe.CONSTANTS))
    slopes = np.asarray(jax.grad(relaxed)(ones))
    assert np.all(np.abs(slopes) > 1e-3)
    for number, slope in enumerate(slopes):
        step = 0.02 * np.eye(len(ones))[number]
        difference = (relaxed(ones + step) - relaxed(ones - step)) / 0.04
        np.testing.assert_allclose(slope, difference, rtol=0.1, atol=0.02)
