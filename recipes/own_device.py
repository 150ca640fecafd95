"""A memory device of your own: its noise, and how a weight is stored in it.

Copy this file, put the constants and the equations of your device in it, and name it by
`parts` in a configuration. The model and the data are those of `digits.py`.
"""

import jax
import jax.numpy as jnp

import hwtrain


@hwtrain.register("noise_model", "floating_gate")
class FloatingGate(hwtrain.DriftingNoiseModel):
    """A transistor with a floating gate, whose charge leaks.

    Programming stops at a share of the target, with an additional error that does not
    depend on it. Leakage is a power law of time, faster for devices that conduct more.
    The constants are made up; put in what you have measured.
    """

    g_max: float = 20.0
    """Conductance of the largest weight, in µS."""
    floor: float = 0.6
    """Error of programming for any conductance, in µS."""
    share: float = 0.1
    """Error of programming relative to the conductance."""
    leak: float = 0.02
    """Exponent of the leakage of a device of `g_max`."""
    flicker: float = 0.01
    """Noise of a read relative to the conductance."""

    def programming_sigma(self, g):
        """Returns the standard deviation of programming to `g`, both in µS."""
        sigma = jnp.hypot(self.floor, self.share * jnp.asarray(g))
        return self.prog_noise_scale * sigma

    def drift_mean(self, g):
        """Returns the mean exponent of leakage for a target `g` in µS."""
        return self.drift_scale * self.leak * (0.5 + 0.5 * g / self.g_max)

    def drift_std(self, g):
        """Returns the spread of the exponent over devices."""
        return self.drift_mean(g) / 3

    def read_sigma(self, programmed, t_s):
        """Returns the noise of one read in µS, at a time in seconds."""
        now = self.mean_at(programmed, t_s)
        return self.read_noise_scale * self.flicker * now

    def describe(self):
        """Returns what `hwtrain inspect` shows."""
        return f"floating gate, {self.share:.0%} and {self.floor:g} µS of error"


@hwtrain.register("converter", "one_cell")
class OneCell(hwtrain.ConductanceConverter):
    """One device for a weight, whose zero lies in the middle of its range."""

    g_max: float = 20.0
    """Conductance of the largest weight, in µS."""
    scales = ("largest",)
    units = {"largest": "crossbar weight"}

    def convert_to_conductances(self, weights):
        """Returns the conductances of weights in µS, and their scale."""
        largest = jnp.max(jnp.abs(weights)).reshape((1,) * jnp.ndim(weights))
        params = {"largest": jnp.where(largest > 0, largest, 1)}
        return self.convert_by_scale(weights, params), params

    def convert_by_scale(self, weights, params):
        """Returns the conductances of weights by a scale that is known."""
        middle = (self.g_max - self.g_min) / 2
        g = self.g_min + middle * (1 + weights / params["largest"])
        return [jnp.maximum(g, 0)]

    def convert_back_to_weights(self, conductances, params) -> jax.Array:
        """Returns the weights of conductances."""
        middle = (self.g_max - self.g_min) / 2
        return ((conductances[0] - self.g_min) / middle - 1) * params["largest"]
