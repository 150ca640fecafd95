"""A user-defined chip in one file that uses public names only.

It models flash memory: programming noise is proportional to the target, each device
leaks at its own rate, and reads have telegraph noise. A weight is one device relative
to a reference in the middle of its range.
"""

import math

import jax
import jax.numpy as jnp

import hwtrain
from hwtrain.objectives import Objective


@hwtrain.register("noise_model", "flash")
class Flash(hwtrain.DriftingNoiseModel):
    """A device that leaks by a power law of its own."""

    g_max: float = 20.0
    error: float = 0.02
    """Programming noise relative to the conductance. Zero turns it off."""
    leak: float = 0.03
    """Mean exponent of the leakage. Zero turns it off."""

    def programming_sigma(self, g):
        return self.error * jnp.asarray(g)

    def drift_mean(self, g):
        return jnp.full_like(g, self.leak)

    def drift_std(self, g):
        return jnp.full_like(g, self.leak / 4)

    def read_sigma(self, programmed, t_s):
        return 0.01 * self.read_noise_scale * self.mean_at(programmed, t_s)

    def describe(self):
        return f"flash, {self.error:.0%} programming noise"


@hwtrain.register("converter", "offset_device")
class OffsetDevice(hwtrain.ConductanceConverter):
    """One device for a weight, whose zero lies in the middle of its range."""

    g_max: float = 20.0
    devices = ("g",)
    scales = ("largest",)

    def _span(self):
        return (self.g_max - self.g_min) / 2

    def convert_to_conductances(self, weights):
        largest = jnp.max(jnp.abs(weights)).reshape((1,) * jnp.ndim(weights))
        params = {"largest": jnp.where(largest > 0, largest, 1)}
        return self.convert_by_scale(weights, params), params

    def convert_by_scale(self, weights, params):
        g = self.g_min + self._span() * (1 + weights / params["largest"])
        return [jnp.maximum(g, 0)]

    def convert_back_to_weights(self, conductances, params):
        (g,) = conductances
        return ((g - self.g_min) / self._span() - 1) * params["largest"]


@hwtrain.register("drift_compensation", "largest_row")
class LargestRow(hwtrain.DriftCompensation):
    """One factor for each tile, from the row with the largest response."""

    def baseline(self, y, w):
        return jnp.abs(y).mean(-1).max(-1)

    def factor(self, baseline, y):
        now = self.baseline(y, y)
        return baseline / jnp.where(now > 0, now, 1)


@hwtrain.register("modifier", "log_normal")
class LogNormal(hwtrain.WeightModifier):
    """Noise that multiplies weights, and never changes their sign."""

    sigma: float = 0.1
    draws = "step"

    def on_weight(self, w, ctx):
        return w * jnp.exp(self.sigma * ctx.normal("log_normal", w.shape))

    def proof(self, ctx):
        super().proof(ctx)
        # Of a factor exp(sigma xi) - 1, the root of the mean square.
        square = math.exp(2 * self.sigma**2) - 2 * math.exp(self.sigma**2 / 2) + 1
        ctx.deviates(math.sqrt(square) * ctx.w)

    def describe(self):
        return f"log-normal {self.sigma:g}"


@hwtrain.register("stage", "telegraph", inside="adc")
class Telegraph(hwtrain.Part):
    """Random telegraph noise of the devices that conduct."""

    sigma: float = 0.02
    draws = "read"

    def around(self, inner, x, ctx):
        y = inner(x)
        # The square root has no derivative at 0, where zero inputs and padding lead.
        power = jnp.maximum(ctx.product(x**2, ctx.w**2), 1e-12)
        return y + self.sigma * jnp.sqrt(power) * ctx.normal("telegraph", y.shape)

    def proof(self, ctx):
        super().proof(ctx)
        ctx.deviates(lambda x: self.sigma * jnp.sqrt(ctx.product(x**2, ctx.w**2)))

    def describe(self):
        return f"telegraph noise {self.sigma:g}"


@hwtrain.register("stage", "input_offset", inside="dac")
class InputOffset(hwtrain.Part):
    """An offset of the drivers, the same for all rows."""

    offset: float = 0.05
    whole = True

    def around(self, inner, x, ctx):
        return inner(x + self.offset)

    def describe(self):
        return f"input offset {self.offset:g}"


@hwtrain.register("stage", "split_reads", inside="input_asymmetry", outside="adc")
class SplitReads(hwtrain.Part):
    """Reads positive and negative inputs separately."""

    def around(self, inner, x, ctx):
        return inner(jnp.maximum(x, 0)) + inner(jnp.minimum(x, 0))


@hwtrain.register("mismatch", "per_row")
class PerRow(hwtrain.Mismatch):
    """A gain of each driver, which all devices of a row share."""

    sigma: float = 0.05

    def on_weight(self, w, ctx):
        return w * (1 + self.sigma * ctx.normal("per_row", (*w.shape[:-1], 1)))

    def describe(self):
        return f"gains of rows, {self.sigma:g}"


@hwtrain.register("clip", "quantile")
class Quantile(hwtrain.WeightClip):
    """Clips to a quantile of the absolute weights."""

    share: float = 0.9

    def largest(self, w, row_sizes):
        bound = jnp.quantile(jnp.abs(w), self.share, axis=(-2, -1))
        return jnp.broadcast_to(
            bound[..., None, None], (*w.shape[:-2], len(row_sizes), 1)
        )

    def describe(self):
        return f"clipped to the quantile {self.share:g}"


@hwtrain.register("objective", "smoothed")
class Smoothed(Objective):
    """The mean of the loss over small moves of all parameters."""

    size: float = 0.01

    def of(self, loss, plan, *, outputs=None, has_aux=False):
        def smoothed(params, key, *batch):
            leaves, tree = jax.tree.flatten(params)
            keys = jax.random.split(key, len(leaves))
            moved = [
                leaf + self.size * jax.random.normal(k, leaf.shape)
                for k, leaf in zip(keys, leaves)
            ]
            return loss(jax.tree.unflatten(tree, moved), key, *batch)

        return smoothed


@hwtrain.register("adapter", "largest-csv")
def to_largest_csv(checkpoint, out, *, chip=None):
    """Writes the largest conductance of each weight, in µS."""
    lines = []
    for weight in checkpoint.plan.weights:
        tiles = checkpoint.conductances(weight.path, chip)
        largest = max(
            g.max() for row in tiles for t in row for g in t.conductances.values()
        )
        lines.append(f"{weight.path},{largest:.6g}")
    out.write_text("\n".join(lines) + "\n")


def hardware(**options):
    """A chip with all of these."""
    return hwtrain.Hardware(
        modifier=LogNormal(sigma=0.1),
        converter=OffsetDevice(g_max=20.0),
        noise_model=Flash(g_max=20.0),
        drift_compensation=LargestRow(),
        forward=hwtrain.IOParameters(
            out_bits=8, out_bound=10.0, stages=(Telegraph(sigma=0.05),)
        ),
        **options,
    )
