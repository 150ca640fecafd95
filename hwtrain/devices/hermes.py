"""The noise model of the Hermes chip, of phase-change memory.

Drift exponent and read noise are fits to measurements, over the relative conductance
a = g / g_max.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import model_validator
from pydantic_core import ArgsKwargs

from hwtrain._arrays.polynomials import polynomial
from hwtrain._parts.constant import static
from hwtrain._parts.fields import Positive
from hwtrain._parts.registry import register
from hwtrain.devices import _curves as curves
from hwtrain.devices import _samples as samples
from hwtrain.devices._curves import (
    ClippedLog,
    Coefficients,
    clipped_log,
    polynomial_sigma,
)
from hwtrain.devices._programmed import Programmed, noise_growth
from hwtrain.devices.drifting import DriftingNoiseModel


def in_two_parts(
    a: jax.Array, start: float, low: ClippedLog, high: Coefficients
) -> jax.Array:
    """Returns a curve: a clipped logarithm below `start`, then a polynomial.

    >>> low, high = (-0.0387, -0.0182, 0.072, 0.13), (0.0736, -0.0126, -0.0436)
    >>> print(f"{in_two_parts(jnp.array(1.0), 0.0945, low, high):.4f}")
    0.0174

    Args:
      a: relative conductance, positive.
      start: where the polynomial begins.
      low: slope, offset, least and most of the logarithm; see `clipped_log`.
      high: coefficients of the polynomial, in ascending powers.
    """
    return jnp.where(a < start, clipped_log(a, low), polynomial(a, high))


# Measured values, by number of devices.
_MEASURED: dict[int, dict[str, Any]] = {
    1: {
        "g_max": 10.35,
        "prog_coeff": (0.15781817, 2.32443916, -2.16310839, 0.68841818),
        "t_0": 200.0,
        "drift_std_start": 0.3039,
        "drift_std_log": (-0.0120, -0.0023, 0.0124, 0.04),
        "drift_std_coeff": (0.0104, 0.0116, -0.0165),
        "read_start": 0.1591,
        "read_log": (-0.0078, 0.0038, 0.0179, 0.04),
        "read_coeff": (0.0088, 0.0768, -0.1352, 0.0664),
    },
    2: {
        "g_max": 20.7,
        "prog_coeff": (0.16603222, 4.71806468, -8.48101252, 4.68961419),
        "t_0": 300.0,
        "drift_std_start": 0.3055,
        "drift_std_log": (-0.0117, -0.0057, 0.0091, 0.04),
        "drift_std_coeff": (0.0073, 0.0093, -0.0118),
        "read_start": 0.16,
        "read_log": (-0.0117, -0.0069, 0.015, 0.04),
        "read_coeff": (0.0123, 0.0211, -0.0280, 0.0069),
    },
}


@register("noise_model", "hermes")
class HermesNoiseModel(DriftingNoiseModel):
    r"""Phase-change memory of the 64-core Hermes chip.

    With :math:`a = g / g_\text{max}`, for two devices,

    .. math:: \sigma = (0.166 + 4.718 a - 8.481 a^2 + 4.690 a^3)\,
        g_\text{max} / g_\text{ref}, \qquad
        \mu_\nu = \begin{cases}
        \mathrm{clip}(-0.0387 \ln a - 0.0182,\ 0.072,\ 0.13) & a < 0.0945 \\
        0.0736 - 0.0126 a - 0.0436 a^2 & \text{else}\end{cases}

    and curves of the same form for the spread of the drift exponent and for the read
    noise relative to the conductance. Fields that are not given take
    measured values, which depend on `num_devices`.

    >>> HermesNoiseModel(num_devices=1).g_max, HermesNoiseModel().g_max
    (10.35, 20.7)

    References:
      Le Gallo et al., A 64-core mixed-signal in-memory compute chip based on
      phase-change memory for deep neural network inference, Nature Electronics 2023.
    """

    stays_static: ClassVar = dict.fromkeys(
        ("drift_mean_start", "drift_std_start", "read_start"),
        "decides which of two curves holds, without a slope",
    )

    type: Literal["hermes"] = "hermes"
    to_fit: ClassVar = (
        "prog_coeff",
        "drift_mean_log",
        "drift_mean_coeff",
        "drift_std_log",
        "drift_std_coeff",
        "read_log",
        "read_coeff",
    )
    units: ClassVar = {"prog_coeff": "µS"}
    num_devices: Literal[1, 2] = 2
    """Number of devices that share a conductance."""
    g_max: Positive = 20.7
    """Conductance of the largest weight, in µS; 10.35 for one device."""
    prog_coeff: Coefficients = _MEASURED[2]["prog_coeff"]
    """Programming noise in µS, by powers of g / g_max."""
    prog_coeff_g_max_reference: Positive | None = None
    """g_ref, the g_max in µS at which `prog_coeff` was fitted. `None`: the chip's for
    its own coefficients, and `g_max` for others."""
    t_0: Positive = 300.0
    """Time of the reference read after programming, in seconds; 200 for one device."""
    t_read: Positive = 512e-9
    """Duration of a read, in seconds."""
    drift_mean_start: Positive = 0.0945
    """g / g_max from which `drift_mean_coeff` holds for the mean drift exponent, and
    below which `drift_mean_log` does."""
    drift_mean_log: ClippedLog = (-0.0387, -0.0182, 0.0720, 0.13)
    """Mean drift exponent at small conductances: slope and offset of its line in
    ln(g / g_max), its least and its most."""
    drift_mean_coeff: Coefficients = (0.0736, -0.0126, -0.0436)
    """Mean drift exponent, by powers of g / g_max."""
    drift_std_start: Positive = _MEASURED[2]["drift_std_start"]
    """As `drift_mean_start`, for the standard deviation over devices."""
    drift_std_log: ClippedLog = _MEASURED[2]["drift_std_log"]
    """As `drift_mean_log`, for the standard deviation over devices."""
    drift_std_coeff: Coefficients = _MEASURED[2]["drift_std_coeff"]
    """As `drift_mean_coeff`, for the standard deviation over devices."""
    read_start: Positive = _MEASURED[2]["read_start"]
    """As `drift_mean_start`, for the read noise relative to the conductance."""
    read_log: ClippedLog = _MEASURED[2]["read_log"]
    """As `drift_mean_log`, for the read noise relative to the conductance."""
    read_coeff: Coefficients = _MEASURED[2]["read_coeff"]
    """As `drift_mean_coeff`, for the read noise relative to the conductance."""

    @model_validator(mode="before")
    @classmethod
    def _as_measured(cls, data: Any) -> Any:
        given = data.kwargs or {} if isinstance(data, ArgsKwargs) else data
        if not isinstance(given, dict):
            return data
        measured = _MEASURED.get(given.get("num_devices", 2), {})
        filled = measured | given
        return ArgsKwargs(data.args, filled) if isinstance(data, ArgsKwargs) else filled

    @property
    def _reference(self) -> float:
        if self.prog_coeff_g_max_reference is not None:
            return self.prog_coeff_g_max_reference
        measured = _MEASURED[self.num_devices]
        ours = static(self.prog_coeff) == measured["prog_coeff"]
        return measured["g_max"] if ours else self.g_max

    def with_fixed_units(self) -> Self:
        """Returns the same model with the `prog_coeff` of its own `g_max`."""
        factor = self.g_max / self._reference
        coeff = tuple(factor * c for c in self.prog_coeff)
        return replace(self, prog_coeff=coeff, prog_coeff_g_max_reference=self.g_max)

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the programming noise at a target conductance, both in µS."""
        factor = self.prog_noise_scale * self.g_max / self._reference
        return polynomial_sigma(g, self.g_max, self.prog_coeff, factor)

    def drift_mean(self, g: ArrayLike) -> jax.Array:
        """Returns the mean drift exponent at a target conductance in µS."""
        parts = self.drift_mean_start, self.drift_mean_log, self.drift_mean_coeff
        return self.drift_scale * in_two_parts(curves.relative(g, self.g_max), *parts)

    def drift_std(self, g: ArrayLike) -> jax.Array:
        """Returns the spread of the drift exponent at a target conductance in µS."""
        parts = self.drift_std_start, self.drift_std_log, self.drift_std_coeff
        return self.drift_scale * in_two_parts(curves.relative(g, self.g_max), *parts)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the noise of one read in µS, at a time in seconds."""
        a = curves.relative(programmed.g_target, self.g_max)
        level = in_two_parts(a, self.read_start, self.read_log, self.read_coeff)
        growth = noise_growth(t_s + self.t_0, self.t_read)
        return self.read_noise_scale * self.mean_at(programmed, t_s) * level * growth

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy draws them."""
        ctx.behaves(samples.as_hermes(self))
