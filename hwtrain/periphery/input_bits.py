"""Inputs whose bits pass a tile in groups, one after the other."""

import itertools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from hwtrain._parts.fields import Positive
from hwtrain._parts.part import Part
from hwtrain.periphery.asymmetry import OutputAsymmetry
from hwtrain.periphery.dac import Dac


class InputBits(Part):
    r"""Reads a tile for each group of an input's bits, and shifts and adds the results.

    .. math::
        \frac{x}{\Delta} = \mathrm{sign}(x) \sum_k 2^{s_k} d_k, \qquad
        y = \sum_k 2^{s_k}\, f\big(\mathrm{sign}(x)\, d_k\, \Delta\big), \qquad
        s_k = \sum_{l < k} b_l

    with :math:`0 \le d_k < 2^{b_k}` the k-th group of :math:`b_k` bits, the lowest
    first, and f what lies inside: each pass has its own noise and ADC, and an input of
    at most :math:`(2^{b_k} - 1) \Delta`. What exceeds the last group stays in it.

    The gradient passes to the input as if each group held an equal share of it: that of
    the sum is the mean of the gradients of the passes, weighted by significance.

    >>> halves = InputBits(step=1 / 127, groups=(3, 4))
    >>> print(127 * halves.split(jnp.array([100.0, -9.0]) / 127))
    [[ 4. -1.]
     [12. -1.]]

    References:
      Shafiee et al., ISAAC: a convolutional neural network accelerator with in-situ
      analog arithmetic in crossbars, ISCA 2016, doi:10.1109/ISCA.2016.12.
    """

    step: Positive
    """Step of the DAC, in normalised units."""
    groups: Annotated[
        tuple[Annotated[int, Field(ge=1, le=24)], ...], Field(min_length=2)
    ]
    """Bits of each group, the lowest first, without the sign."""

    @property
    def passes(self):
        """Reads of the tile."""
        return len(self.groups)

    @property
    def _weights(self) -> list[int]:
        """Significance of each group."""
        return [2**shift for shift in itertools.accumulate((0, *self.groups[:-1]))]

    def split(self, x: jax.Array) -> jax.Array:
        """Returns the inputs of the passes, `[groups, *x.shape]`."""
        size = jnp.abs(x) / self.step
        nearest = jnp.round(size)
        # Levels are whole numbers of steps but for a rounding; noise is not.
        rest = jnp.where(jnp.abs(size - nearest) < 1e-3, nearest, size)
        found = []
        for bits in self.groups[:-1]:
            found.append(rest % 2**bits)
            rest = jnp.floor(rest / 2**bits)
        return jnp.stack([*found, rest]) * jnp.sign(x) * self.step

    def around(self, inner, x, ctx):
        """Reads every group."""
        share = x / sum(self._weights)
        passes = share + jax.lax.stop_gradient(self.split(x) - share)
        reads = [inner(each) for each in passes]
        return sum(weight * y for weight, y in zip(self._weights, reads, strict=True))

    def describe(self):
        """Returns its groups, the highest first as they are written."""
        return f"bits {'+'.join(map(str, reversed(self.groups)))}"

    def proof(self, ctx):
        """Declares its measured effect: the conversion of each pass."""
        step, top = self.step, 2 ** sum(self.groups) - 1
        levels = Dac(bound=step * top, res=1 / (2 * top))

        def weaker(y):
            return np.where(y < 0, y / 2, y)

        def apart(x, tile):
            rest = np.rint(np.minimum(np.abs(x) / step, top))
            total, weight = 0.0, 1
            for bits in self.groups:
                digit = np.sign(x) * (rest % 2**bits) * step
                total = total + weight * weaker(tile.multiply(digit))
                rest, weight = rest // 2**bits, weight * 2**bits
            return total

        def at_once(x, tile):
            level = np.rint(np.clip(x / step, -top, top)) * step
            return weaker(tile.multiply(level))

        around = levels, self, OutputAsymmetry(share=0.5)
        largest = step * top / 3
        ctx.responds(apart, "mv_type", *around, rest=at_once, inputs=largest)
