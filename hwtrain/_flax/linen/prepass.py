"""Makes the plan of a Linen model by an abstract run of the plain model.

Only a call reveals a Linen model's layers. The pre-pass runs it under `jax.eval_shape`,
at trace time, with an interceptor that records modules.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.core import meta, unfreeze
from jax.tree_util import SequenceKey

from hwtrain._arrays import paths
from hwtrain._flax.attributes import plain_class
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.linen.kept_leaves import AnyLeaf, kept
from hwtrain._flax.linen.layers import describe, names_of, watched_call
from hwtrain._flax.linen.scopes import before_the_call, belonging
from hwtrain._flax.provenance import Operands, Provenance
from hwtrain._plan.layer import Layer, joined, unasked
from hwtrain._plan.plan import Plan
from hwtrain._plan.planning import make_plan, real
from hwtrain._plan.rules import Assignment
from hwtrain.sockets._table import is_rewriting, when_registered

analog_trace = jax.make_user_context(default_value=None)
"""Part of every jit cache key, so that a trace of an inner `nn.jit` by a plain call is
not reused for an analog one, or the other way round."""

fresh = itertools.count()
"""Numbers that make a context unlike all earlier ones: a run that records modules must
trace all of them, including those in a jit that has traced equal ones."""

_PASSING = ("cache", "intermediates", "perturbations")
"""Collections that are not needed to evaluate a model."""


def linen_plan(
    module: nn.Module,
    assigned: Assignment,
    variables: Mapping[str, Any],
    rngs: Mapping[str, Any],
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Plan:
    """Returns the plan of a call.

    Args:
      module: the unbound analog model.
      assigned: the arguments of `analogize`.
      variables: the model's variables; arrays, tracers, or shapes and dtypes.
      rngs: the call's rngs.
      method: name of the called method.
      args: its arguments.
      kwargs: its keyword arguments.
    """
    leaves, treedef = jax.tree.flatten((variables, rngs, args, kwargs))
    abstract, static = [], []
    for leaf in leaves:
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        abstract.append(_abstract(leaf) if is_array else None)
        static.append(None if is_array else leaf)
    shapes = parameter_shapes(variables.get("params", {}))
    call = _Call(
        module,
        assigned,
        tuple(shapes.items()),
        method,
        treedef,
        tuple(abstract),
        tuple(static),
    )
    try:
        hash(call)
    except TypeError:  # an unhashable module or argument
        return _plan(call)
    return _cached_plan(call)


def parameter_shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters by path."""
    # As shapes: a box of a shape cannot be opened where a mesh is set.
    leaves = paths.leaves(jax.eval_shape(meta.unbox, params))
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    # The dtype in JAX, which is not NumPy's float64.
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.typeof(leaf).dtype)


class _Call(NamedTuple):
    """An abstract call: everything that its plan depends on."""

    module: Any
    assigned: Assignment
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    method: str
    treedef: Any
    abstract: tuple[jax.ShapeDtypeStruct | None, ...]
    static: tuple[Any, ...]


def _plan(call: _Call) -> Plan:
    # A method other than __call__ need not reach every layer of a rule.
    check = call.method == "__call__"
    layers, users = _record(call)
    plan = make_plan(call.assigned, layers, dict(call.shapes), users, check=check)
    variables = jax.tree.unflatten(call.treedef, call.abstract)[0]
    real(plan, variables.get("params", {}))
    return dataclasses.replace(plan, state=_state(variables, plan.prefix))


def _state(variables: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    """Returns the paths of a model's variables that are not parameters.

    Leaves out collections that a call recreates, and those with lists or tuples, which
    hold the model's reports on itself (`sow`), not variables that it needs.
    """
    found = []
    for collection, tree in variables.items():
        # Boxes are not opened: on a mesh, that would constrain shapes without values.
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_boxed)
        sown = any(isinstance(key, SequenceKey) for keys, _ in leaves for key in keys)
        if collection not in ("params", *_PASSING) and not sown:
            at = paths.join([collection]) + (f"/{prefix}/" if prefix else "/")
            found += [f"{at}{paths.path_of(keys)}" for keys, _ in leaves]
    return tuple(found)


def _boxed(node: Any) -> bool:
    return isinstance(node, meta.AxisMetadata)


_cached_plan = functools.lru_cache(maxsize=256)(_plan)


when_registered(_cached_plan.cache_clear)


def _record(call: _Call) -> tuple[list[Layer], set[str]]:
    """Runs the plain model abstractly.

    Returns:
      Its modules, and the paths of its own names that collide with names of leaves.
    """
    found: dict[str, Layer] = {}
    users: set[str] = set()
    opaque: list[str] = []
    around: list[str] = []
    named: dict[str, str] = {}
    operands, own = Operands(), call.assigned.own_leaves

    def interceptor(next_function, args, kwargs, context):
        if not ours(context.module):
            return next_function(*args, **kwargs)
        path = paths.join(context.module.path)
        if path and hasattr(type(context.module), "_hwtrain_base"):
            opaque.append(f"{path}/")  # an analog model inside this one
        layer = describe(context, path, args, kwargs)
        # A module may share its layer's scope.
        found[path] = joined(found.get(path), layer)
        if around:
            named[path] = f"a {around[-1]} computes that from it at every call"
        inside = [type(context.module).__name__] * is_rewriting(context.module)
        around.extend(inside)
        # Read before the call, because Flax rewinds a module's scope after it.
        scope = internals.scope_of(context.module)
        try:
            return watched_call(operands, layer, context, next_function, args, kwargs)
        finally:
            users.update(names_of(scope, path, own))
            del around[len(around) - len(inside) :]

    def method(module, *args, **kwargs):
        nonlocal ours
        with belonging(module) as ours:
            return getattr(base, call.method)(module, *args, **kwargs)

    ours: Callable[[nn.Module], bool] = before_the_call
    plain = call.module.clone()
    base = plain_class(type(call.module))
    internals.put(plain, __class__=base)

    def run(arrays):
        leaves = [s if a is None else a for a, s in zip(arrays, call.static)]
        variables, rngs, args, kwargs = jax.tree.unflatten(call.treedef, leaves)
        # A missing parameter raises Flax's own error, not that for a missing stream.
        made = "params" in rngs
        return plain.apply(
            unfreeze(variables),
            *args,
            rngs=rngs,
            mutable=True if made else internals.all_but("params"),
            method=method,
            **kwargs,
        )

    with (
        nn.intercept_methods(interceptor),
        analog_trace(("plan", next(fresh))),
        kept(AnyLeaf(own), own),
    ):
        jaxpr = jax.make_jaxpr(run)(list(call.abstract))
    stored, inputs = _inputs(call)
    found_of = operands.followed(jaxpr, stored, dict(call.shapes), inputs)
    layers = [
        unasked(_followed(layer, found_of, named.get(path)), {*operands.paths.values()})
        for path, layer in found.items()
        if not any(f"{path}/".startswith(inner) for inner in opaque)
    ]
    return layers, users


def _inputs(call: _Call) -> tuple[list[str], list[bool]]:
    """Returns the kinds of inputs of a call's program.

    Returns:
      Paths of parameters, or empty strings; and whether each input is an argument or
      random.
    """
    numbers = jax.tree.unflatten(call.treedef, range(len(call.abstract)))
    params = paths.leaves(numbers[0].get("params", {}))
    names = {number: path for path, number in params.items()}
    arguments = set(jax.tree.leaves(numbers[1:]))
    arrays = [number for number, leaf in enumerate(call.abstract) if leaf is not None]
    stored = [names.get(number, "") for number in arrays]
    return stored, [number in arguments for number in arrays]


def _followed(layer: Layer, found: Provenance, named: str | None) -> Layer:
    """Returns a layer with findings on how it multiplies by its arrays."""
    paths_of = {array.leaf: layer.leaf_path(array.leaf) for array in layer.weights}

    def of(reasons: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        known = [(leaf, path) for leaf, path in paths_of.items() if path in reasons]
        return tuple((leaf, reasons[path]) for leaf, path in known)

    derived = tuple((leaf, named or why) for leaf, why in of(found.derived))
    around = tuple(leaf for leaf, path in paths_of.items() if path in found.around)
    return dataclasses.replace(
        layer,
        derived=derived,
        lost=of(found.lost),
        around=around,
        nonlinear=of(found.nonlinear),
    )
