"""Linen layers: which can be analog, and their analog call; one file per family."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flax import linen as nn
from flax.core import meta

from hwtrain import paths
from hwtrain.hardware import Hardware
from hwtrain.leaf_names import OF_A_STEP, named_as_leaf
from hwtrain.periphery._read_keys import NOISE_KEY
from hwtrain.plan import AnalogWeight
from hwtrain.transforms.errors import behind_the_root, taken_name
from hwtrain.transforms.layer import Layer, analog_weight
from hwtrain.transforms.linen import convolution, dense, einsum, embed, own, recurrent
from hwtrain.transforms.loops import returned
from hwtrain.transforms.opaque import bridge
from hwtrain.transforms.planning import check_refused
from hwtrain.transforms.provenance import Operands
from hwtrain.transforms.signal_side import (
    has_signal_side,
    initial_leaves,
    names_beside,
)

FAMILIES = (dense, convolution, einsum, embed, recurrent)
"""Each knows some classes of layers: `describe` returns what the plan must know of one
during a call of a method, or `None` if it is not of the family; `owned` names the
arrays, relative to the module, that a method reads, `call` makes it analog, and
`watched` marks what it multiplies by."""


def _families(cls: type, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the families for a call; what a user says of a class comes first."""
    return (own.OfCall(cls, method, args), *FAMILIES)


DIGITAL = (
    (
        (nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm),
        "normalisation is digital",
    ),
    (
        (nn.MultiHeadDotProductAttention,),
        "its projections are layers of their own, its scores are digital",
    ),
)
"""Other layers, and why they stay digital."""


def describe(
    context: nn.module.InterceptorContext,
    path: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Layer:
    """Returns what the plan must know of a module.

    Args:
      context: a call of one of its methods.
      path: its path relative to the root.
      args: arguments of the call.
      kwargs: keyword arguments of the call.
    """
    module, method = context.module, context.method_name
    cls, running = plain_class(type(module)), running_class(context)
    families = _families(running, method, args)
    found = (f.describe(module, running, method, args, kwargs) for f in families)
    known = (Layer(why=why) for classes, why in DIGITAL if issubclass(cls, classes))
    layer = next(
        (layer for layer in (bridge(module, cls), *found, *known) if layer is not None),
        Layer(),
    )
    return dataclasses.replace(layer, path=path, name=cls.__name__)


def states_product(context: nn.module.InterceptorContext) -> bool:
    """Whether a call is that of `hwtrain.analog_einsum` or `analog_dot_general`."""
    return own.OfCall.is_stated(context.method_name)


def watched_call(
    operands: Operands,
    layer: Layer,
    context: nn.module.InterceptorContext,
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a method of a plain layer with what it multiplies by marked.

    Args:
      operands: marks arrays.
      layer: what `describe` returned.
      context: the call.
      next_function: the module's own method.
      args: arguments of the call.
      kwargs: keyword arguments of the call.
    """

    def marked(leaf: str, array: Any) -> Any:
        return operands.marked(layer.leaf_path(leaf), array)

    module, method = context.module, context.method_name
    cls = running_class(context)
    for family in _families(cls, method, args):
        if layer.kind and family.describe(module, cls, method, args, kwargs):
            return family.watched(module, marked, next_function, args, kwargs)
    return next_function(*args, **kwargs)


def plain_class(cls: type) -> type:
    """Returns the user's class of a class that `analogize` made, or the class."""
    return getattr(cls, "_hwtrain_base", cls)


def running_class(context: nn.module.InterceptorContext) -> type:
    """Returns the class whose method runs: a method may call that of its super class.

    Args:
      context: the call, as Flax gives it to an interceptor.
    """
    cls: Any = plain_class(type(context.module))
    function = inspect.unwrap(getattr(context.orig_method, "func", context.orig_method))
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        method = getattr(base, context.method_name, None)
        if method is not None and inspect.unwrap(method) is function:
            return base
    return cls


def names_of(scope: Any, path: str, own: Sequence[str]) -> list[str]:
    """Returns the paths of what a model calls as hardware calls its leaves.

    Args:
      scope: the scope of a module that was called; what is put there around Flax's
        `param` and `setup`, as our leaves are, is not among its reservations.
      path: path of the module.
      own: the names of leaves that users' parts declare.
    """
    names = map(paths.join, ([name] for name in scope.reservations))
    found = [x for x in names if named_as_leaf(x, own) or x in OF_A_STEP]
    return [f"{path}/{name}" if path else name for name in found]


def create_leaves(
    scope: Any, layer: Layer, leaf: str, hardware: Hardware, rule: str
) -> None:
    """Puts the leaves of an array of a layer beside it, during `init`.

    The rng counter is not touched, so the user's parameters keep their initial values.

    Raises:
      ValueError: if the model has a parameter of the name of a leaf there.
    """
    array = layer.weight(leaf)
    if array is None:
        return
    check_refused(layer, leaf, rule)
    (name,) = paths.split(leaf)
    kernel = meta.unbox(scope.get_variable("params", name))
    path = f"{layer.path}/{leaf}" if layer.path else leaf
    weight = analog_weight(
        layer, array, path=path, shape=kernel.shape, hardware=hardware, rule=rule
    )
    for leaf, value in initial_leaves(weight, kernel).items():
        (name,) = paths.split(weight.leaf_name(leaf))
        if scope.name_reserved(name):
            raise taken_name(weight, weight.leaf(leaf))
        if not scope.has_variable("params", name):
            scope.put_variable("params", name, value)


def analog_call(
    by_path: Mapping[str, AnalogWeight],
    path: str,
    mode: str,
    context: nn.module.InterceptorContext,
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
    for family, weights in _owned(by_path, path, context, args):
        leaves = {name: _leaves(module, name, w) for name, w in weights.items()}
        for name, weight in weights.items():
            if weight.hardware.needs_root(mode) and NOISE_KEY.name not in leaves[name]:
                raise behind_the_root(weight.layer_path)
        if any(has_signal_side(weight) for weight in weights.values()):
            return family.call(
                weights, leaves, mode, context, next_function, args, kwargs
            )
    return next_function(*args, **kwargs)


def refuse_late(
    by_path: Mapping[str, AnalogWeight],
    path: str,
    context: nn.module.InterceptorContext,
    args: tuple[Any, ...],
) -> None:
    """Raises for an analog layer: its root has returned, and it would run plain.

    Arguments as above.
    """
    for _, weights in _owned(by_path, path, context, args):
        for weight in weights.values():
            if has_signal_side(weight):
                raise returned(weight.layer_path)


def _owned(
    by_path: Mapping[str, AnalogWeight],
    path: str,
    context: nn.module.InterceptorContext,
    args: tuple[Any, ...],
) -> Iterator[tuple[Any, dict[str, AnalogWeight]]]:
    """Yields the families of a module's method, with the weights that it owns."""
    cls = running_class(context)
    for family in _families(cls, context.method_name, args):
        weights = {}
        for name in family.owned(cls, context.method_name):
            full = f"{path}/{name}" if path else name
            if full in by_path:
                weights[name] = by_path[full]
        if weights:
            yield family, weights


def _leaves(module: nn.Module, name: str, weight: AnalogWeight) -> dict[str, Any]:
    """Returns what lies beside an array of a module in this step."""
    params = module.variables.get("params", {})
    for key in name.split("/")[:-1]:
        params = params[key]
    beside = {leaf: paths.split(x)[-1] for leaf, x in names_beside(weight).items()}
    return {
        leaf: meta.unbox(params[own]) for leaf, own in beside.items() if own in params
    }
