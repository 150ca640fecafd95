"""A noise model with deviations that do not depend on the conductance."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._parts.fields import Exponent, Positive
from hwtrain._parts.registry import register
from hwtrain.devices import _samples as samples
from hwtrain.devices._curves import Coefficients, polynomial_sigma
from hwtrain.devices._programmed import Programmed, noise_growth
from hwtrain.devices.drifting import DriftingNoiseModel


@register("noise_model", "state_independent")
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
    to_fit: ClassVar = (
        "prog_coeff",
        "drift_nu_mean",
        "drift_nu_std",
        "read_noise_scale",
    )
    units: ClassVar = {"prog_coeff": "µS"}
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
        """Returns the noise of one read in µS, at a time in seconds."""
        level = self.read_noise_scale * self.mean_at(programmed, t_s) / self.g_max
        return level * noise_growth(t_s + self.t_0, self.t_read)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy draws them."""
        ctx.behaves(samples.as_state_independent(self))
