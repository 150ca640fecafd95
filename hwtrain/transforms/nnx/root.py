"""The root of an analog NNX model: its class, swapped on a copy of the model.

Every public method of the user's class splits the model, transforms the parameters,
merges, calls, and copies back what is not a parameter.
"""

import functools
import inspect
from typing import Any

from flax import nnx

from hwtrain import paths
from hwtrain.mismatch import chip_key, layer_keys
from hwtrain.plan import Plan
from hwtrain.transforms import weight_side
from hwtrain.transforms.nnx.layers import (
    LEAF_TYPES,
    ChipKey,
    StepLeaf,
    analog_layer_class,
    describe,
    make_analog,
    mode_property,
    plain_class,
    reduce_by_base,
    view_setter,
)
from hwtrain.transforms.rules import LEAVES, Assignment, make_plan
from hwtrain.transforms.signal_side import (
    counted_calls,
    initial_leaves,
    missing_stream,
)


def analogize_nnx(model: Any, assigned: Assignment, rngs: nnx.Rngs | None) -> Any:
    """Returns an analog copy of a model, in train mode."""
    if hasattr(model, "analog_mode"):
        raise ValueError(
            f"{type(model).__name__} is analog already; analogize the plain model"
        )
    model = nnx.clone(model)
    plan = _make(model, assigned, check=True)
    layers = _modules(model)
    for weight in plan.weights:
        if weight.kind == "raw":
            continue
        layer = layers[weight_side.local(plan, weight.layer_path)]
        make_analog(layer, weight, "train")
        for name, value in initial_leaves(weight, layer.kernel[...]).items():
            setattr(layer, name, LEAF_TYPES[name](value))
    model.__class__ = analog_root_class(plain_class(type(model)))
    model.analog_mode = "train"
    model.analog_assigned = assigned
    if rngs is not None:
        if not isinstance(rngs, nnx.Rngs) or "mismatch" not in rngs:
            raise ValueError(
                'analogize(..., rngs=) takes an nnx.Rngs with a stream "mismatch": '
                f"nnx.Rngs(mismatch=seed); got {rngs!r}"
            )
        model.analog_stream = rngs["mismatch"]
    return model


def set_mode(model: Any, mode: str) -> Any:
    """Puts an analog model into a mode, in place, and returns it."""
    if not hasattr(model, "analog_assigned"):
        raise ValueError(
            f"{type(model).__name__} is not analog; write analogize(model, hardware)"
        )
    model.set_attributes(
        deterministic=mode != "train",
        use_running_average=mode != "train",
        raise_if_not_found=False,
    )
    for module in _modules(model).values():
        if hasattr(module, "analog_mode"):
            module.analog_mode = mode
    return model


def add_chip_keys(model: Any) -> None:
    """Adds what a chip's parameters hold beside those of the model.

    The key of chip 0 to layers whose periphery differs between chips, and the mapping
    scale to those that derive it.
    """
    plan, layers = plan_of(model), _modules(model)
    for weight in plan.weights:
        if weight.kind != "raw" and weight.hardware.derives_chip_scale:
            layer = layers[weight_side.local(plan, weight.layer_path)]
            scale = weight.derived_scale(weight.to_matrix(layer.kernel[...]))
            layer.mapping_scale = LEAF_TYPES["mapping_scale"](scale)
        if weight.kind != "raw" and weight.hardware.freezes("chip"):
            data = layer_keys(weight, chip_key(0), "frozen_periphery")
            layers[weight_side.local(plan, weight.layer_path)].chip_key = ChipKey(data)


def plan_of(model: Any) -> Plan:
    """Returns the plan of an analog model, read off its objects."""
    if not hasattr(model, "analog_assigned"):
        raise ValueError(
            f"{type(model).__name__} is not analog; write analogize(model, hardware)"
        )
    return _make(model, model.analog_assigned, check=False)


def _make(model: nnx.Module, assigned: Assignment, check: bool) -> Plan:
    layers = [
        describe(module, path)
        for path, module in _modules(model).items()
        # An analog model inside this one has a plan of its own.
        if not (path and hasattr(module, "analog_assigned"))
    ]
    shapes = {
        path: tuple(leaf.shape)
        for path, leaf in paths.leaves(nnx.state(model, nnx.Param)).items()
        if path.rpartition("/")[2] not in LEAVES
    }
    return make_plan(assigned, layers, shapes, check=check)


def _modules(model: nnx.Module) -> dict[str, Any]:
    return {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model)}


@functools.cache
def analog_root_class(base: type) -> type:
    """Returns the analog class of a model's class."""
    methods: dict[str, Any] = {
        name: _through_both_sides(base, name) for name in _public_methods(base)
    }
    namespace = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce_by_base,
        "deterministic": mode_property(base),
        "set_view": view_setter(base),
        "_hwtrain_base": base,
        "_hwtrain_rebuild": analog_root_class,
        **methods,
    }
    return type(base.__name__, (base,), namespace)


_SETTERS = {"train", "eval", "set_view", "set_attributes"}


def _public_methods(base: type) -> list[str]:
    names = []
    for cls in base.__mro__[: base.__mro__.index(nnx.Module)]:
        for name, value in vars(cls).items():
            public = name == "__call__" or not name.startswith("_")
            if public and name not in _SETTERS and inspect.isfunction(value):
                names.append(name)
    return list(dict.fromkeys(names))


def _through_both_sides(base: type, name: str):
    original = getattr(base, name)
    if base.__call__ is nnx.Linear.__call__ and name == "__call__":
        original = analog_layer_class(base).__call__  # the model is one analog layer

    def method(self, *args, **kwargs):
        if self.__dict__.get("analog_running"):
            return original(self, *args, **kwargs)
        plan = _make(self, self.analog_assigned, check=False)
        mode = self.analog_mode
        if not weight_side.needs_root(plan, mode):
            return original(self, *args, **kwargs)
        key = weight_side.no_key()
        if weight_side.draws(plan, mode):
            if not hasattr(self, "analog_stream"):
                raise missing_stream(mode)
            key = self.analog_stream()
        return _noisy_call(self, original, plan, mode, key, args, kwargs)

    return functools.update_wrapper(method, original, updated=())


def _noisy_call(
    root: Any,
    original: Any,
    plan: Plan,
    mode: str,
    key: Any,
    args: tuple,
    kwargs: dict,
) -> Any:
    """Calls a method on a copy of the root with the weights of one step."""
    graphdef, params, rest = nnx.split(root, nnx.Param, ...)
    params, leaves = weight_side.step_weights(params, plan, mode, key)
    noisy = nnx.merge(graphdef, params, rest)
    modules = _modules(noisy)
    for path, value in leaves.items():
        layer, _, name = path.rpartition("/")
        setattr(modules[layer], name, StepLeaf(value))
    noisy.analog_running = True
    with counted_calls():
        result = original(noisy, *args, **kwargs)
    for path in leaves:
        layer, _, name = path.rpartition("/")
        delattr(modules[layer], name)
    _copy_back(noisy, root)
    return result


def _copy_back(source: nnx.Module, target: nnx.Module) -> None:
    """Copies what a call wrote: statistics, caches, counters, captured values."""
    nnx.update(target, nnx.state(source, nnx.Not(nnx.Param)))
