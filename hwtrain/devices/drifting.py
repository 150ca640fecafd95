"""The base of noise models whose conductances drift by a power law."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._errors import InputError
from hwtrain._parts.fields import Deviation, Positive
from hwtrain.devices import _samples as samples
from hwtrain.devices._programmed import (
    Programmed,
    exponent,
    noisy,
    power_law,
    two_normals,
)
from hwtrain.devices.bases import NoiseModel


class DriftingNoiseModel(NoiseModel):
    r"""Programming noise, power-law drift and read noise.

    .. math::
        g_\text{prog} &= \max(g + \sigma(g)\, \xi_1, 0) \\
        \nu &= |\mu_\nu(g) + \sigma_\nu(g)\, \xi_2| \\
        g(t) &= g_\text{prog} \Big(\frac{t + t_0}{t_0}\Big)^{-\nu}

    and each read adds noise. Conductances are the state: nothing is normalised again
    after programming.
    """

    normals: ClassVar[int] = 2
    """How many standard normal numbers make a device."""
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
        """Whether a chip must differ after a given time: unless that is turned off."""
        return bool(self.drift_scale)

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

    def proof(self, ctx: Any) -> None:
        """Declares the effect that `assert_active` measures beside that it acts.

        By default, programming noise, drift and read noise as its methods say, unless
        `program`, `mean_at` or `at` is overridden.
        """
        own = type(self)
        if own.program is not DriftingNoiseModel.program:
            return
        if own.mean_at is not DriftingNoiseModel.mean_at or own.at is not NoiseModel.at:
            return

        def read(g: np.ndarray, now: np.ndarray, t_s: float) -> np.ndarray:
            target, there = jnp.asarray(g, jnp.float32), jnp.asarray(now, jnp.float32)
            nu = jnp.zeros_like(target)
            fresh = Programmed(g_target=target, g_prog=there, nu=nu)
            return np.asarray(self.read_sigma(fresh, t_s))

        def in_numpy(curve: Any) -> Any:
            return lambda g: np.asarray(curve(g))

        curves = (self.programming_sigma, self.drift_mean, self.drift_std)
        sigma, mean, std = map(in_numpy, curves)
        ctx.behaves(samples.power_law(self, sigma, mean, std, read))

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
          xi: the numbers of programming and of the exponents.
          g_target: target conductances, in µS.
        """
        return Programmed(
            g_target=g_target,
            g_prog=noisy(g_target, self.programming_sigma(g_target), xi[0]),
            nu=exponent(self.drift_mean(g_target), self.drift_std(g_target), xi[1]),
        )

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, without read noise, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        nu = programmed.nu
        if nu is None:
            raise InputError(
                "these devices have no drift exponents; another model programmed "
                "them. Use that one, or call program again"
            )
        return power_law(programmed.g_prog, nu, t_s=t_s, t0_s=self.t_0)
