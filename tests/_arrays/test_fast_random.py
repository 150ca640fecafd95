"""The cheaper generator: known answers, the normal quantile, and statistics.

Statistical tolerances are 5 standard errors, derived from the number of draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from scipy import special, stats

from hwtrain._arrays import random
from hwtrain._arrays.fast_random import (
    dtype_of,
    fast_prng,
    normal_from_bits,
    threefry_prng,
)
from hwtrain._arrays.random import normal
from hwtrain._arrays.threefry import _threefry2x32, element_words
from hwtrain.periphery._read_keys import read_keys

COUNT = 2**20


def key(seed=0):
    return jax.random.key(seed, impl=fast_prng)


@pytest.fixture(scope="module")
def draws():
    return np.asarray(random.normal(key(), (COUNT,)), np.float64)


ZEROS, ONES = (0, 0, 0, 0), (0xFFFFFFFF,) * 4
PI = (0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3)


@pytest.mark.parametrize(
    ("rounds", "words", "expected"),
    [  # the known answers that come with Random123, key before counter
        (13, ZEROS, (0x9D1C5EC6, 0x8BD50731)),
        (13, ONES, (0xFD36D048, 0x2D17272C)),
        (13, PI, (0xBA3E4725, 0xF27D669E)),
        (20, ZEROS, (0x6B200159, 0x99BA4EFE)),
        (20, ONES, (0x1CB996FC, 0xBB002BE7)),
        (20, PI, (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(rounds, words, expected):
    given = [jnp.uint32(word) for word in words]
    assert tuple(map(int, _threefry2x32(*given, rounds))) == expected


def test_the_quantile_is_that_of_the_normal_distribution():
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 2**20, dtype=np.uint32)
    bits = np.concatenate([bits, np.arange(2048, dtype=np.uint32)])  # the tails
    bits = np.concatenate([bits, ~bits])
    q = ((bits >> 1) + 0.5) * 2.0**-31
    expected = np.where(bits & 1, 1, -1) * special.ndtri(q / 2)
    ours = np.asarray(normal_from_bits(jnp.asarray(bits)), np.float64)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=6e-5)
    # Symmetric, so that the mean is exactly zero.
    np.testing.assert_array_equal(ours, -np.asarray(normal_from_bits(bits ^ 1)))


def moment(power):
    """Returns E[z^power] of a standard normal number."""
    return float(special.factorial2(power - 1)) if power % 2 == 0 else 0.0


@pytest.mark.parametrize("power", range(1, 9))
def test_moments(draws, power):
    error = np.sqrt((moment(2 * power) - moment(power) ** 2) / COUNT)
    assert abs(np.mean(draws**power) - moment(power)) < 5 * error


def test_tails_to_five_sigma(draws):
    for sigma in (1, 2, 3, 4, 4.5, 5):
        for tail in (draws > sigma, draws < -sigma):
            expected = COUNT * stats.norm.sf(sigma)
            assert abs(tail.sum() - expected) < 5 * np.sqrt(expected) + 1, sigma


def test_kolmogorov_smirnov(draws):
    # An error of 5e-5 moves the distribution by at most 2e-5, far below 1 /
    # sqrt(COUNT).
    assert stats.kstest(draws, "norm").pvalue > 1e-6


def test_bits_are_fair():
    bits = np.asarray(jax.random.bits(key(), (2**18,)))
    for position in range(32):
        ones = int(((bits >> position) & 1).sum())
        assert abs(ones - 2**17) < 5 * np.sqrt(2**16), position


def steps(count):
    return [jax.random.fold_in(key(1), step) for step in range(count)]


def of_layer(key, name):
    return random.draw_key(key, f"{name}/kernel", "weight_noise")


FAMILIES = {
    "seeds": lambda: [key(seed) for seed in range(12)],
    "split": lambda: list(jax.random.split(key(), 12)),
    "steps": lambda: steps(12),
    "layers": lambda: [of_layer(key(1), f"layer_{i}") for i in range(12)],
    "layers and steps": lambda: [of_layer(s, i) for s in steps(4) for i in "abc"],
    "reads": lambda: [
        *read_keys(key(2)),
        *read_keys(random.fold_in(key(2), 1)),
    ],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_of_different_keys_are_uncorrelated(name):
    keys = FAMILIES[name]()
    count = 2**16
    rows = np.asarray([random.normal(k, (count,)) for k in keys])
    limit = 6 / np.sqrt(count)  # 6 standard errors: 66 pairs, their squares and cubes
    for values in (rows, rows**2, rows**3):
        correlation = np.corrcoef(values) - np.eye(len(rows))
        assert np.abs(correlation).max() < limit


def test_neighbours_and_rows_are_uncorrelated():
    rows, columns = 512, 2048
    draws = np.asarray(random.normal(key(4), (rows, columns)), np.float64)
    for values in (draws, draws**2 - 1):
        values = values / values.std()
        for shift in (1, 2, 3, 64, 128, 511):
            pairs = rows * (columns - shift)
            across = (values[:, :-shift] * values[:, shift:]).sum() / pairs
            assert abs(across) < 5 / np.sqrt(pairs), shift
        for shift in (1, 2, 4, 256):
            pairs = (rows - shift) * columns
            down = (values[:-shift] * values[shift:]).sum() / pairs
            assert abs(down) < 5 / np.sqrt(pairs), shift
    # The mean of each row and column is normal: their squares follow chi squared.
    for axis in (0, 1):
        means = draws.mean(axis) * np.sqrt(draws.shape[axis])
        assert stats.chi2(len(means)).sf(np.sum(means**2)) > 1e-6


def test_the_spectrum_is_flat():
    # Periodogram of white noise: exponential with mean 1.
    draws = np.asarray(random.normal(key(5), (COUNT,)), np.float64)
    power = np.abs(np.fft.rfft(draws)[1:-1]) ** 2 / COUNT
    assert stats.kstest(power, "expon").pvalue > 1e-6
    assert power.max() < np.log(len(power)) + 15  # exceeded with probability e^-15


def test_serial_pairs_fill_the_square_evenly():
    uniforms = stats.norm.cdf(np.asarray(random.normal(key(6), (COUNT,)), np.float64))
    for lag in (1, 2, 128):
        cells = (uniforms[:-lag] * 64).astype(int) * 64 + (uniforms[lag:] * 64).astype(
            int
        )
        counts = np.bincount(cells, minlength=64**2)
        assert stats.chisquare(counts).pvalue > 1e-6, lag


def test_runs_up_and_down_are_as_long_as_they_should_be():
    draws = np.asarray(random.normal(key(7), (COUNT,)))
    turns = np.count_nonzero(np.diff(np.sign(np.diff(draws))))
    # Number of turning points of independent numbers: Bienaymé, 1874.
    mean, variance = 2 * (COUNT - 2) / 3, (16 * COUNT - 29) / 90
    assert abs(turns - mean) < 5 * np.sqrt(variance)


def test_is_a_generator_of_jax():
    assert jax.random.normal(key(), (5,)).shape == (5,)
    draw = random.uniform(key(3), (64, 8))
    np.testing.assert_array_equal(draw, jax.random.uniform(key(3), (64, 8)))
    keys = jax.random.split(key(1), 4)
    together = jax.vmap(lambda k: random.normal(k, (5, 3)))(keys)
    for one, alone in zip(keys, together):
        np.testing.assert_array_equal(random.normal(one, (5, 3)), alone)
    first, second = element_words(jax.random.key_data(key()), (9,), 13)
    np.testing.assert_array_equal(jax.random.bits(key(), (9,)), first ^ second)


@pytest.mark.parametrize("generator", [fast_prng, threefry_prng, "threefry2x32"])
def test_orbax_restores_a_key_of_every_generator(generator, tmp_path):
    key = jax.random.key(7, impl=generator)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"key": key})
        checkpointer.wait_until_finished()
        found = checkpointer.restore(tmp_path / "state", {"key": key})["key"]
    assert found.dtype == key.dtype == dtype_of(generator)
    np.testing.assert_array_equal(jax.random.bits(found, 5), jax.random.bits(key, 5))


def test_a_draw_by_itself_is_that_of_a_compiled_program():
    key = jax.random.key(3, impl=fast_prng)
    compiled = jax.jit(lambda key: normal(key, (1000,)))(key)
    np.testing.assert_array_equal(normal(key, (1000,)), compiled)
