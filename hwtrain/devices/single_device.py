"""A conductance converter with one device for each weight."""

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


@register("converter", "single_device")
class SingleDeviceConductanceConverter(ConductanceConverter):
    r"""A weight as one conductance.

    .. math:: g = k (w - \min w) + g_\text{min}, \qquad
        k = \frac{g_\text{max} - g_\text{min}}{\max w - \min w}

    >>> import jax.numpy as jnp
    >>> converter = SingleDeviceConductanceConverter(g_min=5.0, g_max=25.0)
    >>> (g,), params = converter.convert_to_conductances(jnp.array([[-1.0, 0.0, 1.0]]))
    >>> print(g, params["scale_ratio"], params["min"])
    [[ 5. 15. 25.]] 10.0 -1.0

    References:
      Falcone et al., All-in-one analog AI hardware: on-chip training and inference with
      conductive-metal-oxide/HfOx ReRAM devices, arXiv:2502.04524, 2025.
    """

    type: Literal["single_device"] = "single_device"
    g_max: Positive = 88.199997
    """Conductance of the largest weight, in µS."""
    g_min: NonNegative = 9.0
    """Conductance of the smallest weight, in µS."""
    per_column: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    """Use a scale per column (last axis) instead of one for the tensor."""

    scales: ClassVar[tuple[str, ...]] = ("scale_ratio", "min")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_range(self.g_min, self.g_max)
        return self

    def convert_to_conductances(
        self, weights: jax.Array
    ) -> tuple[list[jax.Array], Params]:
        """Returns `[g]` in µS, and `{"scale_ratio": k, "min": min w}`.

        Weights that are all equal become g_min.

        Args:
          weights: `[..., columns]`, scaled as one tensor.

        Raises:
          ValueError: for weights that are not finite, outside of `jax.jit`.
        """
        g, scale, low = conversion.to_device(
            require_finite(weights),
            g_min=self.g_min,
            g_max=self.g_max,
            per_column=self.per_column,
        )
        return [g], {"scale_ratio": scale, "min": low}

    def convert_by_scale(self, weights: jax.Array, params: Params) -> list[jax.Array]:
        """Converts weights to `[g]` in µS by the scale of others.

        Args:
          weights: weights that may exceed the range of the scale: their conductance
            then exceeds [g_min, g_max], and is never negative.
          params: the parameters that `convert_to_conductances` returned for the others.

        Raises:
          ValueError: if a parameter is missing.
        """
        scale, low = require(params, "scale_ratio"), require(params, "min")
        return [conversion.to_device_by_scale(weights, scale, low, g_min=self.g_min)]

    def convert_back_to_weights(
        self, conductances: Sequence[jax.Array], params: Params
    ) -> jax.Array:
        """Converts `[g]` back to weights.

        Args:
          conductances: the conductance, in µS, in a list.
          params: the parameters that `convert_to_conductances` returned beside it.

        Raises:
          ValueError: unless there is exactly one conductance, and all parameters.
        """
        require_count(conductances, 1, "a single device has one conductance, g")
        scale, low = require(params, "scale_ratio"), require(params, "min")
        return conversion.from_device(conductances[0], scale, low, g_min=self.g_min)
