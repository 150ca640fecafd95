"""What every conversion between weights and conductances checks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from hwtrain._parts.part import Described

Params = dict[str, Any]
"""What a conversion to conductances returns beside them."""


class DescribedConverter(Described):
    """What `inspect` says of a converter: its type, and its conductances."""

    if TYPE_CHECKING:
        type: Any
        g_min: float
        g_max: float

    def describe(self) -> str:
        """Returns its type."""
        return self.type

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cell: itself, and its conductances."""
        span = f"{self.g_min:g} to {self.g_max:g} µS"
        return {ctx.column: f"{self.describe()}, {span}"}


def check_range(g_min: float, g_max: float) -> None:
    """Raises `ValueError` unless the range of conductances, in µS, is one."""
    if g_min >= g_max:
        raise ValueError(
            f"g_min must be below g_max, got g_min={g_min} µS and g_max={g_max} µS"
        )


def pair_names(pairs: int) -> tuple[str, ...]:
    """Returns the names of the conductances of several pairs, in order.

    >>> pair_names(2)
    ('g_pos_0', 'g_neg_0', 'g_pos_1', 'g_neg_1')
    """
    return tuple(f"{g}_{pair}" for pair in range(pairs) for g in ("g_pos", "g_neg"))


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
