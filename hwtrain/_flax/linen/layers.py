"""Analog calls of Linen layers, and the choice of layers that can be analog."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import linen as nn
from flax.core import meta

from hwtrain._arrays import paths
from hwtrain._flax.attributes import capacitances_of, plain_class
from hwtrain._flax.errors import behind_the_root
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.linen.own import is_stated
from hwtrain._flax.linen.rows import OfCall
from hwtrain._flax.loops import returned
from hwtrain._flax.opaque import bridge
from hwtrain._flax.provenance import Operands
from hwtrain._flax.signal_side import has_signal_side, initial_leaves, names_beside
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.layer import RETURNING, Layer, analog_weight
from hwtrain._plan.leaf_names import OF_A_STEP, named_as_leaf
from hwtrain._plan.outputs import StoredOutput
from hwtrain._plan.planning import check_refused, taken_name
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery._read_keys import NOISE_KEY
from hwtrain.sockets._table import why_digital


def describe(
    context: internals.InterceptorContext,
    path: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Layer:
    """Returns the description of a module for the plan.

    Args:
      context: a call of one of its methods.
      path: its path relative to the root.
      args: arguments of the call.
      kwargs: keyword arguments of the call.
    """
    module, method = context.module, context.method_name
    cls, running = plain_class(type(module)), running_class(context)
    found = bridge(module, cls)
    if found is None:
        found = OfCall(running, method, args).describe(module, args, kwargs)
    why = why_digital(cls)
    layer = found or (Layer() if why is None else Layer(why=why))
    return dataclasses.replace(
        layer,
        path=path,
        name=cls.__name__,
        capacitances=capacitances_of(cls),
        # What the module of a gate returns are its parameters.
        called=method in RETURNING and not issubclass(cls, internals.GateParams),
    )


def states_product(context: internals.InterceptorContext) -> bool:
    """Whether a call is one of `hwtrain.analog_einsum` or `analog_dot_general`."""
    return is_stated(context.method_name)


def watched_call(
    operands: Operands,
    layer: Layer,
    context: internals.InterceptorContext,
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a method of a plain layer, marking the arrays that it multiplies by.

    Args:
      operands: marks arrays.
      layer: from `describe`.
      context: the call.
      next_function: the module's own method.
      args: arguments of the call.
      kwargs: keyword arguments of the call.
    """

    def marked(leaf: str, array: Any) -> Any:
        return operands.marked(layer.leaf_path(leaf), array)

    module, method = context.module, context.method_name
    cls = running_class(context)
    rows = OfCall(cls, method, args)
    if layer.kind and rows.owned:
        return rows.watched(module, marked, next_function, args, kwargs)
    return next_function(*args, **kwargs)


def running_class(context: internals.InterceptorContext) -> type:
    """Returns the class whose method runs, which may be a super class.

    Args:
      context: the call, from Flax's interceptor.
    """
    cls: Any = plain_class(type(context.module))
    function = inspect.unwrap(internals.function_of(context))
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        method = getattr(base, context.method_name, None)
        if method is not None and inspect.unwrap(method) is function:
            return base
    return cls


def names_of(scope: Any, path: str, own: Sequence[str]) -> list[str]:
    """Returns the paths of a model's own names that collide with names of leaves.

    Args:
      scope: the scope of a called module. Parameters that are stored without Flax's
        `param` and `setup`, such as our leaves, are not in its reservations.
      path: path of the module.
      own: the names of leaves declared by users' parts.
    """
    names = map(paths.join, ([name] for name in internals.names_taken(scope)))
    found = [x for x in names if named_as_leaf(x, own) or x in OF_A_STEP]
    return [f"{path}/{name}" if path else name for name in found]


def create_leaves(
    scope: Any, layer: Layer, leaf: str, hardware: Hardware, rule: str
) -> None:
    """Stores the leaves beside an array of a layer during `init`.

    The rng counter is not touched, so the user's parameters keep their initial values.

    Raises:
      ValueError: if the model already has a parameter of a leaf's name there.
    """
    array = layer.weight(leaf)
    if array is None:
        return
    check_refused(layer, leaf, rule)
    (name,) = paths.split(leaf)
    kernel = meta.unbox(internals.parameter(scope, name))
    path = f"{layer.path}/{leaf}" if layer.path else leaf
    weight = analog_weight(
        layer, array, path=path, shape=kernel.shape, hardware=hardware, rule=rule
    )
    for leaf, value in initial_leaves(weight, kernel).items():
        (name,) = paths.split(weight.leaf_name(leaf))
        if internals.is_taken(scope, name):
            raise taken_name(weight, weight.leaf(leaf))
        internals.put_parameter(scope, name, value)


def returns(context: internals.InterceptorContext, stored: StoredOutput) -> bool:
    """Whether what a call returns is the result of a module, which is to be stored.

    A call by `super()` is a part of it, and so is another module of the same scope.

    Args:
      context: the call.
      stored: the entry of the plan for its path.
    """
    cls = plain_class(type(context.module))
    if context.method_name not in RETURNING or cls.__name__ != stored.layer:
        return False
    return running_class(context) is cls


def analog_call(
    by_path: Mapping[str, AnalogWeight],
    path: str,
    mode: str,
    context: internals.InterceptorContext,
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a method of a module with its multiplications made analog.

    Args:
      by_path: the analog weights by path relative to the root.
      path: path of the module relative to the root.
      mode: the mode.
      context: the call.
      next_function: the module's own method.
      args: arguments of the call.
      kwargs: keyword arguments of the call.
    """
    module: Any = context.module
    rows, weights = _owned(by_path, path, context, args)
    leaves = {name: _leaves(module, name, w) for name, w in weights.items()}
    for name, weight in weights.items():
        if weight.hardware.needs_root(mode) and NOISE_KEY.name not in leaves[name]:
            raise behind_the_root(weight.layer_path)
    if any(has_signal_side(weight) for weight in weights.values()):
        return rows.call(weights, leaves, mode, module, next_function, args, kwargs)
    return next_function(*args, **kwargs)


def refuse_late(
    by_path: Mapping[str, AnalogWeight],
    path: str,
    context: internals.InterceptorContext,
    args: tuple[Any, ...],
) -> None:
    """Raises for an analog layer whose root has returned: it would run plain.

    Arguments as for `analog_call`.
    """
    for weight in _owned(by_path, path, context, args)[1].values():
        if has_signal_side(weight):
            raise returned(weight.layer_path)


def _owned(
    by_path: Mapping[str, AnalogWeight],
    path: str,
    context: internals.InterceptorContext,
    args: tuple[Any, ...],
) -> tuple[OfCall, dict[str, AnalogWeight]]:
    """Returns the rows of a module's method, and the plans of its arrays."""
    rows = OfCall(running_class(context), context.method_name, args)
    full = {name: f"{path}/{name}" if path else name for name in rows.owned}
    return rows, {n: by_path[at] for n, at in full.items() if at in by_path}


def _leaves(module: nn.Module, name: str, weight: AnalogWeight) -> dict[str, Any]:
    """Returns the leaves beside an array of a module in this step."""
    params = module.variables.get("params", {})
    for key in name.split("/")[:-1]:
        params = params[key]
    beside = {leaf: paths.split(x)[-1] for leaf, x in names_beside(weight).items()}
    return {
        leaf: meta.unbox(params[own]) for leaf, own in beside.items() if own in params
    }
