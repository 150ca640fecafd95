"""Devices whose 1/f noise has a memory between reads."""

import dataclasses
import decimal
import functools
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import Field, model_validator

from hwtrain._arrays import words
from hwtrain._arrays.random import draw_key, stored_normal
from hwtrain._errors import InputError
from hwtrain._parts.fields import Deviation, Positive
from hwtrain._parts.registry import register
from hwtrain.devices._around import AroundNoiseModel, ChangedProof
from hwtrain.devices._programmed import Programmed, check_time

Components = Annotated[int, Field(ge=4, le=256)]

_WIDEST = 1e15
"""The widest band whose slowest frequency has four digits as an integer."""


def flicker_noise(
    number: jax.Array,
    t_s: ArrayLike,
    *,
    f_min_hz: float,
    f_max_hz: float,
    components: int,
) -> jax.Array:
    r"""Returns noise with a spectrum of 1/f, a function of the device and the time.

    .. math::
        n(t) = \sqrt{\frac2K} \sum_{k=0}^{K-1} \cos\big(2\pi (f_k t + \phi_k)\big),
        \qquad f_k = F\Big(k + 1 - \frac{c_k + v_k}{64}\Big), \quad
        F(x) = f_\text{min}
        \left(\frac{f_\text{max}}{f_\text{min}}\right)^{x / K}

    with F at multiples of 1/64, linear between, and :math:`c_k` of 0 to 63 and
    :math:`v_k, \phi_k` in [0, 1) uniform, made from the number of the device by an
    integer hash. Frequencies, times and phases are integers of several words, so that
    no time is too long for them, and every machine computes the same.

    Over devices, the variance is 1 and the covariance, for any K, that of a spectrum of
    1/f within the band:

    .. math::
        \langle n(t)\, n(t + \tau) \rangle = \frac{1}{\ln (f_\text{max} / f_\text{min})}
        \int_{f_\text{min}}^{f_\text{max}} \frac{\cos 2\pi f \tau}{f}\, df

    The lines between change the spectrum at no frequency by more than the share
    :math:`h / 2 + h^2 / 12`, :math:`h = \ln (f_\text{max} / f_\text{min}) / (64 K)`,
    and the covariance by no more than this: 0.2 % for 4 decades and K = 32. The noise
    becomes normal as K grows: the fourth moment is :math:`3 - 3 / (2 K)`.

    >>> number = jax.random.normal(jax.random.key(0), (10_000,))
    >>> band = {"f_min_hz": 1e-4, "f_max_hz": 1.0, "components": 16}
    >>> now, soon, later = (
    ...     flicker_noise(number, t, **band) for t in (1e3, 1e3 + 0.1, 1e6))
    >>> print(f"{(now * soon).mean():.1f} {abs((now * later).mean()):.1f}")
    1.0 0.0

    Args:
      number: float32, a random number for each device, of any shape.
      t_s: time, in seconds, at least 0. May be traced. It is a float32, or with
        `jax_enable_x64` a float64: times that are equal in these have the same noise.
      f_min_hz: lower end of the band, in Hz. Static.
      f_max_hz: upper end of the band, in Hz. Static.
      components: K. Static.

    Returns:
      Noise of standard deviation 1, of the shape of the numbers.

    Raises:
      ValueError: for a time that is negative, infinite or not a number, unless it is
        traced.

    References:
      Shinozuka and Deodatis, Simulation of stochastic processes by spectral
      representation, Applied Mechanics Reviews 44, 1991.
    """
    check_time(t_s, most=np.finfo(np.float64).max)
    number = jnp.asarray(number, jnp.float32)
    word = _mixed(jax.lax.bitcast_convert_type(number, jnp.uint32))
    # Ticks of half a cycle of the fastest component, in units of 2^-32 ticks.
    ticks = words.fixed_point(jnp.asarray(t_s), 2 * f_max_hz)
    ends, eighths, off = _shares(f_min_hz, f_max_hz, components)
    highest = jnp.asarray(ends)

    def add(k: Any, total: jax.Array) -> jax.Array:
        salt = _mixed(jnp.asarray(k, jnp.uint32))
        phase, place, digits = (_mixed(word ^ _mixed(salt + i)) for i in range(3))
        low, high = highest[k]
        share = _share(place, eighths, off)
        frequency = words.product(high, share)
        for each in (words.high_word(high, digits), words.high_word(low, share)):
            frequency = words.added(frequency, (each, jnp.zeros_like(each)))
        turns = phase + _turns(ticks, frequency)
        # From -1/2 to 1/2, where float32 is the most precise.
        signed = jax.lax.bitcast_convert_type(turns, jnp.int32)
        angle = np.float32(2 * np.pi / 2**32) * signed.astype(jnp.float32)
        return total + jnp.cos(angle)

    total = jax.lax.fori_loop(0, components, add, jnp.zeros_like(number))
    return np.sqrt(2 / components) * total


@register("noise_model", "flicker")
class FlickerNoiseModel(AroundNoiseModel):
    r"""A noise model whose reads share 1/f noise, the more the closer they are in time.

    .. math:: g_\text{read}(t) = \max\big(g_0(t) + \sigma\, \bar g(t)\, n(t),\ 0\big)

    with a read :math:`g_0` and the mean :math:`\bar g` of the noise model, and n from
    `flicker_noise`: a function of the chip, of the device and of the time. All reads at
    one time have the same, whatever their key. Noise that is new at each read, such as
    that of the noise model, adds to it; its scale for reads should leave out what is
    stated here. A read without noise (without a key) has none.

    >>> from hwtrain import StateIndependentNoiseModel
    >>> model = FlickerNoiseModel(
    ...     noise_model=StateIndependentNoiseModel(read_noise_scale=0.0),
    ...     relative_std=0.02, f_min_hz=1e-4, f_max_hz=1.0)
    >>> devices = model.program(jax.random.key(0), jnp.full((3,), 10.0))
    >>> one, other = (model.at(jax.random.key(k), devices, 60.0) for k in (1, 2))
    >>> bool((one == other).all())
    True

    Raises:
      ValueError: for an empty band, or one of more than 15 decades.

    References:
      Nardone et al., Possible mechanisms for 1/f noise in chalcogenide glasses,
      Physical Review B 79, 2009, for its source: independent fluctuators with times
      spread evenly over decades.

      Le Gallo and Sebastian, An overview of phase-change memory device physics, Journal
      of Physics D 53, 2020, for a noise proportional to the conductance.
    """

    stays_static: ClassVar = dict.fromkeys(
        ("f_min_hz", "f_max_hz"), "makes integers, exactly, before a program runs"
    )

    type: Literal["flicker"] = "flicker"
    relative_std: Annotated[Deviation, Field(gt=0)]
    """Standard deviation over the whole band, relative to the conductance."""
    f_min_hz: Positive
    """Lower end of the band, in Hz: reads much farther apart are independent."""
    f_max_hz: Positive
    """Upper end of the band, in Hz: reads much closer have the same noise."""
    components: Components = 32
    """Number of frequencies of each device."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.f_min_hz >= self.f_max_hz:
            raise InputError(
                f"f_min_hz must be below f_max_hz, got f_min_hz={self.f_min_hz:g} and "
                f"f_max_hz={self.f_max_hz:g}"
            )
        if self.f_max_hz / self.f_min_hz > _WIDEST:
            raise InputError(
                f"f_max_hz must be at most {_WIDEST:g} f_min_hz, got "
                f"f_min_hz={self.f_min_hz:g} and f_max_hz={self.f_max_hz:g}"
            )
        return self

    def describe(self) -> str:
        """Returns the noise model, and the noise with its band."""
        return (
            f"{self.noise_model.describe() or self.noise_model.type}, 1/f noise "
            f"{self.relative_std:g} from {self.f_min_hz:g} to {self.f_max_hz:g} Hz"
        )

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices as the noise model programs them, with their numbers."""
        number = stored_normal(draw_key(key, "", "flicker"), g_target.shape)
        return dataclasses.replace(super().program(key, g_target), flicker=number)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> Any:
        """Returns the standard deviation of a read over devices, in µS."""
        mean = self.noise_model.mean_at(programmed, t_s)
        sigma = jnp.asarray(self.noise_model.read_sigma(programmed, t_s))
        return jnp.hypot(sigma, self.relative_std * mean)

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances in one read at a given time, in µS."""
        if programmed.flicker is None:
            raise InputError(
                "these devices have no 1/f noise; they were programmed by another "
                "noise model. Use that one, or call program again"
            )
        noise = flicker_noise(
            programmed.flicker,
            t_s,
            f_min_hz=self.f_min_hz,
            f_max_hz=self.f_max_hz,
            components=self.components,
        )
        g = self.noise_model.at(key, programmed, t_s)
        mean = self.noise_model.mean_at(programmed, t_s)
        return jnp.maximum(g + self.relative_std * mean * noise, 0)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the noise model's reads, with cosines."""

        def changed(sample: Any) -> Any:
            def noisy(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Any:
                written, drift, read = sample(rng, g, t_s)
                noise = np.zeros_like(g)
                for _ in range(self.components):
                    noise += np.cos(2 * np.pi * rng.random(g.shape))
                noise *= np.sqrt(2 / self.components)
                mean = written + drift
                return written, drift, read + self.relative_std * mean * noise

            return noisy

        self.noise_model.proof(ChangedProof(ctx, changed))


def _mixed(word: jax.Array) -> jax.Array:
    """Returns a hash of words of 32 bits, from which their bits cannot be told."""
    # Multipliers of the smallest known bias with three shifts, found by C. Wellons.
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


@functools.lru_cache(maxsize=64)
def _shares(
    f_min_hz: float, f_max_hz: float, components: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the exact numbers from which frequencies are made.

    Returns:
      The ends of the shares of the band, `[K, 2]`, turns in each tick in units of
      2^-64, the lower words first; eighths of a share below its end as factors, `[8]`;
      and what 64ths below these take off, `[8]`; both in units of 2^-32.
    """
    with decimal.localcontext(decimal.Context(prec=60)):
        band = decimal.Decimal(f_min_hz) / decimal.Decimal(f_max_hz)

        def below(share: int, shares: int) -> decimal.Decimal:
            return band ** (decimal.Decimal(share) / (shares * components))

        ends = [int(2**63 * below(components - 1 - k, 1)) for k in range(components)]
        eighths = [int((2**32 - 1) * below(n, 8)) for n in range(8)]
        off = [int(2**32 * (1 - below(n, 64))) for n in range(8)]
    halves = [[end % 2**32, end >> 32] for end in ends]
    highest, factors, less = (np.asarray(x, np.uint32) for x in (halves, eighths, off))
    return highest, factors, less


def _share(place: jax.Array, eighths: np.ndarray, off: np.ndarray) -> jax.Array:
    """Returns a frequency in units of 2^-32 of the end of its share of the band.

    Args:
      place: random words; the first three bits choose an eighth, the next three a 64th,
        and the others where it is in this, linearly.
      eighths: see `_shares`, likewise the other.
      off: what 64ths take off.
    """
    share = _chosen(place >> 29, eighths)
    share -= words.high_word(share, _chosen(place >> 26, off))
    return share - words.high_word(
        share, words.high_word(place << 6, jnp.asarray(off[1]))
    )


def _chosen(number: jax.Array, of: np.ndarray) -> jax.Array:
    """Returns one of eight constants, by the last three bits of a number."""
    # A gather would keep XLA from computing on vectors.
    found: Any = list(of)
    for bit in range(3):
        odd = (number >> bit & 1) == 1
        found = [jnp.where(odd, b, a) for a, b in zip(found[::2], found[1::2])]
    return found[0]


def _turns(ticks: words.Three, frequency: words.Two) -> jax.Array:
    """Returns the share of a turn after a time, in units of 2^-32.

    Args:
      ticks: in units of 2^-32 ticks.
      frequency: turns in each tick, in units of 2^-64.
    """
    fraction, low, high = ticks
    f_low, f_high = frequency
    whole = high * f_low + low * f_high + words.high_word(low, f_low)
    return whole + words.high_word(fraction, f_high)
