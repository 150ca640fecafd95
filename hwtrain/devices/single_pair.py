"""A conductance converter with a pair of devices for each weight."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import jax
from pydantic import model_validator

from hwtrain._parts.fields import NonNegative, Positive
from hwtrain._parts.registry import register
from hwtrain.devices import _conversion as conversion
from hwtrain.devices._conversion import (
    Params,
    check_range,
    require,
    require_count,
    require_finite,
)
from hwtrain.devices.bases import ConductanceConverter


@register("converter", "single_pair")
class SinglePairConductanceConverter(ConductanceConverter):
    r"""A weight as the difference of two conductances.

    .. math::
        g^\pm = g_\text{min} + \max(\pm k w, 0), \qquad
        k = \frac{g_\text{max} - g_\text{min}}{\max |w|}

    >>> import jax.numpy as jnp
    >>> converter = SinglePairConductanceConverter(g_max=25.0)
    >>> (g_pos, g_neg), params = converter.convert_to_conductances(
    ...     jnp.array([[0.5, -1.0]]))
    >>> print(g_pos, g_neg, params["scale_ratio"])
    [[12.5  0. ]] [[ 0. 25.]] 25.0

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """

    type: Literal["single_pair"] = "single_pair"
    g_max: Positive = 25.0
    """Conductance of the largest weight, in µS."""
    g_min: NonNegative = 0.0
    """Conductance of a device that is off, in µS."""
    per_column: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    """Use a scale per column (last axis) instead of one for the tensor."""

    devices: ClassVar[tuple[str, ...]] = ("g_pos", "g_neg")
    linear_pair: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_range(self.g_min, self.g_max)
        return self

    def convert_to_conductances(
        self, weights: jax.Array
    ) -> tuple[list[jax.Array], Params]:
        """Returns `[g_pos, g_neg]` in µS and `{"scale_ratio": k}` in µS per weight.

        Args:
          weights: `[..., columns]`, scaled as one tensor.

        Raises:
          ValueError: for weights that are not finite, outside of `jax.jit`.
        """
        weights = require_finite(weights)
        scale = conversion.scale_ratio(
            weights, self.g_max - self.g_min, per_column=self.per_column
        )
        pair = conversion.to_pair(weights, scale, g_min=self.g_min)
        return list(pair), {"scale_ratio": scale}

    def convert_by_scale(self, weights: jax.Array, params: Params) -> list[jax.Array]:
        """Converts weights to `[g_pos, g_neg]` in µS by the scale of others.

        Args:
          weights: weights that may exceed the range of the scale: their conductance
            then exceeds g_max.
          params: the parameters that `convert_to_conductances` returned for the others.

        Raises:
          ValueError: if there is no `scale_ratio`.
        """
        scale = require(params, "scale_ratio")
        return list(conversion.to_pair(weights, scale, g_min=self.g_min))

    def convert_back_to_weights(
        self, conductances: Sequence[jax.Array], params: Params
    ) -> jax.Array:
        """Converts `[g_pos, g_neg]` back to weights.

        Args:
          conductances: the two conductances, in µS.
          params: the parameters that `convert_to_conductances` returned beside them.

        Raises:
          ValueError: unless there are two conductances, and a `scale_ratio`.
        """
        require_count(
            conductances, 2, "a single pair has two conductances, g_pos and g_neg"
        )
        g_pos, g_neg = conductances
        return conversion.from_pair(g_pos, g_neg, require(params, "scale_ratio"))
