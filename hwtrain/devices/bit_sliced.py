"""The conductance converter of weights whose bits are sliced over pairs of devices."""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, Positive
from hwtrain._parts.registry import register
from hwtrain.devices import _conversion as conversion
from hwtrain.devices._conversion import (
    Params,
    check_range,
    pair_names,
    require,
    require_count,
    require_finite,
)
from hwtrain.devices.bases import ConductanceConverter

Bits = Annotated[
    tuple[Annotated[int, Field(ge=1, le=16)], ...],
    Field(strict=False, min_length=1),
]

MOST_BITS = 16
"""Bits of a weight without its sign: float32 tells 2^16 levels apart with certainty."""


@register("converter", "bit_sliced")
class BitSlicedConductanceConverter(ConductanceConverter):
    r"""A weight as an integer, whose groups of bits are levels of pairs of devices.

    .. math::
        \Big\lfloor \frac{|w|}{\max |w|} (2^B - 1) \Big\rceil &= \sum_i 2^{s_i} d_i,
        \qquad 0 \le d_i < 2^{b_i}, \quad s_i = \sum_{l < i} b_l, \quad B = \sum_i b_i
        \\
        g_i^\pm &= g_\text{min} + (g_\text{max} - g_\text{min})
        \frac{\max(\pm \mathrm{sign}(w)\, d_i, 0)}{2^{b_i} - 1} \\
        w &= \frac1k \sum_i f_i (g_i^+ - g_i^-), \qquad
        f_i = 2^{s_i}\, \frac{2^{b_i} - 1}{2^{b_0} - 1}

    With equally many bits in each, the factors are powers of a base, :math:`2^{b i}`:
    the noise of a device weighs by its factor. Weights are rounded when they are
    written to a chip, and in `chip_mode`. In training they are not: there, the modifier
    `discretize` with `res = 1 / (2**(B + 1) - 2)` rounds them alike.

    A chip's own deviation of a weight from its level, as by mismatch, stays in the
    lowest slice.

    >>> converter = BitSlicedConductanceConverter(bits=(2, 2), g_max=30.0)
    >>> g, params = converter.convert_to_conductances(jnp.array([[0.61, -1.0]]))
    >>> print(*g)
    [[10.  0.]] [[ 0. 30.]] [[20.  0.]] [[ 0. 30.]]
    >>> print(converter.convert_back_to_weights(g, params))
    [[ 0.6 -1. ]]

    Raises:
      ValueError: for more than 16 bits, or g_min above g_max.

    References:
      Shafiee et al., ISAAC: a convolutional neural network accelerator with in-situ
      analog arithmetic in crossbars, ISCA 2016, doi:10.1109/ISCA.2016.12.

      CrossSim 3.2, `BitslicedCore` in its balanced style: the same levels.
    """

    rounds: ClassVar[bool] = True
    type: Literal["bit_sliced"] = "bit_sliced"
    bits: Bits
    """Bits of each slice, the lowest first, without the sign."""
    g_max: Positive = 25.0
    """Conductance of the highest level, in µS."""
    g_min: NonNegative = 0.0
    """Conductance of level 0, in µS."""
    per_column: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    """Use a largest weight per column (last axis) instead of one for the tensor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_range(self.g_min, self.g_max)
        if sum(self.bits) > MOST_BITS:
            raise InputError(
                f"bits={self.bits} are {sum(self.bits)} bits for each weight; there "
                f"are at most {MOST_BITS}, beside the sign"
            )
        return self

    @property
    def devices(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the conductances of a weight, in order."""
        return pair_names(len(self.bits))

    @property
    def f_lst(self) -> tuple[float, ...]:
        """Factor on the difference of each pair."""
        shifts = itertools.accumulate((0, *self.bits[:-1]))
        lowest = 2 ** self.bits[0] - 1
        return tuple(
            2**shift * (2**bits - 1) / lowest for shift, bits in zip(shifts, self.bits)
        )

    @property
    def full_scale(self) -> float:
        """The largest weight in conductance, in µS, its factors included."""
        return sum(self.f_lst) * (self.g_max - self.g_min)

    @property
    def full_devices(self) -> tuple[tuple[float, float], ...]:
        """Factor on, and conductance in µS of, each device that it turns on."""
        return tuple((factor, self.g_max) for factor in self.f_lst)

    @property
    def _step(self) -> Any:
        """Conductance of a level of the lowest slice, in µS."""
        return (self.g_max - self.g_min) / (2 ** self.bits[0] - 1)

    def convert_to_conductances(
        self, weights: jax.Array
    ) -> tuple[list[jax.Array], Params]:
        """Returns `[g_pos, g_neg, ...]` in µS and `{"scale_ratio": k}`.

        The gradient passes straight through the rounding, to the lowest slice.

        Args:
          weights: `[..., columns]`, scaled as one tensor.

        Raises:
          ValueError: for weights that are not finite, outside of `jax.jit`.
        """
        weights = require_finite(weights)
        scale = conversion.scale_ratio(
            weights, self.full_scale, per_column=self.per_column
        )
        size = weights * scale / self._step
        level = size + jax.lax.stop_gradient(jnp.round(size) - size)
        return self._sliced(level), {"scale_ratio": scale}

    def convert_by_scale(self, weights: jax.Array, params: Params) -> list[jax.Array]:
        """Converts weights to `[g_pos, g_neg, ...]` in µS by the scale of others.

        Args:
          weights: weights that may lie between levels, by at most half of one, which
            the lowest slice holds; and that may exceed the range of the scale: all
            devices of their sign then share the excess.
          params: the parameters that `convert_to_conductances` returned for the others.

        Raises:
          ValueError: if there is no `scale_ratio`.
        """
        scale = require(params, "scale_ratio")
        limit = self.full_scale / scale
        inside = jnp.clip(weights, -limit, limit)
        conductances = self._sliced(inside * scale / self._step)
        excess = (weights - inside) * scale
        return conversion.beyond(conductances, excess, self.f_lst)

    def convert_back_to_weights(
        self, conductances: Sequence[jax.Array], params: Params
    ) -> jax.Array:
        """Converts `[g_pos, g_neg, ...]` back to weights.

        Args:
          conductances: two conductances for each slice, in µS.
          params: the parameters that `convert_to_conductances` returned beside them.

        Raises:
          ValueError: unless there are twice as many conductances as slices, and a
            `scale_ratio`.
        """
        slices = len(self.bits)
        require_count(
            conductances, 2 * slices, f"{slices} slices have {2 * slices} conductances"
        )
        scale = require(params, "scale_ratio")
        return conversion.from_pairs(conductances, scale, self.f_lst)

    def describe(self) -> str:
        """Returns its type and the bits of its slices, the lowest first."""
        return f"{self.type} {'+'.join(map(str, self.bits))} bits"

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the levels of the devices."""
        top = 2 ** sum(self.bits) - 1

        def held(w: np.ndarray) -> list[np.ndarray]:
            axes = tuple(range(w.ndim - 1)) if self.per_column else None
            largest = np.abs(w).max(axis=axes, keepdims=True)
            number = np.rint(np.abs(w) / np.maximum(largest, 1e-7) * top).astype(int)
            found = []
            for bits in self.bits:
                level = (number & (2**bits - 1)) / (2**bits - 1)
                found += [self.g_min + level * (self.g_max - self.g_min) * (w > 0)]
                found += [self.g_min + level * (self.g_max - self.g_min) * (w < 0)]
                number = number >> bits
            return found

        ctx.holds(held)

    def _sliced(self, level: jax.Array) -> list[jax.Array]:
        """Returns `[g_pos, g_neg, ...]` of signed levels, in µS."""
        nearest = jax.lax.stop_gradient(jnp.round(level))
        rest, conductances = jnp.abs(nearest), []
        for number, bits in enumerate(self.bits):
            last = number == len(self.bits) - 1
            digit = jnp.sign(nearest) * (rest if last else rest % 2**bits)
            rest = jnp.floor(rest / 2**bits)
            digit = digit + (level - nearest) if number == 0 else digit
            each = (self.g_max - self.g_min) / (2**bits - 1)
            conductances += conversion.to_pair(digit, each, g_min=self.g_min)
        return conductances
