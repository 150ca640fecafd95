"""Weights whose bits are sliced over crossbars, each read and converted alone."""

import itertools
import math
from typing import Annotated, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from hwtrain._errors import InputError
from hwtrain._parts.fields import Positive
from hwtrain._parts.part import Part
from hwtrain.periphery._written_weights import largest_weight
from hwtrain.periphery.asymmetry import OutputAsymmetry

MOST_BITS = 16
"""Bits of a weight without its sign: float32 tells 2^16 levels apart with certainty."""


class WeightSlices(Part):
    r"""Reads each slice of the weights' bits, and shifts and adds the results.

    .. math::
        w = \sum_i c_i v_i, \qquad y = \sum_i c_i\, f(x, v_i), \qquad
        v_i = \mathrm{sign}(w) \frac{d_i}{2^{b_i} - 1}, \qquad
        c_i = A\, 2^{s_i} \frac{2^{b_i} - 1}{2^B - 1}

    with :math:`0 \le d_i < 2^{b_i}` the i-th group of :math:`b_i` bits of
    :math:`\lfloor |w| (2^B - 1) / A \rceil`, the lowest first, its shift :math:`s_i =
    \sum_{l < i} b_l`, :math:`B = \sum_i b_i`, and f what lies inside: each slice has
    the whole range of conductances, and its own noise and ADC, whose outputs it
    multiplies by :math:`c_i`. What exceeds A stays in the highest slice. Frozen errors
    of columns, such as `ColumnErrors`, are those of a converter that all slices share.

    The weights are not rounded here: by at most half a level they may deviate from one,
    as do those of a chip by programming noise, and the lowest slice holds it. A
    `BitSlicedConductanceConverter` of the same bits rounds those of a chip, the
    modifier `discretize` those of training.

    The gradient passes to the weights as if each slice held an equal share of them.

    >>> halves = WeightSlices(bits=(2, 2))
    >>> print((15 * halves.split(jnp.array([[9.0, -6.0]]) / 15)).round(3))
    [[[  5. -10.]]
    <BLANKLINE>
     [[ 10.  -5.]]]

    Raises:
      ValueError: for more than 16 bits.

    References:
      Shafiee et al., ISAAC: a convolutional neural network accelerator with in-situ
      analog arithmetic in crossbars, ISCA 2016, doi:10.1109/ISCA.2016.12.

      CrossSim 3.2, `BitslicedCore` in its balanced style: the same outputs.
    """

    bits: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MOST_BITS)], ...], Field(min_length=2)
    ]
    """Bits of each slice, the lowest first, without the sign."""
    largest: Positive = 1.0
    """A, the weight with all bits set, in units of the crossbar. Beside a converter,
    it is the mapping's `weight_scaling_omega`."""

    @property
    def passes(self):
        """Reads of the tile: one for each slice."""
        return len(self.bits)

    @property
    def _factors(self) -> list[float]:
        """Factor on the outputs of each slice, without A."""
        shifts = itertools.accumulate((0, *self.bits[:-1]))
        top = 2 ** sum(self.bits) - 1
        return [2**s * (2**b - 1) / top for s, b in zip(shifts, self.bits)]

    def check_hardware(self, hardware):
        """Raises if the converter slices weights otherwise, or into other levels."""
        converter = hardware.converter
        if converter is None:
            return
        held = getattr(converter, "bits", None)
        if not isinstance(held, tuple):
            raise InputError(
                f"the stage {self.type!r} reads slices of bits={self.bits}, and the "
                f"converter {converter.type!r} holds none: write converter="
                f"BitSlicedConductanceConverter(bits={self.bits}), or leave the stage "
                "out"
            )
        if held != self.bits:
            raise InputError(
                f"the stage {self.type!r} reads slices of bits={self.bits}, and the "
                f"converter {converter.type!r} holds slices of bits={held}: "
                "write the same bits in both"
            )
        omega = largest_weight(self, hardware)
        if not math.isclose(self.largest, omega, rel_tol=1e-6):
            raise InputError(
                f"the stage {self.type!r} has largest={self.largest:g}, and the "
                f"converter {converter.type!r} sets all bits of the largest weight, "
                f"which is weight_scaling_omega={omega:g}: write largest={omega:g}"
            )

    def split(self, w: jax.Array) -> jax.Array:
        """Returns the slices, `[slices, *w.shape]`, of levels between -1 and 1."""
        size = jnp.abs(w) / self.largest * (2 ** sum(self.bits) - 1)
        nearest = jnp.round(size)
        rest, found = nearest, []
        for bits in self.bits[:-1]:
            found.append((rest % 2**bits) / (2**bits - 1))
            rest = jnp.floor(rest / 2**bits)
        found.append(rest / (2 ** self.bits[-1] - 1))
        found[0] = found[0] + (size - nearest) / (2 ** self.bits[0] - 1)
        return jnp.stack(found) * jnp.sign(w)

    def around(self, inner, x, ctx):
        """Reads every slice."""
        w = ctx.w.astype(jnp.float32)
        share = w / self.largest
        slices = share + jax.lax.stop_gradient(self.split(w) - share)
        reads = [inner(x, weights=each) for each in slices]
        total = sum(c * y for c, y in zip(self._factors, reads, strict=True))
        return self.largest * total

    def describe(self):
        """Returns the bits of its slices, the lowest first."""
        return f"weight slices {'+'.join(map(str, self.bits))}"

    def proof(self, ctx):
        """Declares its measured effect: the conversion of each slice."""
        top = 2 ** sum(self.bits) - 1

        def weaker(y):
            return np.where(y < 0, y / 2, y)

        def apart(x, tile):
            level = np.abs(tile.w) / self.largest * top
            rest = np.rint(level).astype(int)
            off, total, weight = level - rest, 0.0, self.largest / top
            for number, bits in enumerate(self.bits):
                last = number == len(self.bits) - 1
                digit = rest if last else rest & (2**bits - 1)
                digit = digit + off if number == 0 else digit
                part = tile.product(x, np.sign(tile.w) * digit)
                total = total + weight * weaker(part)
                rest, weight = rest >> bits, weight * 2**bits
            return total

        def at_once(x, tile):
            return weaker(tile.multiply(x))

        around = self, OutputAsymmetry(share=0.5)
        ctx.responds(apart, "weight slices", *around, rest=at_once)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(self.bits) > MOST_BITS:
            raise InputError(
                f"bits={self.bits} are {sum(self.bits)} bits for each weight; there "
                f"are at most {MOST_BITS}, beside the sign"
            )
        return self
