"""Noise of programmed devices with power-law drift: phase-change memory."""

import abc
from typing import Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._parts.constant import static
from hwtrain.hardware.bases import NoiseModel
from hwtrain.hardware.configuration import (
    Deviation,
    Exponent,
    Positive,
)
from hwtrain.hardware.curves import (
    Coefficients,
    Points,
    check_curve,
    interpolate,
    polynomial_sigma,
)
from hwtrain.physics import phase_change
from hwtrain.physics.modifiers import PCM_COEFFICIENTS
from hwtrain.physics.programmed import (
    Programmed,
    noise_growth,
    power_law,
    program_drifting,
)

_PCM_G_MAX = 25.0


class DriftingNoiseModel(NoiseModel):
    r"""What every model with power-law drift has in common.

    .. math::
        g_\text{prog} &= \max(g + \sigma(g)\, \xi_1, 0) \\
        \nu &= |\mu_\nu(g) + \sigma_\nu(g)\, \xi_2| \\
        g(t) &= g_\text{prog} \Big(\frac{t + t_0}{t_0}\Big)^{-\nu}

    and a read adds noise of its own. Conductances are the state: nothing is normalised
    again after programming.
    """

    prog_noise_scale: Deviation = 1.0
    """Factor on the programming noise. Zero turns it off."""
    read_noise_scale: Deviation = 1.0
    """Factor on the read noise. Zero turns it off."""
    drift_scale: Deviation = 1.0
    """Factor on the drift exponents. Zero turns drift off."""
    t_0: Positive = 20.0
    """Time of the reference read after programming, in seconds."""
    t_read: Positive = 250e-9
    """Duration of a read, in seconds."""

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must be another after a time: always."""
        return True

    @abc.abstractmethod
    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the standard deviation of the programming noise, in µS.

        Args:
          g: target conductance, in µS.
        """

    @abc.abstractmethod
    def drift_mean(self, g: ArrayLike) -> jax.Array:
        """Returns the mean drift exponent.

        Args:
          g: target conductance, in µS.
        """

    @abc.abstractmethod
    def drift_std(self, g: ArrayLike) -> jax.Array:
        """Returns the standard deviation of the drift exponent over devices.

        Args:
          g: target conductance, in µS.
        """

    @abc.abstractmethod
    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the standard deviation of one read, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices after programming.

        Args:
          key: a JAX key.
          g_target: target conductances of any shape, in µS.
        """
        return program_drifting(
            key,
            g_target,
            sigma=self.programming_sigma(g_target),
            nu_mean=self.drift_mean(g_target),
            nu_std=self.drift_std(g_target),
        )

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a time, without read noise, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        nu = programmed.nu
        if nu is None:
            raise ValueError(
                "these devices have no drift exponents; another model programmed "
                "them. Use that one, or call program again"
            )
        return power_law(programmed.g_prog, nu, t_s=t_s, t0_s=self.t_0)


class _PCMNoiseModel(DriftingNoiseModel):
    g_max: Positive = _PCM_G_MAX
    """Conductance of the largest weight, in µS."""
    prog_coeff: Coefficients = PCM_COEFFICIENTS
    """Programming noise in µS, by powers of g / g_max."""
    prog_coeff_g_max_reference: Positive | None = None
    """The g_max in µS that `prog_coeff` was fitted at, g_ref. `None`: 25 µS for the
    coefficients of this model, and `g_max` for others."""

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the programming noise at a target conductance, both in µS."""
        reference = self.prog_coeff_g_max_reference
        if reference is None:
            ours = static(self.prog_coeff) == PCM_COEFFICIENTS
            reference = _PCM_G_MAX if ours else self.g_max
        factor = self.prog_noise_scale * self.g_max / reference
        return polynomial_sigma(g, self.g_max, self.prog_coeff, factor)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the noise of one read at a time in s, in µS."""
        a = phase_change.relative(programmed.g_target, self.g_max)
        level = self.read_noise_scale * phase_change.pcm_read_level(a)
        growth = noise_growth(t_s + self.t_0, self.t_read)
        return self.mean_at(programmed, t_s) * level * growth


class PCMLikeNoiseModel(_PCMNoiseModel):
    r"""Phase-change memory, fitted to a million devices.

    With :math:`a = g / g_\text{max}`,

    .. math::
        \sigma &= (0.263 + 1.965 a - 1.173 a^2)\, g_\text{max} / g_\text{ref} \\
        \mu_\nu &= \mathrm{clip}(-0.0155 \ln a + 0.0244,\ 0.049,\ 0.1) \\
        \sigma_\nu &= \mathrm{clip}(-0.0125 \ln a - 0.0059,\ 0.008,\ 0.045) \\
        \sigma_\text{read} &= g(t) \min(0.0088 / a^{0.65},\ 0.2)
        \sqrt{\ln \frac{t + t_0 + t_r}{2 t_r}}

    >>> model = PCMLikeNoiseModel()
    >>> devices = model.program(jax.random.key(0), jnp.full((100, 100), 25.0))
    >>> print(f"{model.mean_at(devices, 86_400.0).mean():.1f} µS")
    16.6 µS

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019.

      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """

    type: Literal["pcm_like"] = "pcm_like"

    def drift_mean(self, g: ArrayLike) -> jax.Array:
        """Returns the mean drift exponent at a target conductance in µS."""
        a = phase_change.relative(g, self.g_max)
        return self.drift_scale * phase_change.pcm_drift_mean(a)

    def drift_std(self, g: ArrayLike) -> jax.Array:
        """Returns the spread of the drift exponent at a target conductance in µS."""
        a = phase_change.relative(g, self.g_max)
        return self.drift_scale * phase_change.pcm_drift_std(a)


class CustomDriftPCMLikeNoiseModel(_PCMNoiseModel):
    r"""As `PCMLikeNoiseModel`, with measured drift exponents.

    Mean and standard deviation of the exponent are linear in the target conductance
    between the measured points, and constant outside them.

    >>> model = CustomDriftPCMLikeNoiseModel(
    ...     g_lst=(0.0, 25.0), nu_mean_lst=(0.1, 0.05), nu_std_lst=(0.04, 0.01))
    >>> print(model.drift_mean(12.5))
    0.075

    References:
      Joshi et al., Nature Communications 2020.
    """

    type: Literal["custom_drift_pcm_like"] = "custom_drift_pcm_like"
    g_lst: Points
    """Target conductances of the points, rising, in µS."""
    nu_mean_lst: Points
    """Mean drift exponent at each point."""
    nu_std_lst: Points
    """Standard deviation of the drift exponent at each point."""

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        check_curve("nu_mean_lst", self.g_lst, self.nu_mean_lst)
        check_curve("nu_std_lst", self.g_lst, self.nu_std_lst)
        return self

    def drift_mean(self, g: ArrayLike) -> jax.Array:
        """Returns the mean drift exponent at a target conductance in µS."""
        return self.drift_scale * interpolate(g, self.g_lst, self.nu_mean_lst)

    def drift_std(self, g: ArrayLike) -> jax.Array:
        """Returns the spread of the drift exponent at a target conductance in µS."""
        return self.drift_scale * interpolate(g, self.g_lst, self.nu_std_lst)


class StateIndependentNoiseModel(DriftingNoiseModel):
    r"""Devices whose noise does not depend on their conductance.

    .. math::
        \sigma = 0.2\ \text{µS}, \quad \mu_\nu = 0.1, \quad \sigma_\nu = 0.05, \quad
        \sigma_\text{read} = \frac{g(t)}{g_\text{max}}
        \sqrt{\ln \frac{t + t_0 + t_r}{2 t_r}}\ \text{µS}

    The read noise is in µS, about 4 µS at g_max: scale it down for a quiet reader.

    >>> print(StateIndependentNoiseModel().programming_sigma(10.0))
    0.2

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """

    type: Literal["state_independent"] = "state_independent"
    g_max: Positive = 25.0
    """Conductance of the largest weight, in µS."""
    prog_coeff: Coefficients = (0.2, 0.0, 0.0)
    """Programming noise in µS, by powers of g / g_max."""
    drift_nu_mean: Exponent = 0.1
    """Mean drift exponent."""
    drift_nu_std: Exponent = 0.05
    """Standard deviation of the drift exponent over devices."""

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the programming noise at a target conductance, both in µS."""
        return polynomial_sigma(g, self.g_max, self.prog_coeff, self.prog_noise_scale)

    def drift_mean(self, g: ArrayLike) -> jax.Array:
        """Returns the mean drift exponent at a target conductance in µS."""
        return jnp.full_like(g, self.drift_scale * self.drift_nu_mean)

    def drift_std(self, g: ArrayLike) -> jax.Array:
        """Returns the spread of the drift exponent at a target conductance in µS."""
        return jnp.full_like(g, self.drift_scale * self.drift_nu_std)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the noise of one read at a time in s, in µS."""
        level = self.read_noise_scale * self.mean_at(programmed, t_s) / self.g_max
        return level * noise_growth(t_s + self.t_0, self.t_read)
