"""Conversion of weights to conductances and back, and the checks of converters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from hwtrain._errors import InputError
from hwtrain._parts.part import Described

# An all-zero tensor has no largest weight; this floor keeps its scale finite.
_W_MAX_FLOOR = 1e-7


def scale_ratio(
    weights: jax.Array, g_range: float, *, per_column: bool = False
) -> jax.Array:
    r"""Returns the conductance per unit of weight.

    .. math:: k = \frac{g_\text{max} - g_\text{min}}{\max |w|}

    >>> print(scale_ratio(jnp.array([[0.5, -1.0]]), 25.0))
    25.0

    Args:
      weights: `[..., columns]`.
      g_range: g_max - g_min, in µS.
      per_column: use a scale per column instead of one for the tensor.

    Returns:
      In µS per unit of weight: `[]`, or `[1, ..., columns]` per column. For a tensor of
      zeros, the range divided by 1e-7.
    """
    axes = tuple(range(weights.ndim - 1)) if per_column else None
    w_max = jnp.max(jnp.abs(weights), axis=axes, keepdims=per_column)
    return g_range / jnp.maximum(w_max, _W_MAX_FLOOR)


def to_pair(
    weights: jax.Array, scale: ArrayLike, *, g_min: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    r"""Converts weights to pairs of conductances, whose differences represent them.

    .. math:: g^\pm = g_\text{min} + \max(\pm k w, 0)

    >>> g_pos, g_neg = to_pair(jnp.array([0.5, -1.0]), 25.0)
    >>> print(g_pos, g_neg)
    [12.5  0. ] [ 0. 25.]

    Args:
      weights: weights of any shape.
      scale: k, in µS per unit of weight, broadcastable against the weights.
      g_min: conductance of a device that is off, in µS.

    Returns:
      `(g_pos, g_neg)` in µS, each of the shape of the weights.
    """
    g = weights * scale
    return jnp.maximum(g, 0) + g_min, jnp.maximum(-g, 0) + g_min


def from_pair(g_pos: jax.Array, g_neg: jax.Array, scale: ArrayLike) -> jax.Array:
    r"""Converts conductance pairs to weights.

    .. math:: w = (g^+ - g^-) / k

    >>> print(from_pair(jnp.array([12.5, 0.0]), jnp.array([0.0, 25.0]), 25.0))
    [ 0.5 -1. ]

    Args:
      g_pos: positive conductances, in µS.
      g_neg: negative conductances, in µS.
      scale: k, in µS per unit of weight, broadcastable against the conductances.
    """
    return (g_pos - g_neg) / scale


def to_pairs(
    weights: jax.Array,
    scale: ArrayLike,
    factors: Sequence[float],
    *,
    g_min: float,
    g_max: float,
) -> list[jax.Array]:
    r"""Converts weights to sums of weighted conductance differences.

    .. math:: g_i^\pm = \mathrm{clip}\Big(\frac{\max(\pm k w, 0) - b_i}{f_i}
        + g_\text{min},\ g_\text{min},\ g_\text{max}\Big), \qquad
        b_i = \sum_{j<i} f_j (g_\text{max} - g_\text{min})

    The pairs are filled one after the other, in the order of the factors.

    >>> pairs = to_pairs(jnp.array([0.7, -0.25]), 100.0, (1, 3), g_min=0.0, g_max=25.0)
    >>> print(*pairs)
    [25.  0.] [ 0. 25.] [15.  0.] [0. 0.]

    Args:
      weights: weights of any shape.
      scale: k, in µS per unit of weight, broadcastable against the weights.
      factors: factor on the difference of each pair, positive.
      g_min: conductance of a device that is off, in µS.
      g_max: the largest conductance, in µS.

    Returns:
      `[g_pos, g_neg]` of the first pair, then of the next, in µS.
    """
    g = weights * scale
    conductances, filled = [], 0.0
    for factor in factors:
        for sign in (1, -1):
            rest = (jnp.maximum(sign * g, 0) - filled) / factor
            conductances.append(jnp.clip(rest + g_min, g_min, g_max))
        filled += factor * (g_max - g_min)
    return conductances


def beyond(
    conductances: Sequence[jax.Array], excess: jax.Array, factors: Sequence[float]
) -> list[jax.Array]:
    r"""Raises the conductances of weights beyond the largest one of their scale.

    .. math:: g_i^\pm \leftarrow g_i^\pm + \max(\pm e, 0) / \sum_j f_j

    All devices of the weight's sign share the excess, so that the weights of the pairs
    grow by it.

    >>> print(*beyond([jnp.array([25.0]), jnp.array([0.0])], jnp.array([5.0]), (1.0,)))
    [30.] [0.]

    Args:
      conductances: `[g_pos, g_neg]` of the first pair, then of the next, in µS.
      excess: e, in µS, signed; zero for a weight within the scale.
      factors: factor on the difference of each pair, positive.
    """
    share = excess / sum(factors)
    signs = (1, -1) * len(factors)
    return [g + jnp.maximum(sign * share, 0) for g, sign in zip(conductances, signs)]


def from_pairs(
    conductances: Sequence[jax.Array], scale: ArrayLike, factors: Sequence[float]
) -> jax.Array:
    r"""Converts several conductance pairs to weights.

    .. math:: w = \frac{1}{k} \sum_i f_i (g_i^+ - g_i^-)

    >>> g = [jnp.array([25.0]), jnp.array([0.0]), jnp.array([5.0]), jnp.array([0.0])]
    >>> print(from_pairs(g, 100.0, (1, 3)))
    [0.4]

    Args:
      conductances: `[g_pos, g_neg]` of the first pair, then of the next, in µS.
      scale: k, in µS per unit of weight, broadcastable against the conductances.
      factors: factor on the difference of each pair.
    """
    total = jnp.zeros_like(conductances[0])
    for factor, g_pos, g_neg in zip(factors, conductances[::2], conductances[1::2]):
        total = total + factor * (g_pos - g_neg)
    return total / scale


def to_device(
    weights: jax.Array, *, g_min: float, g_max: float, per_column: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Converts weights to single conductances that use the whole range.

    .. math:: g = k (w - \min w) + g_\text{min}, \qquad
        k = \frac{g_\text{max} - g_\text{min}}{\max w - \min w}

    >>> g, scale, w_min = to_device(jnp.array([-1.0, 0.0, 1.0]), g_min=5.0, g_max=25.0)
    >>> print(g, scale, w_min)
    [ 5. 15. 25.] 10.0 -1.0

    Args:
      weights: `[..., columns]`.
      g_min: the smallest conductance, in µS.
      g_max: the largest conductance, in µS.
      per_column: use a scale per column instead of one for the tensor.

    Returns:
      `(g, k, min w)`: conductances in µS, and for each tensor (`[]`) or column
      (`[1, ..., columns]`) the scale in µS per unit of weight and the smallest weight.
      Weights that are all equal have no range: they become g_min, and their scale is
      that of the largest absolute weight.
    """
    axes = tuple(range(weights.ndim - 1)) if per_column else None
    low = jnp.min(weights, axis=axes, keepdims=per_column)
    high = jnp.max(weights, axis=axes, keepdims=per_column)
    flat = jnp.maximum(jnp.maximum(jnp.abs(low), jnp.abs(high)), _W_MAX_FLOOR)
    scale = (g_max - g_min) / jnp.where(high > low, high - low, flat)
    return jnp.asarray((weights - low) * scale + g_min), scale, low


def to_device_by_scale(
    weights: jax.Array, scale: ArrayLike, w_min: ArrayLike, *, g_min: float
) -> jax.Array:
    r"""Converts weights to single conductances by a given scale.

    .. math:: g = \max(k (w - \min w) + g_\text{min},\ 0)

    >>> print(to_device_by_scale(jnp.array([-2.0, 1.5]), 10.0, -1.0, g_min=5.0))
    [ 0. 30.]

    Args:
      weights: weights of any shape; they may exceed the range of the scale.
      scale: k, in µS per unit of weight, broadcastable against the weights.
      w_min: the weight at g_min.
      g_min: the conductance of `w_min`, in µS.
    """
    return jnp.maximum((weights - w_min) * scale + g_min, 0)


def from_device(
    g: jax.Array, scale: ArrayLike, w_min: ArrayLike, *, g_min: float
) -> jax.Array:
    r"""Converts single conductances to weights.

    .. math:: w = \min w + (g - g_\text{min}) / k

    >>> print(from_device(jnp.array([5.0, 25.0]), 10.0, -1.0, g_min=5.0))
    [-1.  1.]

    Args:
      g: conductances, in µS.
      scale: k, in µS per unit of weight, broadcastable against the conductances.
      w_min: the smallest weight.
      g_min: the conductance of the smallest weight, in µS.
    """
    return jnp.asarray(w_min) + (g - g_min) / scale


def to_curves(
    weights: jax.Array, w_max: ArrayLike, curves: Sequence[Sequence[float]]
) -> list[jax.Array]:
    r"""Converts weights to conductances that are given as curves over the weight.

    The points of a curve are evenly spaced between :math:`-A` and :math:`A`; the curve
    is linear between them.

    >>> print(*to_curves(jnp.array([0.5, -1.0]), 1.0, [(0.0, 0.0, 25.0)]))
    [12.5  0. ]

    Args:
      weights: weights of any shape.
      w_max: A, the largest absolute weight, broadcastable against the weights.
      curves: the conductances of each device at the points, in µS.

    Returns:
      The conductances of each curve, in µS, of the shape of the weights. A weight
      beyond A gets the conductance of A.
    """
    w_max = jnp.maximum(jnp.asarray(w_max), _W_MAX_FLOOR)
    return [
        jnp.interp(weights / w_max, jnp.linspace(-1, 1, len(curve)), jnp.asarray(curve))
        for curve in curves
    ]


Params = dict[str, Any]
"""Parameters of a conversion to conductances, returned beside them."""


class DescribedConverter(Described):
    """Base of converters that `inspect` describes by type and range."""

    if TYPE_CHECKING:
        type: Any
        g_min: float
        g_max: float

    def describe(self) -> str:
        """Returns its type."""
        return self.type

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cell: its description, and its range of conductances."""
        span = f"{self.g_min:g} to {self.g_max:g} µS"
        return {ctx.column: f"{self.describe()}, {span}"}


def check_range(g_min: float, g_max: float) -> None:
    """Raises `ValueError` unless the range of conductances, in µS, is not empty."""
    if g_min >= g_max:
        raise InputError(
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
    # A traced array cannot be checked; there, NaN and infinity propagate.
    weights = jnp.asarray(weights, jnp.float32)
    if not isinstance(weights, Tracer):
        count = int(jnp.sum(~jnp.isfinite(weights)))
        if count:
            raise InputError(
                "weights must be finite to become conductances; of the array of shape "
                f"{weights.shape}, {count} are NaN or infinite. Look for a diverged "
                "training step"
            )
    return weights


def require_count(conductances: Sequence[jax.Array], count: int, expected: str) -> None:
    """Raises `ValueError` unless there are `count` conductances."""
    if len(conductances) != count:
        raise InputError(f"{expected}; got {len(conductances)}")


def require(params: Params, name: str) -> Any:
    """Returns one of the parameters of a conversion; raises `ValueError` if missing."""
    if name not in params:
        raise InputError(
            f"params must hold {name}, as convert_to_conductances returned "
            f"it; got the keys {sorted(params)}"
        )
    return params[name]
