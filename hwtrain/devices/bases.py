"""What a noise model, a converter and a drift compensation are."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._arrays.random import draw_key, normal
from hwtrain._parts.part import Part
from hwtrain._parts.texts import NOISE
from hwtrain.devices._conversion import DescribedConverter, Params
from hwtrain.devices._programmed import Programmed, noisy


class NoiseModel(Part):
    r"""Noise of programmed devices: the base of models of one's own.

    .. math:: g_\text{prog} = \max(g + \sigma(g)\, \xi_1, 0), \qquad
        g_\text{read} = \max(g(t) + \sigma_\text{read}\, \xi_2, 0)

    A model has a field `g_max`, the conductance of the largest weight in µS, and at
    least `programming_sigma`. Conductances are the state: what a device does in time is
    a function of the conductance that programming reached.

    >>> import hwtrain
    >>> import jax.numpy as jnp
    >>> @hwtrain.register("noise_model", "flash_like")
    ... class FlashLike(NoiseModel):
    ...     g_max: float = 20.0
    ...     share: float = 0.02
    ...     def programming_sigma(self, g):
    ...         return self.share * g
    ...     def mean_at(self, programmed, t_s):
    ...         return programmed.g_prog * jnp.exp(-1e-9 * t_s)
    >>> devices = FlashLike().program(jax.random.key(0), jnp.full((4,), 10.0))
    >>> print(FlashLike().mean_at(devices, 0.0).shape)
    (4,)
    >>> hwtrain._parts.registry.forget("noise_model", "flash_like")
    """

    draws: ClassVar = "chip"
    g_max: float
    """Conductance of the largest weight, in µS."""

    @abc.abstractmethod
    def programming_sigma(self, g: ArrayLike) -> Any:
        """Returns the standard deviation of the programming noise, in µS.

        Args:
          g: target conductance, in µS.
        """

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cells: itself with changed scales, and programming in µS."""
        scales = ("prog_noise_scale", "noise_scale", "drift_scale", "read_noise_scale")
        changed = "".join(
            f", {name} {getattr(self, name):g}"
            for name in scales
            if getattr(self, name, 1.0) != 1.0
        )
        sigma = float(np.asarray(self.programming_sigma(self.g_max)))
        noise = f"programming {sigma:.3g} µS"
        return {ctx.column: f"{self.describe()}{changed}", NOISE: noise}

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices after programming.

        Args:
          key: a JAX key.
          g_target: target conductances of any shape, in µS.
        """
        xi = normal(draw_key(key, "", "programming"), g_target.shape)
        g_prog = noisy(g_target, self.programming_sigma(g_target), xi)
        return Programmed(g_target=g_target, g_prog=g_prog)

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a time, without read noise, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        return programmed.g_prog

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> Any:
        """Returns the standard deviation of one read, in µS; arguments as above."""
        return 0.0

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must be another after a time, which `assert_active` checks."""
        g = jnp.linspace(0.1, 1.0, 16) * self.g_max
        device = self.program(jax.random.key(0), g)
        then, now = self.mean_at(device, t_s), self.mean_at(device, 0.0)
        return bool(jnp.any(then != now))

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances as one read at a time sees them, in µS.

        Args:
          key: a JAX key, another one for each read.
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        mean, sigma = self.mean_at(programmed, t_s), self.read_sigma(programmed, t_s)
        return noisy(mean, sigma, normal(key, mean.shape))


class ConductanceConverter(DescribedConverter, Part):
    """What makes conductances of weights: the base of converters of one's own.

    A converter has the fields `g_max` and `g_min` in µS. All arrays have the columns of
    a crossbar last, and are one tensor to the scale.
    """

    g_max: float
    """Conductance of the largest weight, in µS."""
    g_min: float = 0.0
    """The smallest conductance, in µS."""

    per_column: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ("g",)
    """Names of the conductances of a weight, in order."""
    scales: ClassVar[tuple[str, ...]] = ("scale_ratio",)
    """Names of the parameters of a conversion, which are stored beside them: for each
    tile a number, or one for each column."""
    units: ClassVar[Mapping[str, str]] = {}
    """Their units, by name."""

    @abc.abstractmethod
    def convert_to_conductances(
        self, weights: jax.Array
    ) -> tuple[list[jax.Array], Params]:
        """Returns the conductances in µS, one array for each device, and the scales."""

    @abc.abstractmethod
    def convert_by_scale(self, weights: jax.Array, params: Params) -> list[jax.Array]:
        """Returns the conductances of weights by the scales of others.

        The weights may exceed the others; no conductance is negative.
        """

    @abc.abstractmethod
    def convert_back_to_weights(
        self, conductances: Sequence[jax.Array], params: Params
    ) -> jax.Array:
        """Returns the weights of conductances."""


class DriftCompensation(Part):
    """What undoes the mean drift of a tile: the base of compensations of one's own."""

    readout: Literal["periphery", "exact"] = "periphery"
    """How a tile's outputs are measured: through its own DAC, ADC and noise, as a chip
    has to; or `"exact"`."""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cell, behind that of the noise model."""
        return {ctx.column: f"{self.describe()} drift compensation"}

    def proof(self, ctx: Any) -> None:
        """Says what is measured of it: that it acts on outputs that have halved."""
        ctx.undoes_halves()

    @abc.abstractmethod
    def baseline(self, y: jax.Array, w: jax.Array) -> jax.Array:
        """Returns what is stored when a tile has been programmed.

        Args:
          y: `[..., rows, columns]`, its outputs just after programming, one row driven
            by 1 at a time.
          w: `[..., rows, columns]`, the target weights.

        Returns:
          `[...]`, or `[..., columns]` for a factor of each column.
        """

    @abc.abstractmethod
    def factor(self, baseline: jax.Array, y: jax.Array) -> jax.Array:
        """Returns what the tile's outputs are multiplied by, shaped as `baseline`.

        Args:
          baseline: what `baseline` returned.
          y: its outputs now, as above.
        """
