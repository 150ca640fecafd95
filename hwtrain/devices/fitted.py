"""A noise model of the user's own devices, fitted to measurements."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._errors import InputError
from hwtrain._parts.fields import Positive
from hwtrain._parts.registry import register
from hwtrain.devices import _samples as samples
from hwtrain.devices._curves import Points, SignedPoints, check_curve, interpolate
from hwtrain.devices._fit import fit_curves
from hwtrain.devices._programmed import Programmed, noisy, two_normals
from hwtrain.devices.drifting import DriftingNoiseModel
from hwtrain.devices.measurements import Measurements


@register("noise_model", "measured")
class MeasuredNoiseModel(DriftingNoiseModel):
    r"""Measured devices: curves through points, linear between them.

    .. math::
        g_\text{prog} &= \max(g + \sigma(g)\, \xi_1, 0), \qquad
        \nu = \mu_\nu(g) + \sigma_\nu(g)\, \xi_2 \\
        \sigma_\text{read} &= q(g)\, g(t)

    The curves are constant outside of the points. `fit_measurements` fits a model to
    measurements.

    >>> model = MeasuredNoiseModel(
    ...     g_max=20.0, g_lst=(0.0, 20.0), sigma_lst=(0.5, 1.0), nu_mean_lst=(0.1, 0.0),
    ...     nu_std_lst=(0.0, 0.0), read_level_lst=(0.02, 0.01))
    >>> print(model.programming_sigma(10.0), model.drift_mean(10.0))
    0.75 0.05

    References:
      Nandakumar et al., Phase-change memory models for deep learning training and
      inference, ICECS 2019, for the form of the model.
    """

    stays_static: ClassVar = {
        "t_read": "is not used, because its read noise was measured"
    }

    type: Literal["measured"] = "measured"
    units: ClassVar = {"sigma_lst": "µS"}
    to_fit: ClassVar = ("sigma_lst", "nu_mean_lst", "nu_std_lst", "read_level_lst")
    g_max: Positive
    """Conductance of the largest weight, in µS."""
    g_lst: Points
    """Target conductances of the points, increasing, in µS."""
    sigma_lst: Points
    """Programming noise at each point, in µS."""
    nu_mean_lst: SignedPoints
    """Mean drift exponent at each point; negative if the conductance grows."""
    nu_std_lst: Points
    """Standard deviation of the drift exponent at each point."""
    read_level_lst: Points
    """Read noise relative to the conductance, at each point."""

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        for name in ("sigma_lst", "nu_mean_lst", "nu_std_lst", "read_level_lst"):
            check_curve(name, self.g_lst, getattr(self, name))
        return self

    def programming_sigma(self, g: ArrayLike) -> jax.Array:
        """Returns the programming noise at a target conductance, both in µS."""
        return self.prog_noise_scale * interpolate(g, self.g_lst, self.sigma_lst)

    def drift_mean(self, g: ArrayLike) -> jax.Array:
        """Returns the mean drift exponent at a target conductance in µS."""
        return self.drift_scale * interpolate(g, self.g_lst, self.nu_mean_lst)

    def drift_std(self, g: ArrayLike) -> jax.Array:
        """Returns the spread of the drift exponent at a target conductance in µS."""
        return self.drift_scale * interpolate(g, self.g_lst, self.nu_std_lst)

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices after programming; their exponents may be negative.

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
            nu=self.drift_mean(g_target) + self.drift_std(g_target) * xi[1],
        )

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the noise of one read in µS, at a time in seconds."""
        level = interpolate(programmed.g_target, self.g_lst, self.read_level_lst)
        return self.read_noise_scale * level * self.mean_at(programmed, t_s)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: devices as NumPy draws them."""
        ctx.behaves(samples.as_measured(self))


def fit_measurements(
    measurements: Measurements, *, t_0: float = 20.0
) -> MeasuredNoiseModel:
    """Fits a noise model to measurements; see `DeviceCurves`.

    The largest target becomes `g_max`.

    Args:
      measurements: measurements from `read_measurements`.
      t_0: time of the reference read after programming, in seconds.

    Raises:
      ValueError: if there are fewer than two targets, a device was read at fewer than
        three times, or a target has fewer than two devices.
    """
    if len(np.unique(measurements.g_target_us)) < 2:
        raise InputError(
            "a curve needs two target conductances or more; all measurements have the "
            f"target {measurements.g_target_us[0]:g} µS"
        )
    curves = fit_curves(
        measurements.g_target_us,
        measurements.t_s,
        measurements.g_us,
        measurements.repeat,
        t0_s=t_0,
    )
    return MeasuredNoiseModel(
        g_max=float(curves.g_target[-1]),
        t_0=t_0,
        g_lst=tuple(curves.g_target.tolist()),
        sigma_lst=tuple(curves.sigma.tolist()),
        nu_mean_lst=tuple(curves.nu_mean.tolist()),
        nu_std_lst=tuple(curves.nu_std.tolist()),
        read_level_lst=tuple(curves.read_level.tolist()),
    )


def plot_fit(model: MeasuredNoiseModel, measurements: Measurements) -> Any:
    """Returns a figure of measured conductances and the fitted model.

    Points are reads; lines are the model's mean, and bands are two standard deviations
    of programming, drift and read noise together.

    Args:
      model: model from `fit_measurements`.
      measurements: the measurements to which it was fitted.

    Returns:
      A `matplotlib.figure.Figure`; `figure.savefig("fit.png")` writes it.

    Raises:
      ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plotting needs matplotlib: pip install 'hwtrain[recipes]'"
        ) from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    first = measurements.t_s[measurements.t_s > 0].min(initial=1.0)
    times = np.geomspace(first, max(measurements.t_s.max(), 2 * first), 100)
    for index, target in enumerate(model.g_lst):
        at = measurements.g_target_us == target
        colour = f"C{index % 10}"
        # A logarithmic axis cannot show a read at 0 s.
        shown = np.maximum(measurements.t_s[at], first)
        axes.plot(shown, measurements.g_us[at], ".", color=colour, markersize=4)
        mean, spread = _spread(model, target, times)
        axes.plot(times, mean, color=colour, label=f"{target:g} µS")
        axes.fill_between(
            times, mean - 2 * spread, mean + 2 * spread, color=colour, alpha=0.2
        )
    axes.set(
        xscale="log", xlabel="time since programming (s)", ylabel="conductance (µS)"
    )
    axes.legend(title="target")
    return figure


def _spread(
    model: MeasuredNoiseModel, target: float, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over devices, and the standard deviation to first order."""
    sigma, nu, nu_std = (
        float(curve(target))
        for curve in (model.programming_sigma, model.drift_mean, model.drift_std)
    )
    exact = Programmed(
        g_target=jnp.full(len(times), target),
        g_prog=jnp.full(len(times), target),
        nu=jnp.full(len(times), nu),
    )
    mean = np.asarray(model.mean_at(exact, times))
    read = np.asarray(model.read_sigma(exact, times))
    decay = mean / max(target, 1e-30)
    drifted = mean * np.log((times + model.t_0) / model.t_0) * nu_std
    return mean, np.sqrt((sigma * decay) ** 2 + drifted**2 + read**2)
