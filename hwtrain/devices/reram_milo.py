"""The noise model of multilevel ReRAM that is programmed and verified."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._arrays.polynomials import polynomial
from hwtrain._parts.fields import Deviation, Positive
from hwtrain._parts.registry import register
from hwtrain.devices._curves import Coefficients
from hwtrain.devices._programmed import Programmed
from hwtrain.devices.bases import NoiseModel


@register("noise_model", "reram_milo")
class ReRamMiloNoiseModel(NoiseModel):
    r"""HfO2 ReRAM of 50 to 225 µS, programmed by pulses of growing gate voltage.

    .. math:: \sigma = \max(4.782 - 0.0091\, g,\ 0)\ \text{µS}

    after programming with the algorithm IGVVA-100. Conductances then stay as they are,
    and reads add nothing: neither was measured. The smallest conductance of the
    converter should be 50 µS, where the measurements begin.

    >>> print(f"{ReRamMiloNoiseModel().programming_sigma(100.0):.3f}")
    3.872

    References:
      Milo et al., Optimized programming algorithms for multilevel RRAM in hardware
      neural networks, IRPS 2021, with the coefficients of CrossSim's model `RRAMMilo`.
    """

    type: Literal["reram_milo"] = "reram_milo"
    to_fit: ClassVar = ("prog_coeff",)
    units: ClassVar = {"prog_coeff": "µS / µS^n"}
    g_max: Positive = 225.0
    """Conductance of the largest weight, in µS."""
    prog_coeff: Coefficients = (4.782321, -0.009107)
    """Programming noise in µS, by powers of g in µS."""
    prog_noise_scale: Deviation = 1.0
    """Factor on the programming noise. Zero turns it off."""

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the programming noise at a target conductance, both in µS."""
        sigma = polynomial(jnp.asarray(g, jnp.float32), self.prog_coeff)
        return self.prog_noise_scale * jnp.maximum(sigma, 0)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns zero, the noise of one read; arguments as in `NoiseModel`."""
        return jnp.zeros_like(programmed.g_prog)
