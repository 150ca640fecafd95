"""Devices that are written by pulses, each of which is verified by a read."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import Field, model_validator

from hwtrain._arrays.random import draw_key, fold_in, stored_normal
from hwtrain._errors import InputError
from hwtrain._parts.cost import Cost
from hwtrain._parts.fields import Deviation, Exponent, NonNegative, Positive
from hwtrain._parts.registry import register
from hwtrain.devices._around import AroundNoiseModel, ChangedProof
from hwtrain.devices._programmed import Programmed

States = Annotated[int, Field(ge=2, le=2**16)]
Pulses = Annotated[int, Field(ge=1, le=10_000)]

_SAMPLE = 512
"""Devices that are simulated for the spread at one target."""

_TARGETS = 64
"""Targets between the ends of the range, for the mean number of pulses."""


@register("noise_model", "write_verify")
class WriteVerifyNoiseModel(AroundNoiseModel):
    r"""Devices that pulses set and reset until a read finds them at their targets.

    A pulse moves a device between its bounds by a step that depends on where it is, on
    its direction, on the device, and on chance:

    .. math::
        g &\to g + \Delta_+ (1 - x)^{\gamma_+} (1 + \sigma_d\, \eta_+)
            (1 + \sigma_c\, \xi) \quad \text{(set)} \\
        g &\to g - \Delta_-\, x^{\gamma_-} (1 + \sigma_d\, \eta_-)
            (1 + \sigma_c\, \xi) \quad \text{(reset)}, \qquad
        x = \frac{g - g_\text{low}}{g_\text{high} - g_\text{low}}

    kept within the bounds, with :math:`\xi` drawn for each pulse, and :math:`\eta_\pm`
    for each device of a chip (the factor :math:`1 + \sigma_d \eta` is at least 0.01).
    An exponent of 0 makes all steps alike, 1 makes the bounds soft. Devices start at
    g_low. Before each pulse, a read with noise compares a device with its target: it
    is left alone from the first time that they differ by no more than the tolerance;
    otherwise the next pulse sets or resets it. After `most_pulses` pulses it stays
    where it is.

    With `states`, targets are first moved to the nearest of so many conductances,
    equally spaced from the smallest to the largest one, `g_low` and `g_max`.

    What devices do afterwards (drift, relaxation, noise of reads) is said by
    `noise_model`, which takes the written conductances for its targets and must have
    no programming noise of its own.

    >>> import hwtrain
    >>> model = WriteVerifyNoiseModel(
    ...     g_high=30.0, set_step_us=2.0, reset_step_us=3.0, cycle_std=0.3,
    ...     tolerance_us=0.5, noise_model=hwtrain.HermesNoiseModel(
    ...         g_max=20.0, prog_noise_scale=0.0))
    >>> device = model.program(jax.random.key(0), jnp.full(1000, 10.0))
    >>> print(f"{device.pulses.mean():.1f} pulses, {device.g_prog.std():.2f} µS")
    6.6 pulses, 0.28 µS

    Gradients pass straight through to the targets.

    Raises:
      ValueError: for a range that pulses cannot reach, or if `noise_model` has
        programming noise of its own.

    References:
      Fusi and Abbott, Limits on the memory storage capacity of bounded synapses, Nature
      Neuroscience 2007: steps that depend on the state.
      Papandreou et al., Programming algorithms for multilevel phase-change memory,
      ISCAS 2011: programming that is verified.
    """

    stays_static: ClassVar[Mapping[str, str]] = {
        name: "is what writing costs, and changes no conductance"
        for name in ("pulse_energy_fj", "pulse_time_ns")
        + ("verify_energy_fj", "verify_time_ns")
    }
    without_slope: ClassVar[Mapping[str, str]] = {
        "tolerance_us": "it decides when writing stops, step by step",
        "verify_sigma_us": "it decides when writing stops, step by step",
    }

    type: Literal["write_verify"] = "write_verify"
    g_low: NonNegative = 0.0
    """The smallest conductance that a reset can reach, in µS."""
    g_high: Positive = 30.0
    """The largest conductance that a set can reach, in µS."""
    set_step_us: Positive = 1.0
    """The step of the first set pulse, at `g_low`, in µS."""
    reset_step_us: Positive = 1.0
    """The step of a reset pulse at `g_high`, in µS."""
    set_exponent: Exponent = 1.0
    """How steeply set steps shrink towards `g_high`. Zero: not at all."""
    reset_exponent: Exponent = 1.0
    """How steeply reset steps shrink towards `g_low`. Zero: not at all."""
    cycle_std: Deviation = 0.0
    """Relative standard deviation of a step from pulse to pulse. Zero: none."""
    device_std: Deviation = 0.0
    """Relative standard deviation of the steps over devices. Zero: none."""
    tolerance_us: Positive = 0.5
    """Largest difference from the target at which a device is left alone, in µS."""
    verify_sigma_us: NonNegative = 0.0
    """Standard deviation of the reads that verify, in µS. Zero: exact reads."""
    most_pulses: Pulses = 50
    """Number of pulses after which a device is left alone."""
    states: States | None = None
    """Number of conductances that are targets. `None`: all between the ends."""
    pulse_energy_fj: NonNegative = 0.0
    """Energy of a pulse, in fJ."""
    pulse_time_ns: NonNegative = 0.0
    """Time of a pulse of one row or cell, in ns."""
    verify_energy_fj: NonNegative = 0.0
    """Energy of a read that verifies, in fJ."""
    verify_time_ns: NonNegative = 0.0
    """Time of a read that verifies, in ns."""

    def check_hardware(self, hardware: Any) -> None:
        """Raises if pulses cannot reach the smallest conductance of the converter."""
        super().check_hardware(hardware)
        low = hardware.converter.g_min
        if low + self.tolerance_us < self.g_low:
            raise InputError(
                f"the converter {hardware.converter.type!r} asks for conductances from "
                f"g_min={low:g} µS, and pulses of the noise model {self.type!r} reach "
                f"only g_low={self.g_low:g} µS, beyond tolerance_us="
                f"{self.tolerance_us:g}: write g_min={self.g_low:g} in the converter, "
                f"or g_low={low:g}"
            )

    def describe(self) -> str:
        """Returns the kind, the tolerance, the number of states and what follows."""
        states = "" if self.states is None else f", {self.states} states"
        return (
            f"{self.type} within {self.tolerance_us:g} µS, at most "
            f"{self.most_pulses} pulses{states}, then {self.noise_model.describe()}"
        )

    def step(self, g: jax.Array, *, up: bool) -> jax.Array:
        """Returns the mean change by one pulse, in µS; override it for own devices.

        Args:
          g: conductances between the bounds, in µS.
          up: whether the pulse sets.
        """
        x = jnp.clip((g - self.g_low) / (self.g_high - self.g_low), 0, 1)
        if up:
            return self.set_step_us * _power(1 - x, self.set_exponent)
        return -self.reset_step_us * _power(x, self.reset_exponent)

    def target(self, g: jax.Array) -> jax.Array:
        """Returns the nearest conductance that is a target, in µS.

        Args:
          g: conductances, in µS.
        """
        if self.states is None:
            return g
        step = (self.g_max - self.g_low) / (self.states - 1)
        number = jnp.clip(jnp.round((g - self.g_low) / step), 0, self.states - 1)
        return self.g_low + step * number

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices after writing, with the number of `pulses` of each.

        Args:
          key: a JAX key.
          g_target: target conductances of any shape, in µS.
        """
        own = self._factors(key, g_target.shape)
        written, pulses = self._written(key, self.target(g_target), own)
        device = self.noise_model.program(draw_key(key, "", "after"), written)
        device = dataclasses.replace(device, g_target=g_target, pulses=pulses)
        if not self.device_std:
            return device
        return dataclasses.replace(device, set_factor=own[0], reset_factor=own[1])

    def adjust(
        self, key: jax.Array, device: Programmed, change: jax.Array
    ) -> Programmed:
        r"""Returns devices after the pulses that would change them as wanted.

        .. math:: n = \min(\mathrm{round}(|\Delta| / |\Delta_\pm(g)|),\ n_\text{most})

        pulses in the direction of the change, as many as the mean step of where devices
        are asks for. They follow one after the other, each with the step of where the
        one before it left the device, with the device's own factor and with noise, kept
        within the bounds; nothing is verified. The number of `pulses` grows by n.

        Args:
          key: a JAX key.
          device: the devices, as `program` returned them.
          change: the wanted changes, in µS.

        Raises:
          ValueError: with `device_std`, for devices of another model.
        """
        own: Any = (1.0, 1.0)
        if self.device_std:
            own = device.set_factor, device.reset_factor
            if own[0] is None or own[1] is None:
                raise InputError(
                    "the steps of these devices are not known, because they were "
                    f"programmed by another noise model than this {self.type!r} with "
                    f"device_std={self.device_std:g}, or loaded; call program again"
                )
        up, g = change > 0, device.g_prog
        step = jnp.where(up, self.step(g, up=True), self.step(g, up=False))
        pulses = jnp.round(change / jnp.where(step == 0, jnp.inf, step))
        pulses = jnp.minimum(jax.lax.stop_gradient(pulses), self.most_pulses)

        def pulse(number: Any, g: jax.Array) -> jax.Array:
            moved = self._after_pulse(key, number, g, up, own)
            return jnp.where(number < pulses, moved, g)

        def next_pulse(number: Any, g: jax.Array) -> jax.Array:
            left = jnp.any(number < pulses)
            return jax.lax.cond(left, pulse, lambda _, g: g, number, g)

        g = jax.lax.fori_loop(0, self.most_pulses, next_pulse, g)
        written = jnp.zeros_like(g) if device.pulses is None else device.pulses
        return dataclasses.replace(device, g_prog=g, pulses=written + pulses)

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the root mean square error of writing, of 512 devices, in µS.

        Args:
          g: target conductance, in µS.
        """
        g = jnp.asarray(g, jnp.float32)
        targets = jnp.broadcast_to(g, (_SAMPLE, *g.shape))
        key = jax.random.key(0)
        own = self._factors(key, targets.shape)
        written, _ = self._written(key, self.target(targets), own)
        return jnp.sqrt(jnp.mean((written - targets) ** 2, axis=0))

    def programmed_from(
        self, xi: Sequence[jax.Array], g_target: jax.Array
    ) -> Programmed:
        """Raises, because writing draws a number for each pulse."""
        raise InputError(
            "writing in a loop draws a number for each pulse, which no fit to means "
            "and covariances can tell: fit the noise model within to devices after "
            "writing, and set the pulses from measurements of single ones"
        )

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, without read noise, in µS.

        Args:
          programmed: the devices.
          t_s: time since programming, in seconds. May be traced.
        """
        return self.noise_model.mean_at(_as_targets(programmed), t_s)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> Any:
        """Returns the noise of one read in µS, at a time in seconds."""
        return self.noise_model.read_sigma(_as_targets(programmed), t_s)

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances in one read at a given time, in µS."""
        return self.noise_model.at(key, _as_targets(programmed), t_s)

    def cost(self, ctx: Any) -> Cost:
        """Returns what writing takes, of targets that are spread evenly."""
        pulses = _mean_pulses(self)
        devices = math.prod(ctx.weight.shape)
        devices *= len(ctx.weight.hardware.converter.devices)
        reads = pulses + 1
        energy = pulses * self.pulse_energy_fj + reads * self.verify_energy_fj
        time = pulses * self.pulse_time_ns + reads * self.verify_time_ns
        note = f"writing it takes {pulses:.1f} pulses per device, of even targets"
        return super().cost(ctx) + Cost(
            writing_pulses=devices * pulses,
            writing_energy_fj=devices * energy,
            writing_time_ns=devices * time,
            notes=(note,),
        )

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy writes them.

        A subclass with a `step` or `target` of its own declares its own.
        """
        own, ours = type(self), WriteVerifyNoiseModel
        if own.step is not ours.step or own.target is not ours.target:
            return

        def changed(sample: Any) -> Any:
            def written(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Any:
                return sample(rng, _written_in_numpy(self, rng, g), t_s)

            return written

        self.noise_model.proof(ChangedProof(ctx, changed))

    def _factors(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """Returns the factors of devices on their steps by set and by reset pulses."""
        if not self.device_std:
            return 1.0, 1.0
        xi = (
            stored_normal(draw_key(key, "", name), shape) for name in ("set", "reset")
        )
        return tuple(jnp.maximum(1 + self.device_std * each, _LEAST) for each in xi)

    def _after_pulse(
        self, key: jax.Array, number: Any, g: jax.Array, up: jax.Array, own: Any
    ) -> jax.Array:
        """Returns conductances after one pulse, in µS.

        Args:
          key: key of all pulses.
          number: number of this one.
          g: conductances before it.
          up: whether it sets.
          own: factors of the devices on steps up and down.
        """
        steps = self.step(g, up=True) * own[0], self.step(g, up=False) * own[1]
        change = jnp.where(up, *steps)
        if self.cycle_std:
            noise = stored_normal(fold_in(draw_key(key, "", "cycle"), number), g.shape)
            change = change * (1 + self.cycle_std * noise)
        return jnp.clip(g + change, self.g_low, self.g_high)

    def _written(
        self, key: jax.Array, target: jax.Array, own: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Returns conductances after writing in µS, and the pulses that each took."""

        def pulse(number: Any, state: Any) -> Any:
            g, pulses, active = state
            seen = g
            if self.verify_sigma_us:
                now = fold_in(draw_key(key, "", "verify"), number)
                seen = g + self.verify_sigma_us * stored_normal(now, target.shape)
            active = active & (jnp.abs(target - seen) > self.tolerance_us)
            moved = self._after_pulse(key, number, g, seen < target, own)
            return jnp.where(active, moved, g), pulses + active, active

        start = (
            jnp.full_like(target, self.g_low),
            jnp.zeros_like(target),
            jnp.ones(target.shape, bool),
        )

        # A while loop, which would end by itself, has no reverse-mode derivative.
        def next_pulse(number: Any, state: Any) -> Any:
            return jax.lax.cond(
                jnp.any(state[2]), pulse, lambda _, state: state, number, state
            )

        g, pulses, _ = jax.lax.fori_loop(0, self.most_pulses, next_pulse, start)
        # Where pulses end has no slope to the target, but follows it.
        return g + (target - jax.lax.stop_gradient(target)), pulses

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.g_low < self.g_max <= self.g_high:
            raise InputError(
                "expected g_low < g_max <= g_high, because pulses move devices "
                f"between g_low={self.g_low:g} and g_high={self.g_high:g} µS only; "
                f"got g_max={self.g_max:g}"
            )
        if self.noise_model.corrects:
            raise InputError(
                f"noise_model={self.noise_model.type!r} corrects devices without "
                "pulses: put write_verify inside gradient_programmed"
            )
        # A configuration may be made anew while a program is traced.
        with jax.ensure_compile_time_eval():
            g = jnp.linspace(self.g_low, self.g_max, _TARGETS + 1)
            sigma = np.asarray(self.noise_model.programming_sigma(g))
        if np.any(sigma > 0):
            raise InputError(
                f"noise_model={self.noise_model.type!r} has programming noise, which "
                "pulses replace. Turn it off: prog_noise_scale=0.0"
            )
        return self


_LEAST = 0.01
"""The smallest factor of a device on its steps: none moves backwards."""


def _power(x: jax.Array, exponent: Any) -> jax.Array:
    """Returns a power whose derivatives are finite at zero."""
    if not exponent:
        return jnp.ones_like(x)
    return jnp.where(x > 0, jnp.where(x > 0, x, 1.0) ** exponent, 0.0)


def _as_targets(programmed: Programmed) -> Programmed:
    """Returns devices whose targets are what they were written to."""
    return dataclasses.replace(programmed, g_target=programmed.g_prog)


@functools.lru_cache(maxsize=64)
def _mean_pulses(model: WriteVerifyNoiseModel) -> float:
    """Returns the mean number of pulses, of targets all over the range."""
    g = jnp.linspace(model.g_low, model.g_max, _TARGETS)
    targets = jnp.broadcast_to(model.target(g), (_SAMPLE, _TARGETS))
    key = jax.random.key(0)
    own = model._factors(key, targets.shape)
    return float(model._written(key, targets, own)[1].mean())


def _written_in_numpy(
    model: WriteVerifyNoiseModel, rng: np.random.Generator, g: np.ndarray
) -> np.ndarray:
    """Returns what NumPy writes, with none of the functions that chips use."""
    low, high = model.g_low, model.g_high
    target = g.ravel()
    if model.states is not None:
        levels = np.linspace(low, model.g_max, model.states)
        target = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, target)]
    own = np.maximum(1 + model.device_std * rng.normal(size=(2, g.size)), _LEAST)
    now, active = np.full(g.size, low), np.arange(g.size)
    for _ in range(model.most_pulses):
        seen = now[active] + model.verify_sigma_us * rng.normal(size=active.size)
        wrong = np.abs(target[active] - seen) > model.tolerance_us
        active, seen = active[wrong], seen[wrong]
        if not active.size:
            break
        x = (now[active] - low) / (high - low)
        up = model.set_step_us * (1 - x) ** model.set_exponent * own[0, active]
        down = -model.reset_step_us * x**model.reset_exponent * own[1, active]
        change = np.where(seen < target[active], up, down)
        change *= 1 + model.cycle_std * rng.normal(size=active.size)
        now[active] = np.clip(now[active] + change, low, high)
    return now.reshape(g.shape)
