"""From weights to conductances and back."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import jax
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from hwtrain.hardware.configuration import CONFIG, NonNegative, Positive
from hwtrain.physics import conductance


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SinglePairConductanceConverter:
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
    per_column: bool = False
    """A scale for each column (last axis) instead of one for the tensor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.g_min >= self.g_max:
            raise ValueError(
                f"g_min must be below g_max, got g_min={self.g_min} µS and "
                f"g_max={self.g_max} µS"
            )
        return self

    def convert_to_conductances(
        self, weights: jax.Array
    ) -> tuple[list[jax.Array], dict[str, Any]]:
        """Returns `[g_pos, g_neg]` in µS and `{"scale_ratio": k}` in µS per weight.

        Args:
          weights: `[..., columns]`, the whole array one tensor to the scale.
        """
        scale = conductance.scale_ratio(
            weights, self.g_max - self.g_min, per_column=self.per_column
        )
        pair = conductance.to_pair(weights, scale, g_min=self.g_min)
        return list(pair), {"scale_ratio": scale}

    def convert_back_to_weights(
        self, conductances: Sequence[jax.Array], params: dict[str, Any]
    ) -> jax.Array:
        """Returns the weights of `[g_pos, g_neg]`.

        Args:
          conductances: the two conductances, in µS.
          params: what `convert_to_conductances` returned beside them.

        Raises:
          ValueError: if there are not two conductances, or no `scale_ratio`.
        """
        if len(conductances) != 2:
            raise ValueError(
                f"a single pair has two conductances, g_pos and g_neg; "
                f"got {len(conductances)}"
            )
        if "scale_ratio" not in params:
            raise ValueError(
                "params must hold scale_ratio, as convert_to_conductances returned "
                f"it; got the keys {sorted(params)}"
            )
        g_pos, g_neg = conductances
        return conductance.from_pair(g_pos, g_neg, params["scale_ratio"])
