"""The analog classes of NNX layers, and the choice of layers that can be analog."""

import dataclasses
import functools
import inspect
from typing import Any

import jax
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.attributes import capacitances_of, plain_class
from hwtrain._flax.errors import behind_the_root
from hwtrain._flax.nnx import rows
from hwtrain._flax.opaque import bridge
from hwtrain._flax.signal_side import has_signal_side, names_beside
from hwtrain._parts.leaf import LeafSpec
from hwtrain._plan.layer import RETURNING, Layer, joined
from hwtrain._plan.leaf_names import BUILT_IN
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery._read_keys import NOISE_KEY
from hwtrain.sockets._table import arrays_of, methods_of, when_registered, why_digital


class EffectiveWeight(nnx.Param):
    """A chip's derived weights, which a layer multiplies by."""


class StepLeaf(nnx.Variable):
    """A leaf that a layer needs for one step, such as its noise key."""


class TracedConstant(nnx.Variable):
    """A number of a model's hardware that was set by `hwtrain.with_constants`."""


PASSING = (
    *(nnx.RngState, nnx.Intermediate, nnx.Cache, nnx.Perturbation),
    *(StepLeaf, TracedConstant),
)
"""Types of variables that are not needed to evaluate a model."""


def _type_of(leaf: LeafSpec) -> type[nnx.Param]:
    """Returns the type of a leaf's variables, `InputRange` for `input_range`."""
    name = leaf.name.title().replace("_", "")
    content = {"__module__": __name__, "__doc__": f"The leaf `{leaf.name}`."}
    return type(name, (nnx.Param,), content)


TYPES = {x.name: _type_of(x) for x in BUILT_IN if x.when != ("step",)}
"""The types of leaves' variables by name. Pickled objects refer to them by name."""


class PartLeaf(nnx.Param):
    """A leaf of a user's part, as declared in the plan."""


globals().update({kind.__name__: kind for kind in TYPES.values()})


OUR_TYPES = (*TYPES.values(), PartLeaf, EffectiveWeight)
"""The types of all parameters that hwtrain adds."""


def describe(module: Any, path: str) -> Layer:
    """Returns the description of a module at a path, for the plan."""
    cls = plain_class(type(module))
    found = bridge(module, cls)
    if found is None and arrays_of(cls, built_in=False):
        own = rows.describe(module, cls, built_in=False)
        found = _with_arrays_of_super(own, module, cls)
    elif found is None:
        found = rows.describe(module, multiplying_class(cls))
    why = why_digital(cls)
    layer = found or (Layer() if why is None else Layer(why=why))
    return dataclasses.replace(
        layer,
        path=path,
        name=cls.__name__,
        capacitances=capacitances_of(cls),
        called=bool(returning_methods(cls)),
    )


def returning_methods(cls: type) -> list[str]:
    """Returns the methods of a class whose results are those of its modules."""
    # Not by hasattr: to call a class itself is a method of its metaclass.
    return [name for name in RETURNING if any(name in vars(x) for x in cls.__mro__)]


def _with_arrays_of_super(layer: Layer | None, module: Any, cls: type) -> Layer | None:
    """Returns a registered layer that refuses arrays its `super()` multiplies by.

    Args:
      layer: the layer, as described by its rows.
      module: the module.
      cls: its class.
    """
    inner = _multiplying(cls, built_in=True)
    found = rows.describe(module, inner, built_in=True)
    if found is None or found.kind is None:
        return layer
    why = (
        f"{cls.__name__} has rows of its own, and calls the method of "
        f"{inner.__name__}, which multiplies by it too. Hold the {inner.__name__} "
        "in an attribute, as a layer of its own"
    )
    own = set() if layer is None else {array.leaf for array in layer.weights}
    more = tuple((x.leaf, why) for x in found.weights if x.leaf not in own)
    return joined(layer, dataclasses.replace(found, refused=more))


@functools.cache
def multiplying_class(cls: type) -> type:
    """Returns the class whose methods multiply, which may be reached by `super()`.

    A layer that does not call `super()` is its own class, with its own products.
    """
    return _multiplying(cls)


def _multiplying(cls: type, built_in: bool | None = None) -> type:
    for base in cls.__mro__[: cls.__mro__.index(nnx.Module)]:
        if arrays_of(base, built_in):
            return base
        methods = {"__call__", "attend", *methods_of(base)}
        for name in methods & vars(base).keys():
            code = getattr(inspect.unwrap(vars(base)[name]), "__code__", None)
            if code is None or not {"super", name} <= {*code.co_names}:
                return cls
    return cls


def bases_of(base: type) -> tuple[type, ...]:
    """Returns the bases of the analog class of a layer or a model.

    If its method calls that of `super()`, the analog one of that class comes next.
    """
    inner = multiplying_class(base)
    return (base,) if inner is base else (base, analog_layer_class(inner))


def make_analog(layer: Any, weights: tuple[AnalogWeight, ...], mode: str) -> None:
    """Turns a layer into an analog one in place; references to it stay valid."""
    layer.__class__ = analog_layer_class(plain_class(type(layer)))
    layer.analog_weights = weights
    # NNX merges attributes in the order of their names: `hardware_mode` comes after
    # `deterministic`, whose setter does not know the chip mode.
    layer.hardware_mode = mode


_SETTERS = {"train", "eval", "set_view", "set_attributes"}


def public_methods(base: type) -> list[str]:
    """Returns the names of the methods that a module's class and its bases define."""
    names = []
    for cls in base.__mro__[: base.__mro__.index(nnx.Module)]:
        for name, value in vars(cls).items():
            public = name == "__call__" or not name.startswith("_")
            if public and name not in _SETTERS and _is_method(value):
                names.append(name)
    return list(dict.fromkeys(names))


def _is_method(value: Any) -> bool:
    """Whether a class attribute becomes a method; jitted functions do, too."""
    if isinstance(value, staticmethod | classmethod | property | type):
        return False
    return callable(value) and hasattr(type(value), "__get__")


def analog_methods(base: type) -> dict[str, Any]:
    """Returns the analog methods of a layer class by name; empty for other classes."""
    return {
        name: _analog_method(base, name, arrays)
        for name, arrays in arrays_of(base).items()
    }


@functools.cache
def analog_layer_class(base: type) -> type:
    """Returns the analog class of a layer class; its bases keep its layout."""
    namespace = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce_by_base,
        "deterministic": mode_property(base),
        "set_view": view_setter(base),
        "_hwtrain_base": base,
        "_hwtrain_rebuild": analog_layer_class,
        **analog_methods(base),
    }
    return type(base.__name__, bases_of(base), namespace)


for _cache in (multiplying_class, analog_layer_class):
    when_registered(_cache.cache_clear)


def mode_property(base: type) -> property:
    """Returns the property through which `.train()` and `.eval()` set the mode.

    NNX sets `deterministic` on every module that has it. A user's attribute of that
    name keeps its own value.
    """

    def get(self) -> bool:
        own = self.__dict__.get("deterministic")
        return self.hardware_mode != "train" if own is None else own

    def put(self, value: bool) -> None:
        if "deterministic" in self.__dict__:
            self.__dict__["deterministic"] = value
        self.__dict__["hardware_mode"] = "eval" if value else "train"

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
    """Pickles an object as its user's class and the function that makes it analog."""
    cls = type(self)
    return _rebuild, (cls._hwtrain_rebuild, cls._hwtrain_base, dict(self.__dict__))


def _rebuild(make: Any, base: type, attributes: dict[str, Any]):
    module = object.__new__(make(base))
    module.__dict__.update(attributes)
    return module


def _analog_method(base: type, name: str, arrays: tuple[str, ...]):
    original = getattr(base, name)

    def method(self, *args, **kwargs):
        mode = self.hardware_mode
        weights, leaves = {}, {}
        for weight in vars(self).get("analog_weights", ()):  # none, if it is digital
            leaf = weight.array
            if leaf not in arrays:
                continue
            weights[leaf], leaves[leaf] = weight, leaves_beside(self, weight, mode)
        if not any(map(has_signal_side, weights.values())):
            return original(self, *args, **kwargs)
        return rows.call(self, base, name, weights, leaves, mode, args, kwargs)

    return functools.update_wrapper(method, original, updated=())


def leaves_beside(layer: Any, weight: AnalogWeight, mode: str) -> dict[str, jax.Array]:
    """Returns the leaves beside an array of a layer in this step.

    Raises:
      ValueError: if the layer is called without its root, or mapped without its leaves.
    """
    leaves = _leaves(layer, weight)
    if weight.hardware.needs_root(mode) and NOISE_KEY.name not in leaves:
        raise behind_the_root(weight.layer_path)
    _check_mapped(layer, weight, leaves)
    return leaves


def _check_mapped(layer: Any, weight: AnalogWeight, leaves: dict[str, Any]) -> None:
    """Raises if a map takes entries from a stack of kernels, but not of noise keys."""
    kernel = getattr(layer, *paths.split(weight.array))[...]
    mapped = len(weight.shape) - kernel.ndim
    key = leaves.get(NOISE_KEY.name)
    if key is not None and key.ndim - 2 != len(weight.stack) - mapped:
        raise InputError(
            f"{weight.layer_path}: its kernel is mapped over a stack of layers, but "
            "its variables for this step are not, so all layers would read with the "
            "same keys. Map all variables of the layers except random streams: "
            "nnx.StateAxes({nnx.RngState: None, ...: 0}), or in_axes=0"
        )


def _leaves(layer: Any, weight: AnalogWeight) -> dict[str, jax.Array]:
    """Returns the leaves beside an array of a layer in this step."""
    named = names_beside(weight)
    held = vars(layer).get("analog_beside")  # none in calls without the root
    if held is not None and weight.derived:
        return {
            leaf: held.leaves[own] for leaf, own in named.items() if own in held.leaves
        }
    return {
        leaf: getattr(layer, own)[...]
        for leaf, own in named.items()
        if hasattr(layer, own)
    }


class Beside:
    """The leaves beside derived weights during a call, hidden from the model.

    A module that derives weights, such as `nnx.SpectralNorm`, iterates over all
    variables of a layer. To NNX, this object is a constant.

    Attributes:
      leaves: arrays by their names in the layer.
    """

    def __init__(self, leaves: dict[str, jax.Array]):
        self.leaves = leaves
