"""NNX layers: which can be analog, and the class that makes them so in place."""

import functools
import inspect
from typing import Any

import jax
from flax import nnx

from hwtrain.plan import AnalogWeight
from hwtrain.transforms.rules import Layer
from hwtrain.transforms.signal_side import (
    STEP_LEAVES,
    analog_dot_general,
    behind_the_root,
    has_signal_side,
)


class InputRange(nnx.Param):
    """The input range of every tile of a layer, `[*stack, row tiles, column tiles]`."""


class Probe(nnx.Param):
    """Zeros whose gradient carries a layer's statistics to the optimiser."""


class MappingScale(nnx.Param):
    """The mapping scale of a layer, `[*stack, row tiles, columns or 1]`."""


class OutputScale(nnx.Param):
    """The learned output scale of a layer, `[*stack, row tiles, columns or 1]`."""


class ChipKey(nnx.Param):
    """The key of what is frozen in a chip's periphery; there during an evaluation."""


class StepLeaf(nnx.Variable):
    """What a layer needs for one step, such as its noise key; there during a call."""


LEAF_TYPES = {
    "input_range": InputRange,
    "probe": Probe,
    "mapping_scale": MappingScale,
    "output_scale": OutputScale,
}


def describe(module: Any, path: str) -> Layer:
    """Returns what the plan must know of a module at a path."""
    cls = plain_class(type(module))
    if issubclass(cls, nnx.Linear):
        if cls.__call__ is nnx.Linear.__call__:
            return Layer(
                path=path,
                name=cls.__name__,
                kind="dense",
                shape=(module.in_features, module.out_features),
                rows=(0,),
                columns=(1,),
            )
        why = "it overrides Linear.__call__"
        return Layer(path=path, name=cls.__name__, why=why)
    return Layer(path=path, name=cls.__name__)


def plain_class(cls: type) -> type:
    """Returns the user's class of a class that `analogize` made, or the class."""
    return getattr(cls, "_hwtrain_base", cls)


def make_analog(layer: Any, weight: AnalogWeight, mode: str) -> None:
    """Turns a layer into an analog one in place; references to it stay valid."""
    layer.__class__ = analog_layer_class(plain_class(type(layer)))
    layer.analog_weight = weight
    layer.analog_mode = mode


@functools.cache
def analog_layer_class(base: type) -> type:
    """Returns the analog class of a layer class; a single base keeps its layout."""
    namespace = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__call__": _analog_call,
        "__reduce_ex__": reduce_by_base,
        "deterministic": mode_property(base),
        "set_view": view_setter(base),
        "_hwtrain_base": base,
        "_hwtrain_rebuild": analog_layer_class,
    }
    return type(base.__name__, (base,), namespace)


def mode_property(base: type) -> property:
    """Returns the property by which `.train()` and `.eval()` reach the mode.

    NNX sets `deterministic` on every module that has it. A user's own attribute of
    that name keeps its value beside.
    """

    def get(self) -> bool:
        own = self.__dict__.get("deterministic")
        return self.analog_mode != "train" if own is None else own

    def put(self, value: bool) -> None:
        if "deterministic" in self.__dict__:
            self.__dict__["deterministic"] = value
        self.__dict__["analog_mode"] = "eval" if value else "train"

    return property(get, put)


def view_setter(base: type) -> Any:
    """Returns the method by which `nnx.view(model, deterministic=)` sets the mode."""
    own = getattr(base, "set_view", None)

    def set_view(self, deterministic: bool | None = None, **options):
        if own is not None:
            takes = inspect.signature(own).parameters
            given = {"deterministic": deterministic} if "deterministic" in takes else {}
            own(self, **given, **options)
        if deterministic is not None:
            self.deterministic = deterministic

    if own is None:
        return lambda self, deterministic=None: set_view(self, deterministic)
    return functools.update_wrapper(set_view, own)


def reduce_by_base(self, protocol: int):
    """Pickles an object by its user's class and the function that makes it analog."""
    cls = type(self)
    return _rebuild, (cls._hwtrain_rebuild, cls._hwtrain_base, dict(self.__dict__))


def _rebuild(make: Any, base: type, attributes: dict[str, Any]):
    module = object.__new__(make(base))
    module.__dict__.update(attributes)
    return module


def _analog_call(self, *args, **kwargs):
    weight, mode = self.analog_weight, self.analog_mode
    if weight.hardware.needs_root(mode) and not hasattr(self, "noise_key"):
        raise behind_the_root(weight.layer_path)
    base = type(self)._hwtrain_base
    if not has_signal_side(weight):
        return base.__call__(self, *args, **kwargs)
    # A shallow stand-in that shares the variables: nothing is set on the layer itself,
    # which may belong to another trace.
    stand_in = object.__new__(base)
    stand_in.__dict__.update(self.__dict__)
    stand_in.__dict__["dot_general"] = analog_dot_general(
        weight,
        mode,
        {name: getattr(self, name)[...] for name in STEP_LEAVES if hasattr(self, name)},
        self.dot_general or jax.lax.dot_general,
    )
    return base.__call__(stand_in, *args, **kwargs)
