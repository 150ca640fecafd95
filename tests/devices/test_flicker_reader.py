"""1/f noise as a reader computes it from docs/checkpoint.md, by Python's integers."""

from decimal import Context, Decimal, localcontext
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import words
from hwtrain.devices.flicker import flicker_noise

WORD = 2**32
TIMES = [0.0, 60.0, 86_400.0, 31_536_000.0]


def mixed(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor % WORD
    return x ^ x >> 16


def frequency(k, components, band, place, digits):
    """F of component k: turns of 2^-64 in each tick."""
    with localcontext(Context(prec=80)):
        low, high = (Decimal(band[name]) for name in ("f_min_hz", "f_max_hz"))
        q = (low / high) ** (Decimal(1) / components)
        b = int(2**63 * q ** (components - 1 - k))
        s = int((WORD - 1) * q ** (Decimal(place >> 29) / 8))
        for n, of in ((place >> 26 & 7, WORD), (1, 64 * place % WORD)):
            c = int(WORD * (1 - q ** (Decimal(n) / 64)))
            s -= s * (c if of == WORD else c * of // WORD) // WORD
    return (b >> 32) * s + ((b >> 32) * digits >> 32) + (b % WORD * s >> 32)


def expected(numbers, times, components, band):
    """The noise at all times, `[times, numbers]`."""
    ticks = [
        int(Fraction(float(t)) * Fraction(band["f_max_hz"]) * 2**33) for t in times
    ]
    found = np.zeros((len(ticks), len(numbers)))
    for n, bits in enumerate(np.asarray(numbers, np.float32).view(np.uint32).tolist()):
        w = mixed(bits)
        for k in range(components):
            h = [mixed(w ^ mixed((mixed(k) + i) % WORD)) for i in range(3)]
            f = frequency(k, components, band, h[1], h[2])
            turns = [(h[0] + (time * f >> 64)) % WORD / WORD for time in ticks]
            found[:, n] += np.cos(2 * np.pi * np.asarray(turns))
    return found * np.sqrt(2 / components)


BANDS = [
    ({"f_min_hz": 1e-3, "f_max_hz": 10.0}, 32),
    ({"f_min_hz": 1e-6, "f_max_hz": 1e3}, 8),
    ({"f_min_hz": 1e-8, "f_max_hz": 0.123}, 64),
    ({"f_min_hz": 1e-6, "f_max_hz": 1e9}, 4),
]


@pytest.mark.parametrize("band, components", BANDS)
def test_a_reader_without_jax_finds_the_same_noise(band, components):
    call = {**band, "components": components}
    compiled = jax.jit(lambda x, t: flicker_noise(x, t, **call))
    for seed in (0, 7, 2**31 + 5):
        numbers = jax.random.normal(jax.random.key(seed), (4,))
        reference = expected(numbers, TIMES, components, band)
        found = [compiled(numbers, t_s) for t_s in TIMES]
        # 0.05 of a weight is a large standard deviation of its noise.
        np.testing.assert_allclose(0.05 * np.stack(found), 0.05 * reference, atol=2e-7)
        eager = flicker_noise(numbers, TIMES[-1], **call)
        np.testing.assert_allclose(0.05 * eager, 0.05 * reference[-1], atol=2e-7)
    assert compiled._cache_size() == 1


def test_no_time_is_too_short_or_too_long():
    numbers = jax.random.normal(jax.random.key(0), (6,))
    band, components = BANDS[0]
    compiled = jax.jit(
        lambda t: flicker_noise(numbers, t, **band, components=components)
    )
    times = np.float32([1e-30, 0.3, 1e3 + 0.001, 1e12, 2.0**80, 1e30])
    times = np.append(times, np.nextafter(times, np.float32(0)))
    found = np.stack([compiled(t) for t in times])
    np.testing.assert_allclose(
        found, expected(numbers, times, components, band), atol=4e-6
    )


def test_float64_tells_a_second_after_a_year_apart():
    year, band = 31_536_000.0, {"f_min_hz": 1e-3, "f_max_hz": 0.2}
    with jax.enable_x64(True):
        numbers = jax.random.normal(jax.random.key(0), (20,), jnp.float32)
        read = jax.jit(lambda t: flicker_noise(numbers, t, **band, components=16))
        found = [np.asarray(read(year + second)) for second in (0.0, 1.0, 1.1)]
        assert read._cache_size() == 1
        found.append(np.asarray(read(31_536_001)))  # an integer
    times = [year, year + 1.0, year + 1.1, year + 1.0]
    reference = expected(numbers, times, 16, band)
    np.testing.assert_allclose(np.stack(found), reference, atol=4e-6)
    assert np.abs(found[1] - found[0]).max() > 0.1


@pytest.mark.parametrize("x64", [False, True])
def test_products_are_exact_and_wrap(x64):
    rng = np.random.default_rng(0)
    kind = np.float64 if x64 else np.float32
    sizes = 10.0 ** rng.uniform(-20, 30, 300)
    x = np.append(sizes, [0.0, 1.0, 86_400.0, 31_536_001.0]).astype(kind)
    for factor in (20.0, 2e-4, 0.123, 3e9, 1e12):
        with jax.enable_x64(x64):
            found = [np.asarray(w) for w in words.fixed_point(jnp.asarray(x), factor)]
        total = sum(w.astype(object) * WORD**n for n, w in enumerate(found))
        exact = [int(Fraction(float(a)) * Fraction(factor) * WORD) for a in x]
        assert total.tolist() == [each % WORD**3 for each in exact]


@pytest.mark.parametrize("t_s", [-1.0, float("inf"), float("nan"), jnp.float32(-2)])
def test_times_that_cannot_be_are_refused(t_s):
    with pytest.raises(ValueError, match="a number of at least 0"):
        flicker_noise(jnp.ones(3), t_s, **BANDS[0][0], components=4)
