"""The noise model of ReRAM with a conductive metal oxide."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from hwtrain._arrays.polynomials import polynomial
from hwtrain._arrays.random import stored_normal
from hwtrain._errors import InputError
from hwtrain._parts.fields import Deviation, NonNegative, Number, Positive
from hwtrain._parts.registry import register
from hwtrain.devices import _samples as samples
from hwtrain.devices._conversion import check_range
from hwtrain.devices._curves import Coefficients
from hwtrain.devices._programmed import (
    Programmed,
    _relaxation,
    noise_growth,
    noisy,
    two_normals,
)
from hwtrain.devices.bases import NoiseModel

CMO_COEFFICIENTS = {0.2: (0.00081107, 0.00106879), 2.0: (0.0112185391, 0.01129027418)}
"""Programming noise in µS, by powers of g in µS, for each acceptance range in %."""

Pair = Annotated[tuple[Number, ...], Field(strict=False, min_length=2, max_length=2)]

_CMO_LEVEL_FLOOR_US = 1e-6


def cmo_relaxation(
    xi: jax.Array, t_s: ArrayLike, *, mean: float, std: tuple[float, ...]
) -> jax.Array:
    r"""Returns the change of the conductance of CMO/HfOx ReRAM since programming.

    .. math:: \Delta g = m \ln t + (s_0 + s_1 \ln t)\, \xi

    >>> change = cmo_relaxation(jnp.array(0.0), 3600.0, mean=-0.089, std=(0.41, 0.04))
    >>> print(f"{change:.3f}")
    -0.729

    Args:
      xi: a standard normal number for each device.
      t_s: time since programming, in seconds. May be traced; below 1 s it is taken as
        1 s, where the fit begins.
      mean: m, in µS.
      std: s_0 and s_1, in µS.

    Returns:
      In µS.
    """
    log_t = jnp.log(jnp.maximum(jnp.asarray(t_s, jnp.float32), 1))
    start, growth = std
    return mean * log_t + (growth * log_t + start) * xi


def cmo_read_sigma(
    g: jax.Array, t_s: ArrayLike, *, coeff: float, t_read_s: float
) -> jax.Array:
    r"""Returns the read noise of CMO/HfOx ReRAM.

    .. math:: \sigma = q \max(\log_{10} g, 0) \sqrt{\ln \frac{t + t_r}{2 t_r}}

    >>> sigma = cmo_read_sigma(jnp.array(88.2), 1.0, coeff=0.02773, t_read_s=1e-6)
    >>> print(f"{sigma:.3f}")
    0.195

    Args:
      g: conductance at the time of the read, in µS.
      t_s: time since programming, in seconds. May be traced; below 1 s it is taken as
        1 s.
      coeff: q, in µS.
      t_read_s: duration of a read, in seconds.

    Returns:
      In µS, of the shape of `g`.
    """
    level = jnp.maximum(jnp.log10(jnp.maximum(g, _CMO_LEVEL_FLOOR_US)), 0)
    t_s = jnp.maximum(jnp.asarray(t_s, jnp.float32), 1)
    return coeff * level * noise_growth(t_s, t_read_s)


@register("noise_model", "reram_cmo")
class ReRamCMONoiseModel(NoiseModel):
    r"""CMO/HfOx ReRAM, which relaxes with the logarithm of time.

    .. math::
        g_\text{prog} &= \max(g + (c_0 + c_1 g)\, \xi_1, 0) \\
        g(t) &= \mathrm{clip}(g_\text{prog} + s\,(-0.0890 \ln t
        + (0.0420 \ln t + 0.4118)\, \xi_2),\ g_\text{min},\ g_\text{max}) \\
        \sigma_\text{read} &= 0.0277 \log_{10} g(t)
        \sqrt{\ln \frac{t + t_r}{2 t_r}}

    Times below 1 s, where the fit begins, are taken as 1 s. :math:`\xi_2` is constant
    for each device.

    >>> print(f"{ReRamCMONoiseModel(acceptance_range=2.0).programming_sigma(50.0):.3f}")
    0.576

    References:
      Falcone et al., All-in-one analog AI hardware: on-chip training and inference with
      conductive-metal-oxide/HfOx ReRAM devices, arXiv:2502.04524, 2025.
    """

    stays_static: ClassVar = {"acceptance_range": "names one of two measurements"}

    type: Literal["reram_cmo"] = "reram_cmo"
    normals: ClassVar = 2
    to_fit: ClassVar = (
        "prog_coeff",
        "drift_mean_coeff",
        "drift_std_coeff",
        "read_coeff",
    )
    units: ClassVar = {
        "prog_coeff": "µS / µS^n",
        "drift_mean_coeff": "µS",
        "drift_std_coeff": "µS",
        "read_coeff": "µS",
    }
    g_max: Positive = 88.199997
    """The largest conductance, in µS."""
    g_min: NonNegative = 9.0
    """The smallest conductance, in µS."""
    acceptance_range: Number = 0.2
    """Tolerance of programming around the target: 0.2 or 2, in % of the target. It
    decides the default of `prog_coeff` and nothing else."""
    prog_coeff: Coefficients = CMO_COEFFICIENTS[0.2]
    """Programming noise in µS, by powers of g in µS."""
    drift_mean_coeff: Number = -0.08900206
    """Mean relaxation in µS, times ln t."""
    drift_std_coeff: Pair = (0.41183342, 0.04201137)
    """Standard deviation of the relaxation over devices in µS, by powers of ln t."""
    read_coeff: NonNegative = 0.0277316483
    """Read noise in µS, times log10 g and the growth of 1/f noise."""
    t_read: Positive = 1e-6
    """Duration of a read, in seconds."""
    prog_noise_scale: Deviation = 1.0
    """Factor on the programming noise. Zero turns it off."""
    read_noise_scale: Deviation = 1.0
    """Factor on the read noise. Zero turns it off."""
    drift_scale: Deviation = 1.0
    """Factor on the relaxation. Zero turns it off."""

    @model_validator(mode="before")
    @classmethod
    def _as_measured(cls, data: Any) -> Any:
        given = data.kwargs or {} if isinstance(data, ArgsKwargs) else data
        if not isinstance(given, dict):
            return data
        accepted = given.get("acceptance_range", 0.2)
        if not isinstance(accepted, int | float):
            return data  # refused as no number
        coeffs = CMO_COEFFICIENTS.get(accepted)
        filled = given if coeffs is None else {"prog_coeff": coeffs} | given
        return ArgsKwargs(data.args, filled) if isinstance(data, ArgsKwargs) else filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_range(self.g_min, self.g_max)
        if self.acceptance_range not in CMO_COEFFICIENTS:
            raise InputError(
                "acceptance_range was measured at 0.2 and at 2 (percent), got "
                f"{self.acceptance_range}; give your own numbers as prog_coeff"
            )
        return self

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must differ after a given time: unless that is turned off."""
        return bool(self.drift_scale)

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the standard deviation of the programming noise, in µS.

        Args:
          g: target conductance, in µS.
        """
        g = jnp.abs(jnp.asarray(g, jnp.float32))
        return self.prog_noise_scale * jnp.maximum(polynomial(g, self.prog_coeff), 0)

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices after programming.

        Args:
          key: a JAX key.
          g_target: target conductances of any shape, in µS.
        """
        return self.programmed_from(two_normals(key, g_target.shape), g_target)

    def programmed_from(
        self, xi: Sequence[jax.Array], g_target: jax.Array
    ) -> Programmed:
        """Returns devices after programming, given what is random about them.

        Args:
          xi: the numbers of programming and of the relaxation.
          g_target: target conductances, in µS.
        """
        g_prog = noisy(g_target, self.programming_sigma(g_target), xi[0])
        return Programmed(g_target=g_target, g_prog=g_prog, xi=xi[1])

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, without read noise, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        return jnp.clip(self._relaxed(programmed, t_s), self.g_min, self.g_max)

    def _relaxed(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        moved = cmo_relaxation(
            _relaxation(programmed),
            t_s,
            mean=self.drift_mean_coeff,
            std=self.drift_std_coeff,
        )
        return programmed.g_prog + self.drift_scale * moved

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the standard deviation of one read, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        g = self._relaxed(programmed, t_s)
        sigma = cmo_read_sigma(g, t_s, coeff=self.read_coeff, t_read_s=self.t_read)
        return self.read_noise_scale * sigma

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances in one read at a given time, in µS.

        Args:
          key: a JAX key, a new one for each read.
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        # Clip only the sum: read noise may bring a device back from beyond the limit.
        g, sigma = self._relaxed(programmed, t_s), self.read_sigma(programmed, t_s)
        read = g + sigma * stored_normal(key, g.shape)
        return jnp.clip(read, self.g_min, self.g_max)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy draws them."""
        ctx.behaves(samples.as_cmo(self))
