r"""Devices that are kept and read at another temperature than they were measured at."""

import math
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._arrays.polynomials import polynomial
from hwtrain._errors import InputError
from hwtrain._parts.constant import Constant
from hwtrain._parts.fields import Number, Positive
from hwtrain._parts.registry import register
from hwtrain.devices._around import AroundNoiseModel, ChangedProof
from hwtrain.devices._curves import Coefficients
from hwtrain.devices._programmed import Programmed

K_EV = 8.617333262e-5
"""Boltzmann's constant in eV per K, exact since 2019."""


def arrhenius(energy_ev: ArrayLike, t_k: ArrayLike, reference_k: ArrayLike) -> Any:
    r"""Returns how much faster a thermally activated process is than at a reference.

    .. math:: \exp\left(\frac{E}{k} \Big(\frac1{T_0} - \frac1T\Big)\right)

    >>> print(f"{arrhenius(1.1, 358.15, 328.15):.1f}")
    26.0

    Args:
      energy_ev: activation energy E, in eV. Zero turns it off.
      t_k: temperature T, in K. May be traced.
      reference_k: T_0, in K.
    """
    return jnp.exp(jnp.asarray(energy_ev / K_EV * (1 / reference_k - 1 / t_k)))


@register("noise_model", "at_temperature")
class AtTemperature(AroundNoiseModel):
    r"""A noise model of devices that are kept and read at another temperature.

    .. math::
        g(t, T) &= e^{\frac{E_c(a)}{k} \left(\frac1{T_0} - \frac1T\right)}\,
        g_0\big(e^{\frac{E_r}{k} \left(\frac1{T_0} - \frac1T\right)}\, t\big), \qquad
        E_c(a) = \sum_i c_i a^i

    with the conductances :math:`g_0` of the noise model, which was measured at
    :math:`T_0`, and :math:`a = g / g_\text{max}` of the target. Amorphous phase-change
    material conducts by thermal activation: :math:`E_c` falls from that of the
    amorphous state at a = 0 to that of the crystalline one at a = 1. Relaxation and
    loss of filaments are activated too: they take :math:`E_r`. Reads scale with the
    conductance. Devices are programmed at :math:`T_0`. Energies depend on the material
    and have no default; zero turns each part off.

    >>> from hwtrain import PCMLikeNoiseModel
    >>> hot = AtTemperature(
    ...     noise_model=PCMLikeNoiseModel(prog_noise_scale=0.0, drift_scale=0.0),
    ...     temperature_k=330.0, conduction_ev=(0.2, -0.2))
    >>> devices = hot.program(jax.random.key(0), jnp.array([0.25, 25.0]))
    >>> print(hot.mean_at(devices, 0.0).round(2))
    [ 0.5 25. ]

    Raises:
      ValueError: if all energies are zero.

    References:
      Ielmini and Zhang, Analytical model for subthreshold conduction and threshold
      switching in chalcogenide-based memory devices, Journal of Applied Physics 2007,
      for the activated conduction.

      Boybat et al., Temperature sensitivity of analog in-memory computing using
      phase-change memory, IEDM 2021, for what temperature does to such a chip.

      JEDEC JEP122, Failure mechanisms and models for semiconductor devices, for the
      acceleration of time.
    """

    type: Literal["at_temperature"] = "at_temperature"
    to_fit: ClassVar = ("conduction_ev", "retention_ev")
    units: ClassVar = {"conduction_ev": "eV", "retention_ev": "eV"}
    temperature_k: Positive
    """Temperature T of the chip after programming, in K."""
    reference_k: Positive = 300.0
    """Temperature T_0 of the measurements, in K."""
    conduction_ev: Coefficients = (0.0,)
    """Activation energy of the conductance in eV, by powers of g / g_max."""
    retention_ev: Number = 0.0
    """Activation energy of drift, relaxation and failures in eV."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(self.conduction_ev) and not self.retention_ev:
            raise InputError(
                "a temperature without conduction_ev and retention_ev changes nothing: "
                "give one of these energies, or use the noise model itself"
            )
        return self

    def check_hardware(self, hardware: Any) -> None:
        """Raises if another model of the nest has another `temperature_k`."""
        super().check_hardware(hardware)
        other = hardware.noise_model
        while other is not None:
            there = getattr(other, "temperature_k", self.temperature_k)
            if not math.isclose(there, self.temperature_k, rel_tol=1e-6):
                raise InputError(
                    f"noise_model: {other.type!r} has temperature_k={there:g} and "
                    f"{self.type!r} has temperature_k={self.temperature_k:g}, but a "
                    "chip is at one temperature: write the same number in both"
                )
            other = getattr(other, "noise_model", None)

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must differ after a given time."""
        # Of a millionth of the time, float32 may show nothing.
        aged = float(self._aged(t_s))
        return aged > t_s * 1e-6 and self.noise_model.must_drift(aged)

    def describe(self) -> str:
        """Returns the noise model and the temperature."""
        return f"{self.noise_model.describe()} at {self.temperature_k:g} K"

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, without read noise, in µS."""
        g = self.noise_model.mean_at(programmed, self._aged(t_s))
        return g * self._factor(programmed)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> Any:
        """Returns the standard deviation of one read, in µS."""
        sigma = self.noise_model.read_sigma(programmed, self._aged(t_s))
        return sigma * self._factor(programmed)

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances in one read at a given time, in µS."""
        g = self.noise_model.at(key, programmed, self._aged(t_s))
        return g * self._factor(programmed)

    def _aged(self, t_s: ArrayLike) -> Any:
        """Returns the time at the reference after which devices are as old."""
        numbers = (self.retention_ev, self.temperature_k, self.reference_k)
        if any(isinstance(number, Constant) for number in numbers):
            return t_s * arrhenius(*numbers)
        # One product in float32, so that what follows a time bit by bit is the same on
        # every machine.
        energy_ev, t_k, reference_k = numbers
        factor = np.exp(energy_ev / K_EV * (1 / reference_k - 1 / t_k))
        return jnp.asarray(t_s) * jnp.float32(factor)

    def _factor(self, programmed: Programmed) -> jax.Array:
        a = jnp.abs(jnp.asarray(programmed.g_target, jnp.float32)) / self.g_max
        energy = polynomial(a, self.conduction_ev)
        return arrhenius(energy, self.temperature_k, self.reference_k)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the noise model's, changed in NumPy."""
        gap = (1 / self.reference_k - 1 / self.temperature_k) / K_EV

        def changed(sample: Any) -> Any:
            def hot(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Any:
                written, drift, read = sample(
                    rng, g, t_s * np.exp(self.retention_ev * gap)
                )
                a = np.abs(g) / self.g_max
                energy = np.polynomial.polynomial.polyval(a, self.conduction_ev)
                factor = np.exp(energy * gap)
                return written, drift * factor, read * factor

            return hot

        self.noise_model.proof(ChangedProof(ctx, changed))
