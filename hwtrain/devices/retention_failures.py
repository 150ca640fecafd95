"""Devices that lose their state after a time that is drawn once for each chip."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from hwtrain._arrays.random import draw_key, stored_normal
from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, Positive
from hwtrain._parts.registry import register
from hwtrain.devices._around import AroundNoiseModel, ChangedProof
from hwtrain.devices._programmed import Programmed

Law = Literal["weibull", "lognormal"]


def failure_times(life: jax.Array, law: Law, *, scale_s: Any, shape: Any) -> jax.Array:
    r"""Returns when devices fail, in seconds after programming.

    .. math::
        \text{Weibull:}\quad t_f &= \tau\, (-\ln \Phi(-z))^{1/\beta}, \qquad
        P(t_f > t) = e^{-(t/\tau)^\beta} \\
        \text{log-normal:}\quad t_f &= \tau\, e^{\beta z}, \qquad
        P(t_f > t) = \Phi\Big({-\tfrac1\beta \ln \frac t\tau}\Big)

    >>> print(failure_times(jnp.zeros(1), "lognormal", scale_s=1e6, shape=0.5))
    [1.e+06]

    Args:
      life: z, a standard normal number for each device.
      law: `"weibull"` or `"lognormal"`.
      scale_s: :math:`\tau`, in seconds.
      shape: :math:`\beta`.
    """
    if law == "lognormal":
        return scale_s * jnp.exp(shape * life)
    return scale_s * jnp.exp(jnp.log(-log_ndtr(-life)) / shape)


@register("noise_model", "retention_failures")
class RetentionFailures(AroundNoiseModel):
    r"""A noise model of devices that lose their state at a time of their own.

    .. math::
        g(t) = \begin{cases} g_0(t) & t < t_f \\ g_\text{fail} & \text{else}\end{cases}

    with the conductances :math:`g_0` of the noise model, and :math:`t_f` from a Weibull
    or a log-normal distribution, drawn once for each device of a chip (`failure_times`
    has the equations). A failed device has no read noise. `AtTemperature` around this
    part accelerates the failures by Arrhenius' law. Lifetimes depend on the technology
    and have no default.

    >>> from hwtrain import PCMLikeNoiseModel
    >>> model = RetentionFailures(
    ...     noise_model=PCMLikeNoiseModel(), law="weibull", scale_s=1e6, shape=1.0)
    >>> devices = model.program(jax.random.key(0), jnp.full(10_000, 25.0))
    >>> failed = model.mean_at(devices, 1e6) == 0
    >>> print(f"{failed.mean():.1f}")
    0.6

    References:
      Meeker and Escobar, Statistical methods for reliability data, Wiley 1998, chapters
      4 and 18, for both distributions and their acceleration by temperature.

      JEDEC JEP122, Failure mechanisms and models for semiconductor devices.
    """

    without_slope: ClassVar = dict.fromkeys(
        ("scale_s", "shape"), "it decides which devices have failed, step by step"
    )

    type: Literal["retention_failures"] = "retention_failures"
    law: Law
    """Distribution of the failure times."""
    scale_s: Positive
    """Time in seconds after which 63 % (Weibull) or half (log-normal) have failed."""
    shape: Positive
    """Weibull's shape, 1 for a constant rate; or the standard deviation of ln t."""
    g_fail: NonNegative = 0.0
    """Conductance of a failed device, in µS: 0 for one that became insulating."""

    def describe(self) -> str:
        """Returns the noise model, and when devices fail."""
        return (
            f"{self.noise_model.describe()}, {self.law} failures around "
            f"{self.scale_s:.3g} s"
        )

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices as the noise model programs them, and when they fail."""
        life = stored_normal(draw_key(key, "", "retention"), g_target.shape)
        return dataclasses.replace(super().program(key, g_target), life=life)

    def programmed_from(
        self, xi: Sequence[jax.Array], g_target: jax.Array
    ) -> Programmed:
        """Raises, because failures are not normal: fit their times by themselves."""
        raise InputError(
            "a fit to means and covariances cannot tell failures: fit the noise model "
            "without them to the devices that did not fail"
        )

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, without read noise, in µS."""
        g = self.noise_model.mean_at(programmed, t_s)
        return jnp.where(self._failed(programmed, t_s), self.g_fail, g)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> Any:
        """Returns the standard deviation of one read, in µS."""
        sigma = self.noise_model.read_sigma(programmed, t_s)
        return jnp.where(self._failed(programmed, t_s), 0.0, sigma)

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances in one read at a given time, in µS."""
        g = self.noise_model.at(key, programmed, t_s)
        return jnp.where(self._failed(programmed, t_s), self.g_fail, g)

    def _failed(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        if programmed.life is None:
            raise InputError(
                "these devices never fail; they were programmed by another noise "
                "model. Use that one, or call program again"
            )
        times = failure_times(
            programmed.life, self.law, scale_s=self.scale_s, shape=self.shape
        )
        return (jnp.asarray(t_s) >= times) & (jnp.asarray(t_s) > 0)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the noise model's, with failures of NumPy."""

        def changed(sample: Any) -> Any:
            def failing(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Any:
                written, drift, read = sample(rng, g, t_s)
                if self.law == "weibull":
                    times = self.scale_s * rng.weibull(self.shape, size=g.shape)
                else:
                    spread = self.shape
                    times = self.scale_s * rng.lognormal(0.0, spread, size=g.shape)
                failed = t_s >= times
                lost = np.where(failed, self.g_fail - written, drift)
                return written, lost, np.where(failed, 0, read)

            return failing

        self.noise_model.proof(ChangedProof(ctx, changed))
