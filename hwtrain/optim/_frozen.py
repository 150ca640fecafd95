"""Finds the weights that an optimiser never updates, from its traced program.

Neither values nor gradients decide: a gradient of zero, or a learning rate that warms
up from zero, leaves a weight trained. A weight is frozen if, in the traced program of
the optimiser, its update is zero for all inputs and does not depend on the weight's own
gradient.
"""

import dataclasses
from typing import Any

import jax
import optax

from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain.optim._signs import UNKNOWN, Fact, facts, invariant


def without_masked(plan: Plan, tree: Any) -> Plan:
    """Returns the plan without the weights that an outer mask hides in a tree.

    Args:
      plan: the plan.
      tree: parameters or updates, as `optax.masked` and `optax.partition` give them.
    """

    def is_mask(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_mask)
    masked = [paths.path_of(keys) for keys, leaf in found if is_mask(leaf)]
    kept = tuple(
        weight
        for weight in plan.weights
        if not any(f"{weight.path}/".startswith(f"{path}/") for path in masked)
    )
    if len(kept) == len(plan.weights):
        return plan
    return dataclasses.replace(plan, weights=kept)


def untouched(
    base: optax.GradientTransformationExtraArgs,
    updates: optax.Updates,
    state: Any,
    params: optax.Params,
    extra_args: dict[str, Any],
) -> frozenset[str]:
    """Returns the paths of the parameters that an optimiser never updates.

    Args:
      base: the optimiser.
      updates: gradients. As for the other arguments, only the structure, shapes and
        dtypes are used.
      state: the optimiser's state.
      params: the parameters.
      extra_args: further arguments of the optimiser's `update`.
    """

    def update(updates: Any, state: Any, params: Any) -> Any:
        return base.update(updates, state, params, **extra_args)

    try:
        first = jax.make_jaxpr(base.init)(params)
        program, shapes = jax.make_jaxpr(update, return_shape=True)(
            updates, state, params
        )
    except jax.errors.ConcretizationTypeError:
        return frozenset()  # the update reads concrete values, so it runs eagerly
    gradients = [UNKNOWN.of(frozenset({path})) for path in paths.leaves(updates)]
    others = [UNKNOWN] * len(jax.tree.leaves(params))
    memory = facts(first, [UNKNOWN] * len(others))
    if len(memory) != len(jax.tree.leaves(state)):
        memory = [UNKNOWN] * len(jax.tree.leaves(state))

    def step(memory: list[Fact]) -> list[Fact]:
        found = facts(program, [*gradients, *memory, *others])
        return found[len(found) - len(memory) :]

    memory = invariant(step, memory)
    found = facts(program, [*gradients, *memory, *others])
    names = paths.leaves(shapes[0])
    return frozenset(
        path
        for path, fact in zip(names, found)
        if fact.zero and path not in fact.sources
    )
