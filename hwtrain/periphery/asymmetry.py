"""Attenuation of negative inputs or outputs."""

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._parts.part import Part


def weakened(x: jax.Array, share: float) -> jax.Array:
    r"""Attenuates negative values.

    .. math:: x' = x\,(1 - a\,[x < 0])

    >>> weakened(jnp.array([1.0, -1.0]), 0.25)
    Array([ 1.  , -0.75], dtype=float32)

    Args:
      x: values, of any shape.
      share: a. Zero turns it off.
    """
    return x if share == 0 else jnp.where(x < 0, (1 - share) * x, x)


class InputAsymmetry(Part):
    """Makes negative inputs smaller by a share; `weakened` has the equation."""

    whole = True
    share: float

    def around(self, inner, x, ctx):
        """Attenuates the inputs."""
        return inner(weakened(x, self.share))

    def describe(self):
        """Returns its share."""
        return f"input asymmetry {self.share:g}"

    def proof(self, ctx):
        """Declares its measured effect: the outputs."""
        ctx.differs("inp_asymmetry")
        kept = 1 - self.share
        ctx.responds(
            lambda x, tile: tile.multiply(np.where(x < 0, kept * x, x)), "inp_asymmetry"
        )


class OutputAsymmetry(Part):
    """Makes negative outputs smaller by a share; `weakened` has the equation."""

    whole = True
    share: float

    def around(self, inner, x, ctx):
        """Attenuates the outputs."""
        return weakened(inner(x), self.share)

    def describe(self):
        """Returns its share."""
        return f"output asymmetry {self.share:g}"

    def proof(self, ctx):
        """Declares its measured effect: the outputs."""
        ctx.differs("out_asymmetry")

        def expected(x, tile):
            y = tile.multiply(x)
            return np.where(y < 0, (1 - self.share) * y, y)

        ctx.responds(expected, "out_asymmetry")
