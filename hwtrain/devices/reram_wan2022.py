"""The noise model of the ReRAM of Wan et al., 2022."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._arrays.polynomials import polynomial
from hwtrain._arrays.random import stored_normal
from hwtrain._errors import InputError
from hwtrain._parts.fields import Deviation, Positive
from hwtrain._parts.registry import register
from hwtrain.devices import _samples as samples
from hwtrain.devices._curves import Table, Times, check_table
from hwtrain.devices._programmed import (
    Programmed,
    _relaxation,
    noisy,
)
from hwtrain.devices.bases import NoiseModel

WAN_TIMES_S = (1.0, 86_400.0, 172_800.0)
"""Times of the measurements of the spread, in seconds after programming."""

WAN_COEFFICIENTS = (
    (0.348, 16.030, -43.853, 45.393, -16.815),
    (0.701, 22.086, -50.773, 47.095, -16.458),
    (0.782, 20.274, -43.507, 37.062, -11.934),
)
"""The spread at these times in µS, by powers of g / g_max, for a g_max of 40 µS."""


def wan_sigma(
    a: jax.Array,
    t_s: ArrayLike,
    times_s: tuple[float, ...] = WAN_TIMES_S,
    rows: tuple[tuple[float, ...], ...] = WAN_COEFFICIENTS,
) -> jax.Array:
    r"""Returns the spread of ReRAM around its target, for a g_max of 40 µS.

    A polynomial in the relative conductance was fitted at 1 s, 1 day and 2 days after
    programming. The standard deviation is linear in the logarithm of time between
    them, and constant outside.

    >>> print(wan_sigma(jnp.zeros(1), 1.0), wan_sigma(jnp.zeros(1), 1e9))
    [0.348] [0.782]

    Args:
      a: target conductance relative to g_max.
      t_s: time since programming, in seconds. May be traced.
      times_s: times of the measurements, rising.
      rows: coefficients of each time in µS, in ascending powers.

    Returns:
      In µS, of the shape of `a`.

    References:
      Wan et al., A compute-in-memory chip based on resistive random-access memory,
      Nature 2022.
    """
    knots = [jnp.maximum(polynomial(a, coeffs), 0) for coeffs in rows]
    log_times = [jnp.log(jnp.asarray(t, jnp.float32)) for t in times_s]
    log_t = jnp.log(jnp.maximum(jnp.asarray(t_s, jnp.float32), times_s[0]))
    sigma = knots[0]
    for start, end, low, high in zip(log_times, log_times[1:], knots, knots[1:]):
        share = jnp.clip((log_t - start) / (end - start), 0, 1)
        sigma = sigma + share * (high - low)
    return sigma


@register("noise_model", "reram_wan2022")
class ReRamWan2022NoiseModel(NoiseModel):
    r"""ReRAM of the NeuRRAM chip, which spreads around its target over time.

    .. math:: g(t) = \max(g + \sigma(g, t)\, \xi, 0)

    The standard deviation is a polynomial in :math:`g / g_\text{max}`, measured 1 s,
    1 day and 2 days after programming, scaled from 40 µS to `g_max`, linear in the
    logarithm of time in between and constant outside. :math:`\xi` is constant for each
    device. The measurements include the read noise, so a read adds none.

    >>> print(ReRamWan2022NoiseModel(g_max=40.0).programming_sigma(0.0))
    0.348

    References:
      Wan et al., A compute-in-memory chip based on resistive random-access memory,
      Nature 2022.
    """

    type: Literal["reram_wan2022"] = "reram_wan2022"
    to_fit: ClassVar = ("spread_coeff",)
    units: ClassVar = {"spread_coeff": "µS"}
    g_max: Positive = 40.0
    """Conductance of the largest weight, in µS."""
    coeff_g_max_reference: Positive = 40.0
    """The g_max in µS of the measured spread."""
    times_s: Times = WAN_TIMES_S
    """Times of the measurements of the spread, rising, in seconds after programming;
    `program` reaches the first."""
    spread_coeff: Table = WAN_COEFFICIENTS
    """The spread at each of these times in µS, by powers of g / g_max."""
    noise_scale: Deviation = 1.0
    """Factor on the spread. Zero turns it off."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table("spread_coeff", self.times_s, self.spread_coeff)
        if self.times_s[0] <= 0:
            raise InputError(
                "times_s should begin after 0 s, because the spread is linear in the "
                f"logarithm of time; got {self.times_s}"
            )
        return self

    def with_fixed_units(self) -> Self:
        """Returns the same model with the `spread_coeff` of its own `g_max`."""
        factor = self.g_max / self.coeff_g_max_reference
        rows = tuple(tuple(factor * c for c in row) for row in self.spread_coeff)
        return replace(self, spread_coeff=rows, coeff_g_max_reference=self.g_max)

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must differ after a given time: unless that is turned off."""
        return bool(self.noise_scale)

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the spread at the first of `times_s`.

        Args:
          g: target conductance, in µS.
        """
        return self.sigma_at(g, self.times_s[0])

    def sigma_at(self, g: ArrayLike, t_s: ArrayLike) -> jax.Array:
        """Returns the spread around a target at a given time.

        Args:
          g: target conductance, in µS.
          t_s: time since programming, in seconds. May be traced.
        """
        a = jnp.abs(jnp.asarray(g, jnp.float32)) / self.g_max
        factor = self.noise_scale * self.g_max / self.coeff_g_max_reference
        return factor * wan_sigma(a, t_s, self.times_s, self.spread_coeff)

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices at the first of `times_s`.

        Args:
          key: a JAX key.
          g_target: target conductances of any shape, in µS.
        """
        # Its error of programming is the start of its spread over time.
        return self.programmed_from([stored_normal(key, g_target.shape)], g_target)

    def programmed_from(
        self, xi: Sequence[jax.Array], g_target: jax.Array
    ) -> Programmed:
        """Returns devices just after programming, given their numbers.

        Args:
          xi: the one number of each device.
          g_target: target conductances, in µS.
        """
        g_prog = noisy(g_target, self.programming_sigma(g_target), xi[0])
        return Programmed(g_target=g_target, g_prog=g_prog, xi=xi[0])

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        sigma = self.sigma_at(programmed.g_target, t_s)
        return noisy(programmed.g_target, sigma, _relaxation(programmed))

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns zero: the measured spread includes the read noise.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds.
        """
        return jnp.zeros_like(self.mean_at(programmed, t_s))

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, in µS; every read is the same.

        Args:
          key: a JAX key, ignored: the model has no separate read noise.
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        return self.mean_at(programmed, t_s)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy draws them."""
        ctx.behaves(samples.as_wan2022(self))
