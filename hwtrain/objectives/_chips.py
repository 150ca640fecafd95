"""The loss on several chips at once: mean, worst case and mean of the tail."""

from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._arrays import paths
from hwtrain._arrays.derivatives import straight_through
from hwtrain._arrays.random import draw_key
from hwtrain._errors import InputError
from hwtrain._plan.nominal import check_nominal
from hwtrain._plan.plan import Plan
from hwtrain.chips import program_chip
from hwtrain.objectives._perturbations import Loss


def of_chips(
    loss: Loss, plan: Plan, *, chips: int, share: float = 1.0, has_aux: bool = False
) -> Loss:
    r"""Returns the mean loss of the worst share of several chips.

    .. math:: L'(W) = \mathrm{CVaR}_a\big(L(W_1), \dots, L(W_k)\big)

    as in `tail_mean`: with a = 1 all chips count, with a = 1 / k only the worst. Each
    step draws k new chips, with the frozen mismatch of their hardware and, if it has a
    noise model, programming noise, just after programming. The gradient at a chip's
    weights is passed to the nominal ones (straight-through). The model's own draws are
    added, independently for each chip.

    Args:
      loss: `loss(params, key, *batch)`.
      plan: the plan of the model.
      chips: k.
      share: a, above 0 and at most 1.
      has_aux: whether the loss also returns auxiliary data; that of all chips is
        returned, with a leading axis.

    Raises:
      ValueError: if no weight's hardware has a mismatch or a noise model, for fewer
        than one chip, or for a share out of bounds.

    References:
      Rockafellar and Uryasev, Optimization of conditional value-at-risk, Journal of
      Risk 2000.
    """
    if not any(weight.hardware.frozen for weight in plan.weights):
        raise InputError(
            "chips do not differ, because no weight's hardware has a mismatch or a "
            "noise model; write Hardware(mismatch=MismatchParameter(...))"
        )
    if chips < 1 or not 0 < share <= 1:
        raise InputError(
            "expected at least one chip, and a share above 0 and at most 1; got "
            f"chips={chips}, share={share}"
        )

    def robust(params: Any, key: jax.Array, *batch: Any) -> Any:
        check_nominal(plan, params, "the objective of chips")

        def one(key: jax.Array) -> Any:
            return loss(_on_chip(params, plan, key), key, *batch)

        keys = jax.random.split(draw_key(key, "", "chips"), chips)
        result = jax.vmap(one)(keys)
        if has_aux:
            return tail_mean(result[0], share), result[1]
        return tail_mean(result, share)

    return robust


def tail_mean(values: jax.Array, share: float) -> jax.Array:
    r"""Returns the mean of the largest share of values (conditional value at risk).

    .. math:: \mathrm{CVaR}_a(v) = \frac{1}{a k} \sum_{i=1}^{k}
        \mathrm{clip}(a k - i + 1,\ 0,\ 1)\, v_{(i)}, \qquad
        v_{(1)} \ge v_{(2)} \ge \dots

    >>> values = jnp.array([1.0, 4.0, 2.0, 3.0])
    >>> print(tail_mean(values, 1.0), tail_mean(values, 0.375), tail_mean(values, 0.25))
    2.5 3.6666667 4.0

    Args:
      values: `[k]`.
      share: a, above 0 and at most 1; below 1 / k, the result is the largest value.
    """
    count = share * values.shape[0]
    places = jnp.arange(values.shape[0], dtype=jnp.float32)
    weights = jnp.clip(count - places, 0, 1).astype(values.dtype)
    ordered = jnp.sort(values, descending=True)
    return jnp.sum(weights * ordered) / jnp.sum(weights)


def _on_chip(params: Any, plan: Plan, key: jax.Array) -> Any:
    """Returns the parameters of one chip, with straight-through gradients."""
    chip = program_chip(jax.lax.stop_gradient(params), plan, key)
    values = paths.leaves(chip.at(0.0) if chip.weights else chip.params)
    return paths.map_leaves(
        lambda path, leaf: (
            straight_through(leaf, values[path]) if path in plan else leaf
        ),
        params,
    )
