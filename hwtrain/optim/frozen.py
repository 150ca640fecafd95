"""Which weights an optimiser never updates, by the structure of what it computes.

Neither values nor gradients decide: a gradient of zero, or a learning rate that warms
up from zero, leaves a weight trained. What decides is the traced program of the
optimiser: an update is constant if it is zero whatever comes in, and if the weight's
own gradient has no part in it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Literal

from hwtrain import paths
from hwtrain.plan import Plan


def without_masked(plan: Plan, tree: Any) -> Plan:
    """Returns the plan without the weights that a mask around hides in a tree.

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
      updates: gradients; only their structure, shapes and dtypes count, as of the
        other arguments.
      state: the optimiser's state.
      params: the parameters.
      extra_args: what else the optimiser is called with.
    """

    def update(updates: Any, state: Any, params: Any) -> Any:
        return base.update(updates, state, params, **extra_args)

    try:
        first = jax.make_jaxpr(base.init)(params)
        program, shapes = jax.make_jaxpr(update, return_shape=True)(
            updates, state, params
        )
    except jax.errors.ConcretizationTypeError:
        return frozenset()  # it looks at values, which only an eager step has
    gradients = [_Fact(False, frozenset({path})) for path in paths.leaves(updates)]
    others = [_UNKNOWN] * len(jax.tree.leaves(params))
    memory = _facts(first, [_UNKNOWN] * len(others))
    if len(memory) != len(jax.tree.leaves(state)):
        memory = [_UNKNOWN] * len(jax.tree.leaves(state))
    while True:  # by induction: what is zero at first and stays so, is zero
        found = _facts(program, [*gradients, *memory, *others])
        after = found[len(found) - len(memory) :]
        next_memory = [_joined(old, new) for old, new in zip(memory, after)]
        if next_memory == memory:
            break
        memory = next_memory
    names = paths.leaves(shapes[0])
    return frozenset(
        path
        for path, fact in zip(names, found)
        if fact.zero and path not in fact.sources
    )


class _Fact(NamedTuple):
    """What is known of a value: that it is zero, and whose gradients it is made of."""

    zero: bool
    sources: frozenset[str]


_UNKNOWN = _Fact(False, frozenset())

# Zero if their first operand is.
_KEEP_ZERO = frozenset(
    "abs broadcast_in_dim convert_element_type copy cumsum div expand_dims gather "
    "integer_pow neg reduce_max reduce_min reduce_sum reduce_precision reshape rev "
    "sharding_constraint sign slice sqrt square squeeze transpose".split()
)
_PRODUCTS = frozenset(("mul", "dot_general"))
# Zero if all their operands are.
_SUMS = frozenset(("add", "add_any", "concatenate", "max", "min", "pad", "sub"))


def _joined(old: _Fact, new: _Fact) -> _Fact:
    return _Fact(old.zero and new.zero, old.sources | new.sources)


def _facts(program: ClosedJaxpr, inputs: list[_Fact]) -> list[_Fact]:
    """Returns what is known of a program's results."""
    jaxpr = program.jaxpr
    known: dict[Any, _Fact] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, value in zip(jaxpr.constvars, program.consts):
        concrete = isinstance(value, np.ndarray | np.generic | int | float)
        known[variable] = _Fact(concrete and not np.any(value), frozenset())

    def fact(value: Any) -> _Fact:
        if isinstance(value, Literal):
            return _Fact(not np.any(value.val), frozenset())
        return known[value]

    for equation in jaxpr.eqns:
        operands = [fact(value) for value in equation.invars]
        known.update(zip(equation.outvars, _results(equation, operands), strict=True))
    return [fact(value) for value in jaxpr.outvars]


def _results(equation: Any, operands: list[_Fact]) -> list[_Fact]:
    """Returns what is known of the results of one operation."""
    name, parameters = equation.primitive.name, equation.params
    sources = frozenset[str]().union(*(operand.sources for operand in operands))
    if name == "cond":
        branches = [_facts(branch, operands[1:]) for branch in parameters["branches"]]
        return [
            _Fact(all(fact.zero for fact in facts), sources)
            for facts in zip(*branches, strict=True)
        ]
    inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
    if name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"):
        if isinstance(inner, ClosedJaxpr):
            return _facts(inner, operands)
    if name == "optimization_barrier":
        return operands
    zeros: list[bool] = [operand.zero for operand in operands]
    zero = _ZERO.get(name, _never)(zeros)
    return [_Fact(zero, sources) for _ in equation.outvars]


def _never(zeros: list[bool]) -> bool:
    del zeros
    return False


def _first(zeros: list[bool]) -> bool:
    return bool(zeros) and zeros[0]


_ZERO: dict[str, Callable[[list[bool]], bool]] = {
    **dict.fromkeys(_KEEP_ZERO, _first),
    **dict.fromkeys(_PRODUCTS, any),
    **dict.fromkeys(_SUMS, all),
    "select_n": lambda zeros: all(zeros[1:]),
}
