"""Noise on a tile's inputs."""

import jax.numpy as jnp

from hwtrain._parts.part import Part


class InputNoise(Part):
    r"""Adds normal noise to the inputs, behind the DAC.

    .. math:: x' = x + \sigma\, \xi
    """

    draws = "read"
    sigma: float
    """Standard deviation, in normalised units."""

    def around(self, inner, x, ctx):
        """Adds the noise."""
        if ctx.keys is None:
            return inner(x)
        shape, real = ctx.crossbar.inputs_of(x)
        noise = ctx.normal("input_noise", shape)
        return inner(x + jnp.where(real, self.sigma * noise, 0))

    def describe(self):
        """Returns its fields."""
        return f"input noise {self.sigma:g}"

    def proof(self, ctx):
        r"""Declares its measured deviation: :math:`\sigma \sqrt{\sum_j w_{ij}^2}`."""
        ctx.differs("inp_noise")
        norm = jnp.sqrt(jnp.sum(jnp.square(ctx.w), axis=1))
        ctx.deviates(self.sigma * norm, "inp_noise", shared=True)
