"""Linen layers: which can be analog, and their analog call."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from hwtrain.hardware import Hardware
from hwtrain.plan import AnalogWeight
from hwtrain.transforms.rules import Layer
from hwtrain.transforms.signal_side import (
    STEP_LEAVES,
    analog_dot_general,
    behind_the_root,
    has_signal_side,
    initial_leaves,
)


def describe(
    module: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Layer:
    """Returns what the plan must know of a module.

    Args:
      module: a module, during its call.
      path: its path relative to the root.
      args: arguments of the call.
      kwargs: keyword arguments of the call.
    """
    cls = plain_class(type(module))
    if not issubclass(cls, nn.Dense):
        return Layer(path=path, name=cls.__name__)
    inputs: Any = args[0] if args else next(iter(kwargs.values()), None)
    if cls.__call__ is not nn.Dense.__call__:
        why = "it overrides Dense.__call__"
        return Layer(path=path, name=cls.__name__, why=why)
    if not jnp.ndim(inputs):
        why = "it is called without an array"
        return Layer(path=path, name=cls.__name__, why=why)
    return Layer(
        path=path,
        name=cls.__name__,
        kind="dense",
        shape=(jnp.shape(inputs)[-1], module.features),
        rows=(0,),
        columns=(1,),
    )


def plain_class(cls: type) -> type:
    """Returns the user's class of a class that `analogize` made, or the class."""
    return getattr(cls, "_hwtrain_base", cls)


def create_leaves(
    module: nn.Module, path: str, layer: Layer, hardware: Hardware
) -> None:
    """Puts an analog layer's leaves beside its kernel, during `init`.

    The rng counter is not touched, so the user's parameters keep their initial values.
    """
    scope = module.scope
    if scope is None:
        return
    kernel = meta.unbox(scope.get_variable("params", "kernel"))
    weight = AnalogWeight(
        path=f"{path}/kernel" if path else "kernel",
        kind=layer.kind or "",
        layer=layer.name,
        shape=kernel.shape,
        rows=layer.rows,
        columns=layer.columns,
        hardware=hardware,
        rule="",
        ranged=hardware.ranged,
    )
    for name, value in initial_leaves(weight, kernel).items():
        if not scope.has_variable("params", name):
            scope.put_variable("params", name, value)


def analog_call(
    weight: AnalogWeight,
    mode: str,
    module: Any,
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls a dense layer with its matrix multiplication made analog."""
    scope = module.scope
    if weight.hardware.needs_root(mode) and not scope.has_variable(
        "params", "noise_key"
    ):
        raise behind_the_root(weight.layer_path)
    if not has_signal_side(weight):
        return next_function(*args, **kwargs)
    leaves = {
        name: meta.unbox(scope.get_variable("params", name))
        for name in STEP_LEAVES
        if scope.has_variable("params", name)
    }
    cls = getattr(module, "dot_general_cls", None)
    before = cls() if cls is not None else module.dot_general
    analog = analog_dot_general(
        weight,
        mode,
        leaves,
        before or jax.lax.dot_general,
    )
    with _fields(module, dot_general=analog, dot_general_cls=None):
        return next_function(*args, **kwargs)


@contextlib.contextmanager
def _fields(module: nn.Module, **fields: Any):
    """Sets fields of a frozen, bound module for the duration of a call."""
    before = {name: getattr(module, name) for name in fields}
    try:
        for name, value in fields.items():
            object.__setattr__(module, name, value)
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
