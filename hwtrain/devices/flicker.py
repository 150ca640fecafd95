"""Devices whose 1/f noise has a memory between reads."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import Field, model_validator

from hwtrain._arrays.random import draw_key, stored_normal
from hwtrain._parts.fields import Deviation, Positive
from hwtrain._parts.registry import register
from hwtrain.devices._around import AroundNoiseModel, ChangedProof
from hwtrain.devices._programmed import Programmed

Components = Annotated[int, Field(ge=4, le=256)]

_WORD = np.float32(2**32)


def flicker_noise(
    number: jax.Array,
    t_s: ArrayLike,
    *,
    f_min_hz: ArrayLike,
    f_max_hz: ArrayLike,
    components: int,
) -> jax.Array:
    r"""Returns noise with a spectrum of 1/f, a function of the device and the time.

    .. math::
        n(t) = \sqrt{\frac2K} \sum_{k=0}^{K-1} \cos\big(2\pi (f_k t + \phi_k)\big),
        \qquad f_k = f_\text{min}
        \left(\frac{f_\text{max}}{f_\text{min}}\right)^{(k + u_k) / K}

    with :math:`u_k, \phi_k` uniform in [0, 1), made from the number of the device by an
    integer hash. Over devices, its variance is 1 and its covariance that of a spectrum
    of exactly 1/f within the band, for any K:

    .. math::
        \langle n(t)\, n(t + \tau) \rangle = \frac{1}{\ln (f_\text{max} / f_\text{min})}
        \int_{f_\text{min}}^{f_\text{max}} \frac{\cos 2\pi f \tau}{f}\, df

    It becomes normal as K grows: the fourth moment is :math:`3 - 3 / (2 K)`. Cycles are
    counted in integers of 64 bits, so that float32 loses none of them to a long time;
    two times that float32 does not tell apart have the same noise.

    >>> number = jax.random.normal(jax.random.key(0), (10_000,))
    >>> band = {"f_min_hz": 1e-4, "f_max_hz": 1.0, "components": 16}
    >>> now, soon, later = (
    ...     flicker_noise(number, t, **band) for t in (1e3, 1e3 + 0.1, 1e6))
    >>> print(f"{(now * soon).mean():.1f} {abs((now * later).mean()):.1f}")
    1.0 0.0

    Args:
      number: float32, a random number for each device, of any shape.
      t_s: time, in seconds. May be traced.
      f_min_hz: lower end of the band, in Hz.
      f_max_hz: upper end of the band, in Hz.
      components: K.

    Returns:
      Noise of standard deviation 1, of the shape of the numbers.

    References:
      Shinozuka and Deodatis, Simulation of stochastic processes by spectral
      representation, Applied Mechanics Reviews 44, 1991.
    """
    number = jnp.asarray(number, jnp.float32)
    word = _mixed(jax.lax.bitcast_convert_type(number, jnp.uint32))
    # Ticks of half a cycle of the fastest component: no frequency is above 1/2 of it.
    ticks = 2 * jnp.asarray(f_max_hz, jnp.float32) * t_s
    whole = jnp.floor(ticks)
    high = jnp.floor(whole / _WORD)
    time = (high.astype(jnp.uint32), (whole - high * _WORD).astype(jnp.uint32))
    span = jnp.log(jnp.asarray(f_max_hz / f_min_hz, jnp.float32))

    def add(k: Any, total: jax.Array) -> jax.Array:
        salt = _mixed(jnp.asarray(k, jnp.uint32))
        phase, place, low = (_mixed(word ^ _mixed(salt + i)) for i in range(3))
        u = place.astype(jnp.float32) / _WORD
        cycles = 0.5 * jnp.exp(span * ((k + u) / components - 1))
        # Random digits below those of float32, without which a long time, which is a
        # multiple of many ticks, would be a whole number of cycles.
        fine = cycles * 2.0**-24 * (low.astype(jnp.float32) / _WORD)
        turns = _turns(time, _added(_words(cycles), _words(fine))) + phase
        angle = turns.astype(jnp.float32) / _WORD + (ticks - whole) * cycles
        return total + jnp.cos(2 * jnp.pi * angle)

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
      ValueError: for an empty band.

    References:
      Nardone et al., Possible mechanisms for 1/f noise in chalcogenide glasses,
      Physical Review B 79, 2009, for its source: independent fluctuators with times
      spread evenly over decades.

      Le Gallo and Sebastian, An overview of phase-change memory device physics, Journal
      of Physics D 53, 2020, for a noise proportional to the conductance.
    """

    without_slope: ClassVar = dict.fromkeys(
        ("f_min_hz", "f_max_hz"), "it decides which frequencies are drawn"
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
            raise ValueError(
                f"f_min_hz must be below f_max_hz, got f_min_hz={self.f_min_hz:g} and "
                f"f_max_hz={self.f_max_hz:g}"
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
            raise ValueError(
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


def _words(share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the first 64 bits of a number below 1, as two words."""
    scaled = share * _WORD
    high = jnp.floor(scaled)
    return high.astype(jnp.uint32), ((scaled - high) * _WORD).astype(jnp.uint32)


def _added(a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < a[1]), low


def _turns(time: Any, cycles: Any) -> jax.Array:
    """Returns the share of a turn after a time, in units of 2^-32.

    Args:
      time: ticks, as two words.
      cycles: share of a cycle in each tick, its first 64 bits as two words.
    """
    return time[1] * cycles[0] + _high(time[1], cycles[1]) + time[0] * cycles[1]


def _high(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the higher word of the product of two words."""
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    first = a1 * b0 + (a0 * b0 >> 16)
    second = a0 * b1 + (first & 0xFFFF)
    return a1 * b1 + (first >> 16) + (second >> 16)
