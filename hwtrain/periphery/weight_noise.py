"""Noise of the weights that is drawn for each vector, at the outputs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class WeightNoise:
    """Adds what weights that a modifier draws anew for each vector make of the outputs.

    Attributes:
      deviation: returns the standard deviation of the outputs, from inputs and the
        crossbar.
    """

    deviation: Callable[[jax.Array, Any], jax.Array]

    def around(self, inner, x, ctx):
        """Adds the noise."""
        y = inner(x)
        if ctx.keys is None:
            return y
        noise = ctx.normal("weight_noise", y.shape)
        return y + _scaled(self.deviation(x, ctx.crossbar), noise)


def _scaled(deviation: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns noise times its deviation, `[..., row tiles, column tiles, columns]`."""
    if noise.shape[-3:-1] != (1, 1):
        return deviation * noise
    # The derivative to the deviation is a sum over columns, which takes XLA's CPU
    # backend ten times as long with the axes of one tile in between.
    return (deviation[..., 0, 0, :] * noise[..., 0, 0, :])[..., None, None, :]
