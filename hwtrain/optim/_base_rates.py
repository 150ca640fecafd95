"""The learning rates of a base optimiser, read from its state or measured.

A base that treats all parameters alike is measured on one scalar. A base with masks or
labels is measured for each weight, on a tree with the parameters' paths and ranks whose
arrays have one element each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hwtrain._arrays import paths
from hwtrain._errors import InputError

Rates = Any
"""One learning rate for all weights, or a learning rate for each weight by path."""


def injected(state: Any) -> Any:
    """Returns the learning rate in a base's state; `None` unless there is exactly one.

    A rate in a part that sees only some of the parameters does not hold for all.

    Args:
      state: the base's state.
    """
    found = _learning_rates(state)
    if len(found) != 1 or any(_learning_rates(part) for part in _parts(state)):
        return None
    return found[0]


def init_measured(
    base: optax.GradientTransformation,
    state: Any,
    params: Any,
    weights: Sequence[str],
) -> Any:
    """Returns the base's state over the arrays that it is measured on.

    Args:
      base: the optimiser.
      state: its state over the parameters.
      params: the parameters that it sees.
      weights: the paths of the weights whose learning rates are needed.

    Raises:
      ValueError: if the base does not run on these arrays.
    """
    try:
        if not _parts(state):
            return base.init(_scalar())
        one = base.init(_small(params))
    except Exception as error:
        raise _unmeasurable(error) from error
    number = len(weights)
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (number, *jnp.shape(leaf))), one
    )


def measure(
    base: optax.GradientTransformationExtraArgs,
    state: Any,
    measured: Any,
    params: Any,
    weights: Sequence[str],
    extra_args: dict[str, Any],
) -> tuple[Rates, Any]:
    """Returns the base's learning rates at this step, and the measured state after it.

    Args:
      base: the optimiser.
      state: its state over the parameters, after this step.
      measured: from `init_measured`, or from the step before.
      params: the parameters that it sees.
      weights: the paths of the weights whose learning rates are needed.
      extra_args: further arguments of the optimiser's `update`.

    Raises:
      ValueError: if the base does not run on the arrays that it is measured on.
    """
    try:
        if not _parts(state):
            one = jax.tree.map(jnp.ones_like, _scalar())
            step: Any
            step, measured = base.update(one, measured, _scalar(), **extra_args)
            return -step["unit"], measured
        zeros = _small(params)

        def alone(number: jax.Array, measured: Any) -> Any:
            # The others' gradients are zero, so a global norm is that of one scalar.
            def gradient(path: str, leaf: jax.Array) -> jax.Array:
                here = path in weights and number == weights.index(path)
                return jnp.where(here, jnp.ones_like(leaf), 0)

            return base.update(
                paths.map_leaves(gradient, zeros), measured, zeros, **extra_args
            )

        steps, measured = jax.vmap(alone)(jnp.arange(len(weights)), measured)
    except Exception as error:
        raise _unmeasurable(error) from error
    leaves = paths.leaves(steps)
    rates = {
        path: -leaves[path][number].reshape(()) for number, path in enumerate(weights)
    }
    return rates | _said(state, params, weights), measured


def _said(state: Any, params: Any, weights: Sequence[str]) -> dict[str, Any]:
    """Returns the learning rates in the states of a base's parts, by weight.

    Only parts that keep arrays for their parameters are found; a part without, such as
    SGD, is measured exactly.
    """
    said = {}
    for part in _parts(state):
        rate = injected(part)
        if rate is not None:
            for tree in _trees_of(part, params):
                kept = paths.leaves(tree)
                said.update({path: rate for path in weights if path in kept})
        said.update(_said(part, params, weights))
    return said


def _trees_of(state: Any, params: Any) -> list[Any]:
    """Returns the trees in a state that have an entry for each parameter."""

    def like(part: Any) -> bool:
        return isinstance(part, Mapping) and part.keys() == params.keys()

    return [part for part in jax.tree.leaves(state, is_leaf=like) if like(part)]


def _parts(state: Any) -> list[Any]:
    """Returns the states of the base's parts that see only some of the parameters."""

    def partial(part: Any) -> bool:
        return isinstance(part, optax.MaskedState)

    found = jax.tree.leaves(state, is_leaf=partial)
    return [part.inner_state for part in found if partial(part)]


def _learning_rates(state: Any) -> list[Any]:
    return [value for _, value in optax.tree.get_all_with_path(state, "learning_rate")]


def _scalar() -> dict[str, jax.Array]:
    return {"unit": jnp.zeros([], jnp.float32)}


def _small(params: Any) -> Any:
    """Returns a tree of the same paths and ranks; labels may depend on either."""
    return jax.tree.map(
        lambda leaf: jnp.zeros((1,) * jnp.ndim(leaf), jnp.float32), params
    )


def _unmeasurable(error: Exception) -> ValueError:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return InputError(
        "hardware_aware cannot measure the base optimiser's learning rate, because "
        f"the base does not run on arrays of one element ({text}). Give the ranges "
        "their own: hardware_aware(base, plan, input_range_learning_rate=1e-3), a "
        "number or a schedule"
    )
