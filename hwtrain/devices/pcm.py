"""Noise models of phase-change memory."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import Field, model_validator

from hwtrain._arrays.polynomials import PCM_COEFFICIENTS
from hwtrain._parts.constant import static
from hwtrain._parts.fields import NonNegative, Positive
from hwtrain._parts.registry import register
from hwtrain.devices import _curves as curves
from hwtrain.devices import _samples as samples
from hwtrain.devices._curves import (
    ClippedLog,
    Coefficients,
    Points,
    check_curve,
    clipped_log,
    interpolate,
    polynomial_sigma,
)
from hwtrain.devices._programmed import (
    Programmed,
    noise_growth,
)
from hwtrain.devices.drifting import DriftingNoiseModel

_PCM_G_MAX = 25.0
ReadCoefficients = Annotated[
    tuple[NonNegative, ...], Field(strict=False, min_length=3, max_length=3)
]


def pcm_read_level(a: jax.Array, coeffs: ReadCoefficients) -> jax.Array:
    r"""Returns the read noise of PCM relative to the conductance.

    .. math:: Q = \min(q_0 / a^{q_1},\ q_2)

    >>> print(pcm_read_level(jnp.array([1e-7, 1.0]), (0.0088, 0.65, 0.2)))
    [0.2    0.0088]

    Args:
      a: relative conductance, positive.
      coeffs: level at g_max, exponent, and the most.
    """
    level, exponent, most = coeffs
    return jnp.minimum(level / a**exponent, most)


class _PCMNoiseModel(DriftingNoiseModel):
    units: ClassVar = {"prog_coeff": "µS"}
    g_max: Positive = _PCM_G_MAX
    """Conductance of the largest weight, in µS."""
    prog_coeff: Coefficients = PCM_COEFFICIENTS
    """Programming noise in µS, by powers of g / g_max."""
    prog_coeff_g_max_reference: Positive | None = None
    """g_ref, the g_max in µS at which `prog_coeff` was fitted. `None`: 25 µS for the
    coefficients of this model, and `g_max` for others."""
    read_coeff: ReadCoefficients = (0.0088, 0.65, 0.2)
    """q_0, q_1 and q_2 of the read noise min(q_0 / a^q_1, q_2), relative to the
    conductance, with a = g / g_max."""

    @property
    def _reference(self) -> float:
        if self.prog_coeff_g_max_reference is not None:
            return self.prog_coeff_g_max_reference
        ours = static(self.prog_coeff) == PCM_COEFFICIENTS
        return _PCM_G_MAX if ours else self.g_max

    def with_fixed_units(self) -> Self:
        """Returns the same model with the `prog_coeff` of its own `g_max`."""
        factor = self.g_max / self._reference
        coeff = tuple(factor * c for c in self.prog_coeff)
        return replace(self, prog_coeff=coeff, prog_coeff_g_max_reference=self.g_max)

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the programming noise at a target conductance, both in µS."""
        factor = self.prog_noise_scale * self.g_max / self._reference
        return polynomial_sigma(g, self.g_max, self.prog_coeff, factor)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the noise of one read in µS, at a time in seconds."""
        a = curves.relative(programmed.g_target, self.g_max)
        level = self.read_noise_scale * pcm_read_level(a, self.read_coeff)
        growth = noise_growth(t_s + self.t_0, self.t_read)
        return self.mean_at(programmed, t_s) * level * growth


@register("noise_model", "pcm_like")
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
    to_fit: ClassVar = (
        "prog_coeff",
        "drift_mean_coeff",
        "drift_std_coeff",
        "read_coeff",
    )
    drift_mean_coeff: ClippedLog = (-0.0155, 0.0244, 0.049, 0.1)
    """Mean drift exponent: slope and offset of its line in ln(g / g_max), its least and
    its most."""
    drift_std_coeff: ClippedLog = (-0.0125, -0.0059, 0.008, 0.045)
    """Standard deviation of the drift exponent over devices, likewise."""

    def drift_mean(self, g: ArrayLike) -> jax.Array:
        """Returns the mean drift exponent at a target conductance in µS."""
        a = curves.relative(g, self.g_max)
        return self.drift_scale * clipped_log(a, self.drift_mean_coeff)

    def drift_std(self, g: ArrayLike) -> jax.Array:
        """Returns the spread of the drift exponent at a target conductance in µS."""
        a = curves.relative(g, self.g_max)
        return self.drift_scale * clipped_log(a, self.drift_std_coeff)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy draws them."""
        ctx.behaves(samples.as_pcm(self))


@register("noise_model", "custom_drift_pcm_like")
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
    to_fit: ClassVar = ("prog_coeff", "nu_mean_lst", "nu_std_lst", "read_coeff")
    g_lst: Points
    """Target conductances of the points, increasing, in µS."""
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

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy draws them."""
        curves = self.nu_mean_lst, self.nu_std_lst
        mean, std = (lambda g, y=y: np.interp(g, self.g_lst, y) for y in curves)
        ctx.behaves(samples.as_pcm(self, mean, std))
