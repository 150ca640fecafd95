"""What the proof of stored results says, whatever the results are."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain._errors import InputError
from hwtrain._plan.outputs import StoredOutput
from hwtrain.evaluate._stored_proof import StoredProof, irregular, read
from hwtrain.periphery.digital_format import to_integers

Y = jax.random.normal(jax.random.key(0), (4, 8))


FOUR = hw.DigitalFormat(bits=4)


def entry(chip):
    return StoredOutput(path="d", layer="Dense", format=chip, rule="Rule('d')")


def proof(chip, y, store=hw.DigitalFormat.store):
    """Returns what is wrong with each effect, of results stored by a function."""
    with mock.patch.object(hw.DigitalFormat, "store", store):
        readings = read(entry(chip), y, chip.store(y))
    found = StoredProof(entry(chip), [jax.tree.map(np.asarray, readings)]).findings
    return [wrong for _, _, wrong in found]


FORMATS = pytest.mark.parametrize("full_scale", [None, 2.0])
BITS = [2, 3, 5, 6, 8, 11, 16, 24]
DTYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])


@DTYPES
@FORMATS
def test_results_on_the_levels_are_proved(dtype, full_scale):
    for bits in BITS:
        chip = hw.DigitalFormat(bits=bits, full_scale=full_scale)
        for y in (Y.astype(dtype), chip.store(Y.astype(dtype))):
            assert proof(chip, y) == [None, None], bits


@DTYPES
@FORMATS
def test_results_stored_as_they_are_are_found(dtype, full_scale):
    for bits in BITS:
        chip = hw.DigitalFormat(bits=bits, full_scale=full_scale)
        for y in (Y.astype(dtype), chip.store(Y.astype(dtype))):
            found = proof(chip, y, lambda chip, y: y)
            assert found[0] == "results are stored as they are", bits


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_another_step_is_found(factor):
    def wrong_step(chip, y):
        return to_integers(y, chip.bits, factor * chip.full_scale)

    for bits in BITS:
        chip = hw.DigitalFormat(bits=bits, full_scale=2.0)
        assert "they are off" in (proof(chip, Y, wrong_step)[1] or ""), bits


@pytest.mark.parametrize("features", [1, 2, 3, 8, 300])
def test_own_numbers_have_the_width_of_the_results(features):
    numbers = irregular(features)
    assert numbers.shape[1] == features and numbers.size >= 256
    assert len(np.unique(numbers)) == numbers.size
    assert 1.5 < np.abs(numbers).max() <= 2
    # The next power of two below 2^-23 of the largest is there too.
    assert np.abs(numbers).min() < 2.0**-23
    assert proof(hw.DigitalFormat(full_scale=1.0), jnp.ones((2, features))) == [
        None,
        None,
    ]


@pytest.mark.parametrize("shape", [(4, 1), (1,), ()])
def test_one_feature_is_its_own_full_scale(shape):
    y = jnp.full(shape, 0.3)
    assert "the only feature of a vector" in proof(hw.DigitalFormat(bits=2), y)[0]
    assert proof(hw.DigitalFormat(bits=2, full_scale=1.0), y) == [None, None]


def test_one_feature_is_refused_in_a_model():
    analog = hw.analogize(nn.Dense(1), [hw.Rule("", hw.Hardware(outputs=FOUR))])
    variables = analog.init(jax.random.key(0), Y)
    with pytest.raises(InputError, match=r"the model: outputs: .*full_scale=\.\.\."):
        hw.assert_active(analog, variables, Y)


@pytest.mark.parametrize("shape", [(0, 8), (4, 0)])
def test_an_empty_example_is_named(shape):
    (wrong,) = proof(FOUR, jnp.zeros(shape))
    assert "the results of the example are empty" in wrong


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_results_without_a_full_scale_leave_the_judgement_to_others(odd):
    y = Y.at[0, 0].set(odd)
    assert proof(FOUR, y) == [None, None]
    assert proof(FOUR, y, lambda chip, y: y)[0] is not None


def test_a_result_of_one_axis_is_told():
    for y, told in ((Y[0], True), (Y, False)):
        found = StoredProof(entry(FOUR), [read(entry(FOUR), y, FOUR.store(y))])
        assert (
            "one full scale for each result of one axis" in found.findings[0][1]
        ) == told
