"""The noise model of SONOS charge-trapping memory, a kind of flash."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import Field, model_validator

from hwtrain._arrays.polynomials import polynomial
from hwtrain._arrays.random import stored_normal
from hwtrain._errors import InputError
from hwtrain._parts.fields import Deviation, Positive
from hwtrain._parts.registry import register
from hwtrain.devices._curves import Table, Times, check_table
from hwtrain.devices._programmed import (
    Programmed,
    _relaxation,
    noisy,
)
from hwtrain.devices.bases import NoiseModel

DAY_S = 86_400.0
MOST_NA = 1800.0
"""The largest current of the measurements over time, in nA."""

_DAYS_S = tuple(day * DAY_S for day in range(6))

_MEAN = (
    (0.0,) * 11,
    (0.172684, 0.0572552, -6.85715e-4, 3.50271e-6, -9.37682e-9, 1.40575e-11)
    + (-1.19803e-14, 5.41293e-18, -8.85448e-22, -1.66869e-25, 5.9518e-29),
    (0.250712, 0.0662195, -6.83218e-4, 2.99442e-6, -6.78255e-9, 7.70482e-12)
    + (-3.04983e-15, -2.15919e-18, 2.94617e-21, -1.23359e-24, 1.85329e-28),
    (-0.01753, 0.0976883, -9.63791e-4, 4.55551e-6, -1.22391e-8, 1.93786e-11)
    + (-1.85899e-14, 1.07659e-17, -3.58211e-21, 5.96785e-25, -3.3041e-29),
    (0.0403338, 0.103111, -1.0474e-3, 4.83961e-6, -1.28132e-8, 1.99484e-11)
    + (-1.85139e-14, 1.00008e-17, -2.84944e-21, 3.01008e-25, 1.18747e-29),
    (0.319927, 0.106596, -1.04054e-3, 4.5029e-6, -1.10352e-8, 1.56477e-11)
    + (-1.27592e-14, 5.45513e-18, -7.26841e-22, -2.43893e-25, 7.14608e-29),
)
_SPREAD = (
    (19.88665, 176.3115),
    (25.59102, 186.85544),
    (28.72753, 193.56834),
    (31.04318, 198.90332),
    (33.76214, 204.77023),
    (34.57909, 207.34309),
)

Saturating = Annotated[
    tuple[Positive, ...], Field(strict=False, min_length=2, max_length=2)
]
"""A and B of A (1 - exp(-I / B)), in nA."""


@register("noise_model", "sonos")
class SonosNoiseModel(NoiseModel):
    r"""40 nm SONOS memory below threshold, whose currents move and spread over days.

    .. math::
        m(I, t) = I + \sum_k p_k(t)\, I^k, \qquad
        \sigma(m, t) = A(t) \left(1 - e^{-m / B(t)}\right), \qquad
        I(t) = \max(m + \sigma\, \xi,\ 0)

    with the currents I of devices at the read voltage in nA, :math:`\xi` constant for
    each device, and p, A and B measured after 0 to 5 days: linear in time between,
    constant outside. Just after programming, p = 0. Each read adds noise of the same
    shape, with A = 12.6 nA and B = 215 nA. Of devices for both signs, those that are
    off conduct hardly anything, so `g_min` of the converter is 0.

    >>> print(f"{SonosNoiseModel().programming_sigma(16.0):.3f}")
    0.199

    Raises:
      ValueError: with the coefficients of the paper, for currents above 1800 nA, which
        were not measured over time.

    References:
      Agrawal et al., Subthreshold operation of SONOS analog memory to enable accurate
      low-power neural network inference, IEDM 2022, with the coefficients of CrossSim's
      model `SONOS`.
    """

    type: Literal["sonos"] = "sonos"
    to_fit: ClassVar = ("drift_mean_coeff", "spread_coeff", "read_coeff")
    units: ClassVar = {
        "drift_mean_coeff": "nA / nA^n",
        "spread_coeff": "nA",
        "read_coeff": "nA",
    }
    g_max: Positive = 16.0
    """Conductance of the largest weight, in µS."""
    v_read: Positive = 0.1
    """Read voltage, in V: 1600 nA at g_max."""
    times_s: Times = _DAYS_S
    """Times of the measurements, rising, in seconds after programming."""
    drift_mean_coeff: Table = _MEAN
    """Change of the mean current in nA since programming, at each of these times: by
    powers of the current in nA."""
    spread_coeff: Annotated[
        tuple[Saturating, ...], Field(strict=False, min_length=2)
    ] = _SPREAD
    """A and B of the spread A (1 - exp(-I / B)), in nA, at each of these times."""
    read_coeff: Saturating = (12.58037, 215.36557)
    """A and B of the read noise, in nA."""
    prog_noise_scale: Deviation = 1.0
    """Factor on the spread. Zero turns it off."""
    drift_scale: Deviation = 1.0
    """Factor on the change of the mean. Zero turns it off."""
    read_noise_scale: Deviation = 1.0
    """Factor on the read noise. Zero turns it off."""

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must differ after a given time: unless that is turned off."""
        return bool(self.drift_scale or self.prog_noise_scale)

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the spread just after programming, in µS.

        Args:
          g: target conductance, in µS.
        """
        return self._sigma(g, 0.0)

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices just after programming.

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
        """Returns the conductances at a given time, without read noise, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        current = self._na(programmed.g_target)
        change = polynomial(
            current / 1e3, self._at(_per_ua(self.drift_mean_coeff), t_s)
        )
        mean = programmed.g_target + self.drift_scale * change / self._na(1.0)
        return noisy(mean, self._sigma(mean, t_s), _relaxation(programmed))

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the noise of one read in µS, at a time in seconds."""
        sigma = _saturating(self._na(self.mean_at(programmed, t_s)), *self.read_coeff)
        return self.read_noise_scale * sigma / self._na(1.0)

    def _na(self, g: ArrayLike) -> jax.Array:
        """Returns the current of a conductance in µS, in nA."""
        return 1e3 * self.v_read * jnp.asarray(g, jnp.float32)

    def _sigma(self, g: ArrayLike, t_s: ArrayLike) -> jax.Array:
        """Returns the spread in µS of devices of a mean conductance in µS."""
        a, b = self._at(self.spread_coeff, t_s)
        return self.prog_noise_scale * _saturating(self._na(g), a, b) / self._na(1.0)

    def _at(self, rows: tuple[Any, ...], t_s: ArrayLike) -> list[jax.Array]:
        """Returns each column of a table at a time in seconds."""
        known = jnp.asarray(self.times_s, jnp.float32)
        columns = [jnp.asarray(column, jnp.float32) for column in zip(*rows)]
        return [jnp.interp(jnp.asarray(t_s, jnp.float32), known, c) for c in columns]

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy draws them."""
        unit = 1e3 * self.v_read

        def at(rows: tuple[Any, ...], t_s: float) -> np.ndarray:
            return np.array([np.interp(t_s, self.times_s, x) for x in zip(*rows)])

        def spread(g: np.ndarray, a: float, b: float) -> np.ndarray:
            return np.maximum(a * (1 - np.exp(-g * unit / b)), 0) / unit

        def sample(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Any:
            xi = rng.normal(size=g.shape)
            scale = self.prog_noise_scale
            written = np.maximum(
                g + scale * spread(g, *at(self.spread_coeff, 0.0)) * xi, 0
            )
            moved = at(self.drift_mean_coeff, t_s)
            change = np.polynomial.polynomial.polyval(g * unit, moved) / unit
            mean, later = g + self.drift_scale * change, at(self.spread_coeff, t_s)
            now = np.maximum(mean + scale * spread(mean, *later) * xi, 0)
            read = self.read_noise_scale * spread(now, *self.read_coeff)
            return written, now - written, read * rng.normal(size=g.shape)

        ctx.behaves(sample)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_table("drift_mean_coeff", self.times_s, self.drift_mean_coeff)
        check_table("spread_coeff", self.times_s, self.spread_coeff)
        most = 1e3 * self.v_read * self.g_max
        if self.drift_mean_coeff == _MEAN and most > MOST_NA * (1 + 1e-6):
            raise InputError(
                f"g_max={self.g_max:g} µS at v_read={self.v_read:g} V is {most:g} nA, "
                f"and currents above {MOST_NA:g} nA were not measured over time: lower "
                "one of them, or give your own drift_mean_coeff"
            )
        return self


def _saturating(current: jax.Array, a: Any, b: Any) -> jax.Array:
    return jnp.maximum(-a * jnp.expm1(-current / b), 0)


def _per_ua(rows: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns coefficients by powers of the current in µA.

    float32 can take a current in µA to the tenth power.
    """
    return tuple(tuple(c * 1e3**k for k, c in enumerate(row)) for row in rows)
