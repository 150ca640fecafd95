"""Noise of resistive memory (ReRAM)."""

from typing import Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain.hardware.bases import NoiseModel
from hwtrain.hardware.configuration import (
    Deviation,
    NonNegative,
    Number,
    Positive,
)
from hwtrain.hardware.conversion import check_range
from hwtrain.physics import resistive
from hwtrain.physics.modifiers import polynomial
from hwtrain.physics.programmed import Programmed, noisy, program_relaxing
from hwtrain.physics.random import normal


class ReRamWan2022NoiseModel(NoiseModel):
    r"""ReRAM of the NeuRRAM chip: it spreads around its target as time passes.

    .. math:: g(t) = \max(g + \sigma(g, t)\, \xi, 0)

    The standard deviation is a polynomial in :math:`g / g_\text{max}`, measured 1 s,
    1 day and 2 days after programming, scaled from 40 µS to `g_max`, linear in the
    logarithm of time between and constant outside. :math:`\xi` stays with a device. The
    measurements hold the read noise, so a read adds none.

    >>> print(ReRamWan2022NoiseModel(g_max=40.0).programming_sigma(0.0))
    0.348

    References:
      Wan et al., A compute-in-memory chip based on resistive random-access memory,
      Nature 2022.
    """

    type: Literal["reram_wan2022"] = "reram_wan2022"
    g_max: Positive = 40.0
    """Conductance of the largest weight, in µS."""
    coeff_g_max_reference: Positive = 40.0
    """The g_max in µS that the measured spread belongs to."""
    noise_scale: Deviation = 1.0
    """Factor on the spread. Zero turns it off."""

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must be another after a time: always."""
        return True

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the spread 1 s after programming.

        Args:
          g: target conductance, in µS.
        """
        return self.sigma_at(g, 1.0)

    def sigma_at(self, g: ArrayLike, t_s: ArrayLike) -> jax.Array:
        """Returns the spread around a target at a time.

        Args:
          g: target conductance, in µS.
          t_s: time since programming, in seconds. May be traced.
        """
        a = jnp.abs(jnp.asarray(g, jnp.float32)) / self.g_max
        factor = self.noise_scale * self.g_max / self.coeff_g_max_reference
        return factor * resistive.wan_sigma(a, t_s)

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices 1 s after programming.

        Args:
          key: a JAX key.
          g_target: target conductances of any shape, in µS.
        """
        # One number per device: what programming missed is where the spread begins.
        xi = normal(key, g_target.shape)
        g_prog = noisy(g_target, self.programming_sigma(g_target), xi)
        return Programmed(g_target=g_target, g_prog=g_prog, xi=xi)

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a time, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        sigma = self.sigma_at(programmed.g_target, t_s)
        return noisy(programmed.g_target, sigma, _relaxation(programmed))

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns zero: the measured spread holds the read noise.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds.
        """
        return jnp.zeros_like(self.mean_at(programmed, t_s))

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a time, in µS; every read is the same.

        Args:
          key: a JAX key, not used: the model has no noise of the read alone.
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        return self.mean_at(programmed, t_s)


class ReRamCMONoiseModel(NoiseModel):
    r"""CMO/HfOx ReRAM: it relaxes with the logarithm of time.

    .. math::
        g_\text{prog} &= \max(g + (c_0 + c_1 g)\, \xi_1, 0) \\
        g(t) &= \mathrm{clip}(g_\text{prog} + s\,(-0.0890 \ln t
        + (0.0420 \ln t + 0.4118)\, \xi_2),\ g_\text{min},\ g_\text{max}) \\
        \sigma_\text{read} &= 0.0277 \log_{10} g(t)
        \sqrt{\ln \frac{t + t_r}{2 t_r}}

    Times below 1 s, where the fit begins, are taken as 1 s. :math:`\xi_2` stays with a
    device.

    >>> print(f"{ReRamCMONoiseModel(acceptance_range=2.0).programming_sigma(50.0):.3f}")
    0.576

    References:
      Falcone et al., All-in-one analog AI hardware: on-chip training and inference with
      conductive-metal-oxide/HfOx ReRAM devices, arXiv:2502.04524, 2025.
    """

    type: Literal["reram_cmo"] = "reram_cmo"
    g_max: Positive = 88.199997
    """The largest conductance, in µS."""
    g_min: NonNegative = 9.0
    """The smallest conductance, in µS."""
    acceptance_range: Number = 0.2
    """How near to its target programming brings a device: 0.2 or 2, in % of it."""
    prog_noise_scale: Deviation = 1.0
    """Factor on the programming noise. Zero turns it off."""
    read_noise_scale: Deviation = 1.0
    """Factor on the read noise. Zero turns it off."""
    drift_scale: Deviation = 1.0
    """Factor on the relaxation. Zero turns it off."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_range(self.g_min, self.g_max)
        if self.acceptance_range not in resistive.CMO_COEFFICIENTS:
            raise ValueError(
                "acceptance_range was measured at 0.2 and at 2 (percent), got "
                f"{self.acceptance_range}"
            )
        return self

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must be another after a time: always."""
        return True

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the standard deviation of the programming noise, in µS.

        Args:
          g: target conductance, in µS.
        """
        coeffs = resistive.CMO_COEFFICIENTS[self.acceptance_range]
        g = jnp.abs(jnp.asarray(g, jnp.float32))
        return self.prog_noise_scale * polynomial(g, coeffs)

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices after programming.

        Args:
          key: a JAX key.
          g_target: target conductances of any shape, in µS.
        """
        return program_relaxing(key, g_target, sigma=self.programming_sigma(g_target))

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a time, without read noise, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        return jnp.clip(self._relaxed(programmed, t_s), self.g_min, self.g_max)

    def _relaxed(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        moved = resistive.cmo_relaxation(_relaxation(programmed), t_s)
        return programmed.g_prog + self.drift_scale * moved

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the standard deviation of one read, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        sigma = resistive.cmo_read_sigma(self._relaxed(programmed, t_s), t_s)
        return self.read_noise_scale * sigma

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances as one read at a time sees them, in µS.

        Args:
          key: a JAX key, another one for each read.
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        # Limited once, with all that moved it: a device beyond the limit may come back.
        g, sigma = self._relaxed(programmed, t_s), self.read_sigma(programmed, t_s)
        read = g + sigma * normal(key, g.shape)
        return jnp.clip(read, self.g_min, self.g_max)


def _relaxation(programmed: Programmed) -> jax.Array:
    if programmed.xi is None:
        raise ValueError(
            "these devices do not relax; they were programmed by another noise model. "
            "Use that one, or call program again"
        )
    return programmed.xi
