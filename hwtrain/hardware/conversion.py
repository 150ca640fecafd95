"""What every conversion between weights and conductances checks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

Params = dict[str, Any]
"""What a conversion to conductances returns beside them."""


def check_range(g_min: float, g_max: float) -> None:
    """Raises `ValueError` unless the range of conductances, in µS, is one."""
    if g_min >= g_max:
        raise ValueError(
            f"g_min must be below g_max, got g_min={g_min} µS and g_max={g_max} µS"
        )


def require_finite(weights: jax.Array) -> jax.Array:
    """Returns the weights in float32; raises `ValueError` if some are not finite."""
    # A traced array has no values to look at; there they propagate.
    weights = jnp.asarray(weights, jnp.float32)
    if not isinstance(weights, Tracer):
        count = int(jnp.sum(~jnp.isfinite(weights)))
        if count:
            raise ValueError(
                "weights must be finite to become conductances; of the array of shape "
                f"{weights.shape}, {count} are NaN or infinite. Look for a diverged "
                "training step"
            )
    return weights


def require_count(conductances: Sequence[jax.Array], count: int, expected: str) -> None:
    """Raises `ValueError` unless there are `count` conductances."""
    if len(conductances) != count:
        raise ValueError(f"{expected}; got {len(conductances)}")


def require(params: Params, name: str) -> Any:
    """Returns one of the parameters of a conversion; raises `ValueError` if missing."""
    if name not in params:
        raise ValueError(
            f"params must hold {name}, as convert_to_conductances returned "
            f"it; got the keys {sorted(params)}"
        )
    return params[name]
