"""Conductance converters with several pairs of devices for each weight."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

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

# Lists are accepted too, since configurations of the reference are written with them.
_Factors = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
_Curve = Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=2)]
_Curves = Annotated[tuple[_Curve, ...], Field(strict=False)]


class _Pairs(ConductanceConverter):
    f_lst: _Factors
    """Factor on the difference of each pair."""
    g_max: Positive = 25.0
    """The largest conductance of each device, in µS."""
    g_min: NonNegative = 0.0
    """Conductance of a device that is off, in µS."""
    per_column: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    """Use a scale per column (last axis) instead of one for the tensor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_range(self.g_min, self.g_max)
        return self

    @property
    def devices(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the conductances of a weight, in order."""
        return pair_names(len(self.f_lst))

    def convert_to_conductances(
        self, weights: jax.Array
    ) -> tuple[list[jax.Array], Params]:
        """Returns `[g_pos, g_neg, ...]` in µS and `{"scale_ratio": k}`.

        Args:
          weights: `[..., columns]`, scaled as one tensor.

        Raises:
          ValueError: for weights that are not finite, outside of `jax.jit`.
        """
        weights = require_finite(weights)
        scale = conversion.scale_ratio(
            weights, self.full_scale, per_column=self.per_column
        )
        conductances = conversion.to_pairs(
            weights, scale, self.f_lst, g_min=self.g_min, g_max=self.g_max
        )
        return conductances, {"scale_ratio": scale}

    def convert_by_scale(self, weights: jax.Array, params: Params) -> list[jax.Array]:
        """Converts weights to `[g_pos, g_neg, ...]` in µS by the scale of others.

        Args:
          weights: weights that may exceed the range of the scale: all devices of their
            sign then share the excess.
          params: the parameters that `convert_to_conductances` returned for the others.

        Raises:
          ValueError: if there is no `scale_ratio`.
        """
        scale = require(params, "scale_ratio")
        limit = self.full_scale / scale
        inside = jnp.clip(weights, -limit, limit)
        conductances = conversion.to_pairs(
            inside, scale, self.f_lst, g_min=self.g_min, g_max=self.g_max
        )
        excess = (weights - inside) * scale
        return conversion.beyond(conductances, excess, self.f_lst)

    @property
    def full_scale(self) -> float:
        """The largest weight in conductance, in µS, its factors included."""
        return sum(self.f_lst) * (self.g_max - self.g_min)

    @property
    def full_devices(self) -> tuple[tuple[float, float], ...]:
        """Factor on, and conductance in µS of, each device that it turns on."""
        return tuple((factor, self.g_max) for factor in self.f_lst)

    def convert_back_to_weights(
        self, conductances: Sequence[jax.Array], params: Params
    ) -> jax.Array:
        """Converts `[g_pos, g_neg, ...]` back to weights.

        Args:
          conductances: two conductances for each factor, in µS.
          params: the parameters that `convert_to_conductances` returned beside them.

        Raises:
          ValueError: unless there are twice as many conductances as factors, and a
            `scale_ratio`.
        """
        return _weights_of_pairs(conductances, params, self.f_lst)


@register("converter", "n_pair")
class NPairConductanceConverter(_Pairs):
    r"""A weight as a sum of conductance differences, each with its own factor.

    .. math:: w = \frac{1}{k} \sum_i f_i (g_i^+ - g_i^-), \qquad
        k = \frac{\sum_i f_i (g_\text{max} - g_\text{min})}{\max |w|}

    The pairs are filled one after the other, in the order of the factors.

    >>> import jax.numpy as jnp
    >>> converter = NPairConductanceConverter(f_lst=(1.0, 3.0), g_max=25.0)
    >>> g, params = converter.convert_to_conductances(jnp.array([[0.5, -1.0]]))
    >>> print(converter.convert_back_to_weights(g, params), params["scale_ratio"])
    [[ 0.5 -1. ]] 100.0

    References:
      Le Gallo et al., Precision of bit slicing with in-memory computing based on
      analog phase-change memory crossbars, Neuromorphic Computing and Engineering 2022.
    """

    type: Literal["n_pair"] = "n_pair"


@register("converter", "dual_pair")
class DualPairConductanceConverter(_Pairs):
    r"""A weight as two conductance differences, coarse and fine.

    As `NPairConductanceConverter`, with exactly two factors.

    >>> DualPairConductanceConverter(f_lst=(1.0, 3.0)).g_max
    25.0

    References:
      Mackin et al., Optimised weight programming for analogue memory-based deep neural
      networks, Nature Communications 2022.
    """

    type: Literal["dual_pair"] = "dual_pair"

    @model_validator(mode="after")
    def _check_two(self) -> Self:
        if len(self.f_lst) != 2:
            raise InputError(
                f"a dual pair has two factors, got f_lst={self.f_lst}; use "
                "NPairConductanceConverter for another number"
            )
        return self


@register("converter", "custom_pair")
class CustomPairConductanceConverter(ConductanceConverter):
    r"""A weight as conductance differences that follow given curves.

    .. math:: w = \frac{1}{k} \sum_i f_i \big(g_i^+(w) - g_i^-(w)\big)

    A curve gives the conductance at weights evenly spaced between minus and plus the
    largest absolute weight, and is linear in between. The weighted sum of the curves
    must be a straight line, or weights could not be recovered.

    >>> import jax.numpy as jnp
    >>> converter = CustomPairConductanceConverter(
    ...     f_lst=(1.0,), g_lst=((0.0, 0.0, 25.0), (25.0, 0.0, 0.0)), g_max=25.0)
    >>> (g_pos, g_neg), _ = converter.convert_to_conductances(jnp.array([[0.5, -1.0]]))
    >>> print(g_pos, g_neg)
    [[12.5  0. ]] [[ 0. 25.]]

    References:
      Mackin et al., Optimised weight programming for analogue memory-based deep neural
      networks, Nature Communications 2022.
    """

    stays_static: ClassVar = dict.fromkeys(
        ("f_lst", "g_lst", "g_max", "g_min"),
        "belongs to curves that are checked together",
    )

    type: Literal["custom_pair"] = "custom_pair"
    f_lst: _Factors
    """Factor on the difference of each pair."""
    g_lst: _Curves
    """Curves of the positive and the negative device of each pair in turn, in µS."""
    g_max: Positive = 25.0
    """The largest conductance that a curve may take, in µS."""
    g_min: NonNegative = 0.0
    """The smallest conductance that a curve may take, in µS."""
    per_column: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    """Use a largest weight per column (last axis) instead of one for the tensor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_range(self.g_min, self.g_max)
        if len(self.g_lst) != 2 * len(self.f_lst):
            raise InputError(
                "g_lst must hold two curves, positive and negative, for each factor of "
                f"f_lst; got {len(self.g_lst)} curves and {len(self.f_lst)} factors"
            )
        if len({len(curve) for curve in self.g_lst}) != 1:
            raise InputError(
                "the curves of g_lst must have equally many points; got "
                f"{[len(curve) for curve in self.g_lst]}"
            )
        low = min(min(curve) for curve in self.g_lst)
        high = max(max(curve) for curve in self.g_lst)
        if low < self.g_min or high > self.g_max:
            raise InputError(
                f"the curves of g_lst must stay in g_min={self.g_min} µS to "
                f"g_max={self.g_max} µS; they reach from {low} to {high}"
            )
        self.invertibility_test()
        return self

    @property
    def devices(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the conductances of a weight, in order."""
        return pair_names(len(self.f_lst))

    def invertibility_test(self) -> None:
        """Checks that weights can be recovered, at every point and in between.

        Raises:
          ValueError: naming the weight with the largest error.
        """
        sums, largest = self._sums, self.full_scale
        points = 2 * len(sums) - 1
        weights = np.linspace(-1, 1, points)
        back = np.interp(weights, np.linspace(-1, 1, len(sums)), sums)
        back = back / max(largest, 1e-30)
        worst = int(np.argmax(np.abs(back - weights)))
        if abs(back[worst] - weights[worst]) > 1e-4:
            raise InputError(
                "the conversion is not invertible: of the largest weight, "
                f"{weights[worst]:.4g} becomes {back[worst]:.4g}. The sum of "
                "f * (g_pos - g_neg) over the pairs must be a straight line from its "
                "negative to its positive largest value"
            )

    def convert_to_conductances(
        self, weights: jax.Array
    ) -> tuple[list[jax.Array], Params]:
        """Returns `[g_pos, g_neg, ...]` in µS and `{"scale_ratio": k}`.

        Args:
          weights: `[..., columns]`, scaled as one tensor.

        Raises:
          ValueError: for weights that are not finite, outside of `jax.jit`.
        """
        weights = require_finite(weights)
        scale = conversion.scale_ratio(
            weights, self.full_scale, per_column=self.per_column
        )
        w_max = self.full_scale / scale
        conductances = conversion.to_curves(weights, w_max, self.g_lst)
        return conductances, {"scale_ratio": scale}

    def convert_by_scale(self, weights: jax.Array, params: Params) -> list[jax.Array]:
        """Converts weights to `[g_pos, g_neg, ...]` in µS by the scale of others.

        Args:
          weights: weights that may exceed the range of the scale: all devices of their
            sign then share the excess.
          params: the parameters that `convert_to_conductances` returned for the others.

        Raises:
          ValueError: if there is no `scale_ratio`.
        """
        scale = require(params, "scale_ratio")
        limit = self.full_scale / scale
        inside = jnp.clip(weights, -limit, limit)
        conductances = conversion.to_curves(inside, limit, self.g_lst)
        excess = (weights - inside) * scale
        return conversion.beyond(conductances, excess, self.f_lst)

    def convert_back_to_weights(
        self, conductances: Sequence[jax.Array], params: Params
    ) -> jax.Array:
        """Converts `[g_pos, g_neg, ...]` back to weights.

        Args:
          conductances: two conductances for each factor, in µS.
          params: the parameters that `convert_to_conductances` returned beside them.

        Raises:
          ValueError: unless there are twice as many conductances as factors, and a
            `scale_ratio`.
        """
        return _weights_of_pairs(conductances, params, self.f_lst)

    @property
    def _sums(self) -> np.ndarray:
        curves = np.asarray(self.g_lst)
        return np.asarray(self.f_lst) @ (curves[::2] - curves[1::2])

    @property
    def full_scale(self) -> float:
        """The largest weight in conductance, in µS, its factors included."""
        return float(np.abs(self._sums).max())

    @property
    def full_devices(self) -> tuple[tuple[float, float], ...]:
        """Factor on, and conductance in µS of, each device that it turns on."""
        ends = zip(np.repeat(self.f_lst, 2), (curve[-1] for curve in self.g_lst))
        return tuple((float(factor), g) for factor, g in ends if g > self.g_min)


def _weights_of_pairs(
    conductances: Sequence[jax.Array], params: Params, f_lst: tuple[float, ...]
) -> jax.Array:
    pairs = len(f_lst)
    require_count(
        conductances, 2 * pairs, f"{pairs} pairs have {2 * pairs} conductances"
    )
    return conversion.from_pairs(conductances, require(params, "scale_ratio"), f_lst)
