"""Read noise of the weights, drawn at the outputs."""

from typing import Literal

import jax
import jax.numpy as jnp

from hwtrain._parts.part import Part


class ReadNoise(Part):
    r"""Adds the effect of read noise of every weight on the outputs.

    The standard deviation of an output is

    .. math::
        \text{additive_constant:}\ \sigma \sqrt{\textstyle\sum_j x_j^2} \qquad
        \text{pcm_read:}\ \sigma \sqrt{\textstyle\sum_j |w_{ij}| x_j^2}

    No gradient passes through the deviation to inputs or weights.
    """

    whole = True
    draws = "read"
    sigma: float
    """Strength of the noise."""
    kind: Literal["additive_constant", "pcm_read"]

    def around(self, inner, x, ctx):
        """Adds the noise."""
        y = inner(x)
        if ctx.keys is None:
            return y
        square = jnp.square(jax.lax.stop_gradient(x))
        if self.kind == "additive_constant":
            variance = ctx.crossbar.total(square)
        else:
            variance = ctx.crossbar.fixed.multiply_absolute(square)
        deviation = self.sigma * jnp.sqrt(jnp.maximum(variance, 0))
        return y + deviation * ctx.normal("read", y.shape)

    def describe(self):
        """Returns its fields."""
        return f"read noise {self.sigma:g} {self.kind}"

    def proof(self, ctx):
        """Declares its measured effect: the standard deviation."""

        def deviation(x):
            square = jnp.square(x)
            if self.kind == "additive_constant":
                variance = jnp.sum(square, axis=-1, keepdims=True)
            else:
                variance = ctx.product(square, jnp.abs(ctx.w))
            return self.sigma * jnp.sqrt(variance)

        ctx.differs("w_noise")
        ctx.deviates(deviation, "w_noise")
