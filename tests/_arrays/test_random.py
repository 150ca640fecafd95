"""Fused random numbers against `jax.random`, and element counters against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import random, threefry

SHAPES = [(), (7,), (64, 33), (3, 5, 8), (1, 1), (0, 4)]


@pytest.mark.sampled(3)
@pytest.mark.optimised
@pytest.mark.parametrize(
    ("shape", "jit"), [*((shape, True) for shape in SHAPES), ((64, 33), False)]
)
def test_bit_equal_to_jax_random(shape, jit):
    def ours(key):
        return random.normal(key, shape), random.uniform(key, shape)

    def theirs(key):
        return jax.random.normal(key, shape), jax.random.uniform(key, shape)

    if jit:
        ours, theirs = jax.jit(ours), jax.jit(theirs)
    for seed in (0, 3, 2**31):
        key = jax.random.key(seed)
        for one, other in zip(ours(key), theirs(key)):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("number", [0, 1, 5, -3, 2**31, 2**32 - 1])
def test_fold_in_is_that_of_jax(number):
    for key in (jax.random.key(7), jax.random.key(2**31 - 1)):
        ours = random.fold_in(key, number)
        theirs = jax.random.fold_in(key, number % 2**32)
        assert bool((ours == theirs).all())
        inside = jax.jit(random.fold_in)(key, jnp.uint32(number % 2**32))
        assert bool((inside == theirs).all())


def test_under_vmap_equals_single_draws():
    keys = jax.random.split(jax.random.key(1), 4)
    together = jax.vmap(lambda key: random.normal(key, (5, 3)))(keys)
    for key, draw in zip(keys, together):
        np.testing.assert_array_equal(draw, jax.random.normal(key, (5, 3)))


def test_raw_key_data_and_typed_keys_draw_the_same():
    key = jax.random.key(5)
    raw = jax.random.key_data(key)
    np.testing.assert_array_equal(random.normal(raw, (9,)), random.normal(key, (9,)))


def test_other_generators_are_left_to_jax():
    key = jax.random.key(5, impl="rbg")
    np.testing.assert_array_equal(
        random.normal(key, (9,)), jax.random.normal(key, (9,))
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_cast_from_float32(dtype):
    key = jax.random.key(2)
    ours = random.normal(key, (100_000,), dtype)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, random.normal(key, (100_000,)).astype(dtype))
    # Numbers drawn in bfloat16 never exceed 2.9; these have tails.
    assert jnp.abs(ours).max() > 4


@pytest.mark.parametrize(
    "shape", [(5, 7, 3), (2**20, 2**14), (2**31, 3, 2**10), (3, 2**30 + 7, 11)]
)
def test_counters_beyond_32_bits(shape):
    generator = np.random.default_rng(0)
    indices = [generator.integers(0, size, 1000) for size in shape]
    indices = [np.append(index, size - 1) for index, size in zip(indices, shape)]
    expected = np.zeros(1001, np.uint64)
    for index, size in zip(indices, shape):
        expected = expected * np.uint64(size) + index.astype(np.uint64)
    high, low = threefry.flat_counter(
        [jnp.asarray(index, jnp.uint32) for index in indices], shape
    )
    ours = (np.asarray(high, np.uint64) << np.uint64(32)) | np.asarray(low, np.uint64)
    np.testing.assert_array_equal(ours, expected)


def test_a_draw_is_named_by_path_effect_and_part():
    key = jax.random.key(0)
    names = [
        ("a/kernel", "weight_noise", 0),
        ("b/kernel", "weight_noise", 0),
        ("a/kernel", "mismatch", 0),
        ("a/kernel", "weight_noise", 1),
    ]
    count = 20_000
    draws = [random.normal(random.draw_key(key, *name), (count,)) for name in names]
    correlation = np.corrcoef(np.asarray(draws)) - np.eye(len(names))
    assert np.abs(correlation).max() < 5 / np.sqrt(count)  # 5 standard errors


def test_the_hash_is_the_same_for_ever():
    # Export and training must agree across versions: a change breaks every chip.
    assert random.stable_hash("hidden/kernel#weight_noise#0") == 2451691387
    assert random.stable_hash("") == int.from_bytes(bytes.fromhex("36e9d246"), "little")


def test_a_stored_draw_is_the_same_draw():
    keys = jax.random.split(jax.random.key(3), 4)
    expected = [random.normal(key, (5, 3)) for key in keys]
    draw = functools.partial(random.stored_normal, shape=(5, 3))
    np.testing.assert_array_equal([draw(key) for key in keys], expected)
    np.testing.assert_array_equal([jax.jit(draw)(key) for key in keys], expected)
    np.testing.assert_array_equal(jax.vmap(draw)(keys), expected)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the CPU backend")
@pytest.mark.parametrize("mapped", [False, True])
def test_a_stored_draw_shares_no_kernel_with_another(mapped):
    def three(keys):
        return sum(random.stored_normal(keys[i], (64,)) for i in range(3))

    keys = jax.random.split(jax.random.key(3), (4, 3))
    function, given = (jax.vmap(three), keys) if mapped else (three, keys[0])
    text = jax.jit(function).lower(given).compile().as_text()
    assert text.count(" while(") == 3


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="others have a barrier")
@pytest.mark.parametrize("maps", [0, 1, 2])
def test_a_draw_is_one_branch_under_vmap_too(maps):
    """With a condition for each key, it would be computed again by every consumer."""
    keys = jax.random.split(jax.random.key(0), (2, 3)[:maps])

    def draw(key):
        return random.normal(key, (4,))

    def drawn(key):
        return random.once(key, draw)

    plain = draw
    for _ in range(maps):
        drawn, plain = jax.vmap(drawn), jax.vmap(plain)
    compiled = jax.jit(drawn).lower(keys).compile()
    assert "conditional(" in compiled.as_text()
    np.testing.assert_array_equal(compiled(keys), plain(keys))
