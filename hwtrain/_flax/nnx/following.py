"""Checks whether the layers of an NNX call multiply by their stored parameters.

Only a call shows it. It is traced abstractly once for each model and each combination
of argument shapes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax import weight_side
from hwtrain._flax.attributes import plain_class
from hwtrain._flax.nnx import rows
from hwtrain._flax.nnx.layers import OUR_TYPES, multiplying_class
from hwtrain._flax.nnx.own import Watch
from hwtrain._flax.nnx.step import modules_of
from hwtrain._flax.nnx.step import stored as stored_values
from hwtrain._flax.provenance import Operands, Provenance
from hwtrain._plan.plan import Plan
from hwtrain.sockets._table import arrays_of, when_registered


def followed(
    root: Any,
    plan: Plan,
    method: str,
    args: tuple,
    kwargs: dict[str, Any],
    declared: tuple[tuple[str, tuple[str, ...]], ...] = (),
) -> Provenance:
    """Returns the origins of the arrays that the layers of a call multiply by.

    Args:
      root: the analog model.
      plan: its plan.
      method: name of the called method.
      args: its arguments.
      kwargs: its keyword arguments.
      declared: the paths of modules on hardware, each with the names of the only arrays
        for which it may state products.
    """
    graphdef, state = nnx.split(root)
    leaves, treedef = jax.tree.flatten((state, args, kwargs))
    abstract, static = [], []
    for leaf in leaves:
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        abstract.append(_abstract(leaf) if is_array else None)
        static.append(None if is_array else leaf)
    weights = tuple(
        weight_side.local(plan, weight.stored)
        for weight in plan.weights
        if weight.kind != "raw"
    )
    call = _Call(
        graphdef, treedef, tuple(abstract), tuple(static), weights, method, declared
    )
    try:
        hash(call)
    except TypeError:  # an unhashable argument
        return _follow(call)
    return _cached(call)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    # The dtype in JAX, which is not NumPy's float64.
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.typeof(leaf).dtype)


class _Call(NamedTuple):
    """An abstract call."""

    graphdef: Any
    treedef: Any
    abstract: tuple[jax.ShapeDtypeStruct | None, ...]
    static: tuple[Any, ...]
    weights: tuple[str, ...]
    method: str
    declared: tuple[tuple[str, tuple[str, ...]], ...]


def _follow(call: _Call) -> Provenance:
    operands = Operands()

    declared = dict(call.declared)

    def run(arrays):
        leaves = [s if a is None else a for a, s in zip(arrays, call.static)]
        state, args, kwargs = jax.tree.unflatten(call.treedef, leaves)
        root = nnx.merge(call.graphdef, state)
        for path, module in modules_of(root).items():
            for name, value in list(vars(module).items()):
                if isinstance(value, OUR_TYPES):  # not in the plain layer
                    delattr(module, name)
            base = plain_class(type(module))
            own = _own(call.weights, path)
            module.__class__ = _watching(base, path, own, operands) if own else base
            vars(module).pop("analog_weights", None)
            if path in declared:
                marked = _marking(path, own, operands)
                arrays = declared[path]
                module.analog_watch = Watch(_refusing(base, path, arrays, marked))
        return jax.tree.leaves(getattr(root, call.method)(*args, **kwargs))

    try:
        jaxpr = jax.make_jaxpr(run)(list(call.abstract))
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise InputError(
            "the arrays that the layers of this model multiply by cannot be followed: "
            f"{call.method} needs the values of arrays in Python, so it cannot be "
            "traced. Choose with jnp.where or jax.lax.cond, and pass the deciding "
            "value as a Python number"
        ) from error
    numbers = jax.tree.unflatten(call.treedef, range(len(call.abstract)))
    params = stored_values(numbers[0])
    names = {number: path for path, number in paths.leaves(params).items()}
    stored = [
        names.get(number, "")
        for number, leaf in enumerate(call.abstract)
        if leaf is not None
    ]
    shapes = {
        path: call.abstract[number].shape
        for number, path in names.items()
        if path in call.weights
    }
    random = stored_values(nnx.filter_state(numbers[0], nnx.RngState))
    arguments = set(jax.tree.leaves((numbers[1:], random)))
    inputs = [
        number in arguments
        for number, leaf in enumerate(call.abstract)
        if leaf is not None
    ]
    return operands.followed(jaxpr, stored, shapes, inputs, call.weights)


_cached = functools.lru_cache(maxsize=256)(_follow)


when_registered(_cached.cache_clear)


def _own(weights: tuple[str, ...], path: str) -> tuple[str, ...]:
    """Returns the names of the analog arrays of a layer."""
    return tuple(
        leaf
        for layer, _, leaf in (weight.rpartition("/") for weight in weights)
        if layer == path
    )


def _watching(base: type, path: str, own: tuple[str, ...], operands: Operands) -> type:
    """Returns the class of a plain layer that marks the arrays it multiplies by."""
    marked = _marking(path, own, operands)
    methods: dict[str, Any] = {}
    inner = multiplying_class(base)
    for name in arrays_of(inner):
        methods[name] = _watched(inner, name, marked)
    watching = type(base.__name__, (inner,), {"__module__": base.__module__, **methods})
    # If a method calls that of `super()`, it finds the watched one next.
    return watching if inner is base else type(base.__name__, (base, watching), {})


def _marking(
    path: str, own: tuple[str, ...], operands: Operands
) -> Callable[[str, Any], Any]:
    """Returns a function that marks the analog arrays of a layer."""

    def marked(leaf: str, array: Any) -> Any:
        full = f"{path}/{leaf}" if path else leaf
        return operands.marked(full, array) if leaf in own else array

    return marked


def _refusing(
    base: type, path: str, arrays: tuple[str, ...], marked: Callable[[str, Any], Any]
) -> Callable[[str, Any], Any]:
    """Returns a function that marks known arrays, and raises for other ones."""
    name = base.__name__

    def refused(leaf: str, array: Any) -> Any:
        if leaf in arrays:
            return marked(leaf, array)
        raise InputError(
            f"{name} {path!r} multiplies by {leaf!r} on hardware, but in NNX the "
            "product is not known before a call. Register it before analogize: "
            f'hwtrain.sockets.register({name}, {leaf!r}, "...i,io->...o"), with the '
            "equation of its call. To keep it digital, name the other layers instead: "
            "analogize(model, [Rule(..., hardware)])"
        )

    return refused


def _watched(base: type, name: str, marked: Callable[..., Any]):
    def method(self, *args, **kwargs):
        return rows.watched(self, base, name, marked)(*args, **kwargs)

    return functools.update_wrapper(method, getattr(base, name), updated=())
