"""Base classes of noise models, converters and drift compensations."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._arrays.random import draw_key, stored_normal
from hwtrain._parts.cost import Cost
from hwtrain._parts.part import Part
from hwtrain._parts.texts import NOISE, of_full_scale
from hwtrain.devices._conversion import DescribedConverter, Params
from hwtrain.devices._programmed import Programmed, noisy


class NoiseModel(Part):
    r"""Noise of programmed devices: the base class of your own models.

    .. math:: g_\text{prog} = \max(g + \sigma(g)\, \xi_1, 0), \qquad
        g_\text{read} = \max(g(t) + \sigma_\text{read}\, \xi_2, 0)

    A model has a field `g_max`, the conductance of the largest weight in µS, and at
    least `programming_sigma`. Conductances are the state: a device changes in time as a
    function of the conductance that programming reached.

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
    """

    draws: ClassVar = "chip"
    """It is drawn once for each chip."""
    normals: ClassVar[int] = 1
    """How many standard normal numbers make a device, in `programmed_from`."""
    to_fit: ClassVar[tuple[str, ...]] = ()
    """Fields that `hwtrain.devices.fit_noise_model` fits unless told which."""
    units: ClassVar[Mapping[str, str]] = {}
    """Units of these fields by name, for the table of a fit."""
    g_max: float
    """Conductance of the largest weight, in µS."""

    @abc.abstractmethod
    def programming_sigma(self, g: ArrayLike) -> Any:
        """Returns the standard deviation of the programming noise, in µS.

        Args:
          g: target conductance, in µS.
        """

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cells: its type and scales, and programming noise in µS."""
        scales = ("prog_noise_scale", "noise_scale", "drift_scale", "read_noise_scale")
        changed = "".join(
            f", {name} {getattr(self, name):g}"
            for name in scales
            if getattr(self, name, 1.0) != 1.0
        )
        factors, g = np.array(ctx.weight.hardware.converter.full_devices).T
        # Its devices are programmed one by one: their noise adds in squares.
        each = factors * [self.programming_sigma(x) for x in g]
        sigma = float(np.linalg.norm(each))
        noise = f"programming {of_full_scale(sigma, ctx.weight.hardware.converter)}"
        return {ctx.column: f"{self.describe()}{changed}", NOISE: noise}

    def proof(self, ctx: Any) -> None:
        """Declares the effect that `assert_active` measures beside that it acts.

        By default, programming with its `programming_sigma`, unless `program` is
        overridden. To have more measured, state what NumPy draws:
        `ctx.behaves(sample)`.
        """
        if type(self).program is not NoiseModel.program:
            return

        def sample(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Any:
            sigma = np.asarray(self.programming_sigma(g))
            written = np.maximum(g + sigma * rng.normal(size=g.shape), 0)
            return written, np.zeros_like(g), np.zeros_like(g)

        ctx.behaves(sample)

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices after programming.

        Args:
          key: a JAX key.
          g_target: target conductances of any shape, in µS.
        """
        xi = stored_normal(draw_key(key, "", "programming"), g_target.shape)
        return self.programmed_from([xi], g_target)

    def programmed_from(
        self, xi: Sequence[jax.Array], g_target: jax.Array
    ) -> Programmed:
        """Returns devices after programming, given what is random about them.

        A model that overrides `program` overrides it too, to be fitted to measurements.

        Args:
          xi: `normals` arrays of standard normal numbers, one for each device.
          g_target: target conductances, in µS.
        """
        g_prog = noisy(g_target, self.programming_sigma(g_target), xi[0])
        return Programmed(g_target=g_target, g_prog=g_prog)

    def with_fixed_units(self) -> Any:
        """Returns the same model with coefficients in µS that hold at its own `g_max`.

        A fit starts from it, so that nothing else scales what it prints.
        """
        return self

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, without read noise, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        return programmed.g_prog

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> Any:
        """Returns the standard deviation of one read, in µS; see `mean_at`."""
        return 0.0

    def adjust(
        self, key: jax.Array, device: Programmed, change: jax.Array
    ) -> Programmed:
        r"""Returns devices after an attempt to change their conductances.

        .. math:: g_\text{prog} \to \max(g_\text{prog} + \Delta, 0)

        by default: exactly. `GradientProgrammedNoiseModel` corrects devices by it.

        Args:
          key: a JAX key, a new one for each attempt.
          device: the devices.
          change: the wanted changes, in µS.
        """
        g_prog = jnp.maximum(device.g_prog + change, 0)
        return dataclasses.replace(device, g_prog=g_prog)

    @property
    def corrects(self) -> bool:
        """Whether `correct` does anything: whether a class has its own."""
        return type(self).correct is not NoiseModel.correct

    def correct(
        self, key: jax.Array, devices: tuple[Programmed, ...], tiles: Any
    ) -> tuple[Programmed, ...]:
        """Returns the devices of a weight after their tiles have been corrected.

        By default, they are not.

        Args:
          key: a JAX key.
          devices: the devices of a weight, as `program` left them, in the converter's
            order.
          tiles: what can be measured: `tiles.changes(key, devices, examples=...)`
            drives the tiles by random inputs and returns, in µS and for each device,
            the changes that would give the outputs of the nominal weights.
        """
        return devices

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must differ after a given time; `assert_active` checks it."""
        g = jnp.linspace(0.1, 1.0, 16) * self.g_max
        device = self.program(jax.random.key(0), g)
        then, now = self.mean_at(device, t_s), self.mean_at(device, 0.0)
        return bool(jnp.any(then != now))

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances in one read at a given time, in µS.

        Args:
          key: a JAX key, a new one for each read.
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        mean, sigma = self.mean_at(programmed, t_s), self.read_sigma(programmed, t_s)
        return noisy(mean, sigma, stored_normal(key, mean.shape))


class ConductanceConverter(DescribedConverter, Part):
    """Converts weights to conductances: the base class of your own converters.

    A converter has the fields `g_max` and `g_min` in µS. The last axis of all arrays is
    the columns of a crossbar; an array is scaled as one tensor.
    """

    g_max: float
    """Conductance of the largest weight, in µS."""
    g_min: float = 0.0
    """The smallest conductance, in µS."""

    per_column: ClassVar[bool] = False
    """Whether a conversion has a number for each column instead of each tile."""
    devices: ClassVar[tuple[str, ...]] = ("g",)
    """Names of the conductances of a weight, in order."""
    linear_pair: ClassVar[bool] = False
    """Whether a weight is two devices, at g_min but for the one of its sign, which has
    (g_max - g_min) w / max|w| more: what the stages of wires solve."""
    scales: ClassVar[tuple[str, ...]] = ("scale_ratio",)
    """Names of the parameters of a conversion, which are stored with the conductances:
    one number per tile, or one per column."""
    units: ClassVar[Mapping[str, str]] = {}
    """Units of these parameters, by name."""
    rounds: ClassVar[bool] = False
    """Whether it holds only some weights: those of a chip are then the ones that come
    back from `convert_to_conductances`."""

    def proof(self, ctx: Any) -> None:
        """Declares the effect that `assert_active` measures: weights come back.

        To have the conductances measured too, state what NumPy gives for the weights of
        a tile: `ctx.holds(conductances)`.
        """

    @property
    def full_scale(self) -> float:
        """The largest weight in conductance, in µS, its factors included."""
        return self.g_max - self.g_min

    @property
    def full_devices(self) -> tuple[tuple[float, float], ...]:
        """Factor on, and conductance in µS of, each device that it turns on."""
        return ((1.0, self.g_max),)

    def cost(self, ctx: Any) -> Cost:
        """Returns the cost of reading the devices, and their area."""
        counts, constants = ctx.counts, ctx.constants
        reads = counts.weight_reads * len(self.devices)
        return Cost(
            energy_fj=reads * constants.cell_energy_fj,
            area_um2=counts.places * len(self.devices) * constants.cell_area_um2,
        )

    @abc.abstractmethod
    def convert_to_conductances(
        self, weights: jax.Array
    ) -> tuple[list[jax.Array], Params]:
        """Returns the conductances in µS, one array per device, and the parameters."""

    @abc.abstractmethod
    def convert_by_scale(self, weights: jax.Array, params: Params) -> list[jax.Array]:
        """Converts weights by the parameters of other weights.

        The weights may exceed the others; no conductance is negative.
        """

    @abc.abstractmethod
    def convert_back_to_weights(
        self, conductances: Sequence[jax.Array], params: Params
    ) -> jax.Array:
        """Converts conductances back to weights."""


class DriftCompensation(Part):
    """Undoes the mean drift of a tile: the base class of your own compensations."""

    readout: Literal["periphery", "exact"] = "periphery"
    """How a tile's outputs are measured: `"periphery"`, through its own DAC, ADC and
    noise, as on a chip, with rows driven at the DAC's full scale of 1; or `"exact"`."""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cell, which follows that of the noise model."""
        return {ctx.column: f"{self.describe()} drift compensation"}

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: that it corrects halved outputs."""
        ctx.undoes_halves()

    @abc.abstractmethod
    def baseline(self, y: jax.Array, w: jax.Array) -> jax.Array:
        """Returns the reference to store after a tile has been programmed.

        Args:
          y: `[..., rows, columns]`, the tile's outputs just after programming, one row
            driven by 1 at a time.
          w: `[..., rows, columns]`, the target weights.

        Returns:
          `[...]`, or `[..., columns]` for a factor per column.
        """

    @abc.abstractmethod
    def factor(self, baseline: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the factor on the tile's outputs, shaped like `baseline`.

        Args:
          baseline: the reference that `baseline` returned.
          y: the tile's current outputs, as in `baseline`.
        """
