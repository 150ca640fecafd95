"""The root of an analog NNX model: a copy with its class replaced.

Every public method of the user's class splits the model, transforms the parameters,
merges, calls, and copies back everything except parameters.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax import weight_side
from hwtrain._flax.attributes import plain_class
from hwtrain._flax.errors import missing_stream
from hwtrain._flax.nnx.following import followed
from hwtrain._flax.nnx.guard import make_guarded
from hwtrain._flax.nnx.layers import (
    OUR_TYPES,
    PASSING,
    TYPES,
    EffectiveWeight,
    PartLeaf,
    TracedConstant,
    analog_methods,
    bases_of,
    describe,
    make_analog,
    mode_property,
    public_methods,
    reduce_by_base,
    view_setter,
)
from hwtrain._flax.nnx.step import modules_of, noisy_call
from hwtrain._flax.nnx.storing import make_storing
from hwtrain._flax.signal_side import initial_leaves
from hwtrain._plan.constants import Constants, in_plan, merged, split_plan, with_values
from hwtrain._plan.layer import Layer
from hwtrain._plan.leaf_names import named_as_leaf
from hwtrain._plan.plan import Plan
from hwtrain._plan.planning import (
    check_around,
    check_derived,
    hardware_of,
    lost_weight,
    make_plan,
    nonlinear_product,
    on_hardware,
    real,
    taken_name,
)
from hwtrain._plan.rules import Assignment
from hwtrain._plan.traceable import IN_A_CALL
from hwtrain._plan.weight import AnalogWeight
from hwtrain.sockets._table import is_rewriting, when_registered


def analogize_nnx(model: Any, assigned: Assignment, rngs: nnx.Rngs | None) -> Any:
    """Returns an analog copy of a model, in train mode."""
    if hasattr(model, "hardware_mode"):
        raise InputError(
            f"{type(model).__name__} is analog already; analogize the plain model"
        )
    model = nnx.clone(model)
    plan = _make(model, assigned, check=True)
    layers = modules_of(model)
    by_layer: dict[str, list[AnalogWeight]] = {}
    for weight in plan.weights:
        if weight.kind != "raw":
            by_layer.setdefault(weight.layer_path, []).append(weight)
    for path, weights in by_layer.items():
        layer = layers[weight_side.local(plan, path)]
        for weight in weights:
            for name in sorted(path.rpartition("/")[2] for path in weight.owned):
                if hasattr(layer, name):
                    raise taken_name(weight, f"{path}/{name}" if path else name)
        make_analog(layer, tuple(weights), "train")
        for weight in weights:
            for name, value in initial_leaves(weight, _array(layer, weight)).items():
                setattr(layer, weight.leaf_name(name), TYPES.get(name, PartLeaf)(value))
    for weight in plan.weights:
        path = weight_side.local(plan, weight.layer_path)
        guarded = path in layers and weight.layer_path not in by_layer
        if weight.kind == "raw" and path and guarded:
            make_guarded(layers[path], weight, "train")
    model.__class__ = analog_root_class(plain_class(type(model)))
    for output in plan.outputs:
        make_storing(layers[weight_side.local(plan, output.path)], output)
    model.hardware_mode = "train"
    model.analog_assigned = assigned
    if rngs is not None:
        stream = assigned.stream
        if not isinstance(rngs, nnx.Rngs) or stream not in rngs:
            raise InputError(
                f'analogize(..., rngs=) takes an nnx.Rngs with a stream "{stream}": '
                f"nnx.Rngs({stream}=seed); got {rngs!r}"
            )
        model.analog_stream = rngs[stream]
    return model


def set_mode(model: Any, mode: str) -> Any:
    """Sets the mode of an analog model, in place, and returns the model."""
    if not hasattr(model, "analog_assigned"):
        raise InputError(
            f"{type(model).__name__} is not analog; write analogize(model, hardware)"
        )
    model.set_attributes(
        deterministic=mode != "train",
        use_running_average=mode != "train",
        raise_if_not_found=False,
    )
    for module in modules_of(model).values():
        if hasattr(module, "hardware_mode"):
            module.hardware_mode = mode
    return model


_CONSTANT = "analog_constant_"


def with_constants(model: Any, constants: Constants) -> Any:
    """Returns an analog model with traced constants that shares the model's variables.

    Arguments as for `hwtrain.with_constants`.
    """
    plan = plan_of(model)
    given = merged(_constants_of(model), constants)
    with_values(plan, given, IN_A_CALL)  # raises for invalid constants
    made = nnx.view(model)
    made.analog_constants = tuple(given)
    for number, value in enumerate(given.values()):
        setattr(made, f"{_CONSTANT}{number}", TracedConstant(jnp.asarray(value)))
    return made


def _constants_of(model: Any) -> dict[str, Any]:
    """Returns the traced constants of a model, by key."""
    keys = enumerate(getattr(model, "analog_constants", ()))
    return {key: getattr(model, f"{_CONSTANT}{number}")[...] for number, key in keys}


def claim_chip_leaves(model: Any, plan: Plan) -> None:
    """Turns arrays that a chip's parameters added to a model into parameters.

    `nnx.update` stores entries without a variable in the model as plain arrays, which
    steps and transforms of parameters would miss.
    """
    layers = None
    for weight in plan.weights:
        kinds = {weight.leaf_name(x): TYPES[x.name] for x in weight.leaves("chip")}
        if weight.derived:
            kinds[weight.effective_path.rpartition("/")[2]] = EffectiveWeight
        if not kinds:
            continue
        layers = modules_of(model) if layers is None else layers
        layer = layers[weight_side.local(plan, weight.layer_path)]
        for name, kind in kinds.items():
            value = getattr(layer, name, None)
            if isinstance(value, jax.Array | np.ndarray):
                delattr(layer, name)  # assigned in place, a tracer would be static
                setattr(layer, name, kind(jnp.asarray(value)))


def _array(layer: Any, weight: AnalogWeight) -> jax.Array:
    return getattr(layer, *paths.split(weight.array))[...]


def plan_of(
    model: Any,
    args: tuple = (),
    kwargs: dict[str, Any] | None = None,
    method: str = "__call__",
) -> Plan:
    """Returns the plan of an analog model, derived from its objects.

    Args:
      model: the analog model.
      args: arguments of a call in which the weights are followed; `()` for none.
      kwargs: its keyword arguments.
      method: name of the called method.
    """
    if not hasattr(model, "analog_assigned"):
        raise InputError(
            f"{type(model).__name__} is not analog; write analogize(model, hardware)"
        )
    plan = _make(model, model.analog_assigned, check=False)
    if args or kwargs:
        plan = _followed(model, plan, method, args, kwargs or {})
    modules = modules_of(model)
    for weight in plan.weights:
        layer = modules.get(weight_side.local(plan, weight.layer_path))
        if weight.pending and hasattr(layer, weight.effective_path.rpartition("/")[2]):
            return plan.effective
    return plan


def _make(model: nnx.Module, assigned: Assignment, check: bool) -> Plan:
    modules = modules_of(model)
    # An analog model inside this one has its own plan.
    inner = [f"{p}/" for p, m in modules.items() if p and hasattr(m, "analog_assigned")]

    def ours(path: str) -> bool:
        return not any(f"{path}/".startswith(prefix) for prefix in inner)

    layers = [describe(module, path) for path, module in modules.items() if ours(path)]
    layers = [_with_rewriter(layer, modules) for layer in layers]
    own = nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.Any(*OUR_TYPES))))
    shapes = {
        path: tuple(leaf.shape)
        for path, leaf in paths.leaves(own).items()
        if ours(path)
    }
    users = {path for path in shapes if named_as_leaf(path, assigned.own_leaves)}
    _check_kernels_of_their_own(assigned, layers, modules)
    plan = make_plan(assigned, layers, shapes, users, check=check)
    real(plan, nnx.state(model, nnx.Param))
    state = nnx.state(model, nnx.Not(nnx.Any(nnx.Param, *PASSING)))
    # `nnx.update` stores a chip's leaves beside its weights as plain arrays.
    chips = {
        weight_side.local(plan, path)
        for weight in plan.weights
        for path in (*map(weight.leaf, weight.leaves("chip")), weight.effective_path)
    }
    here = [path for path in paths.leaves(state) if path not in chips and ours(path)]
    at = f"{plan.prefix}/" if plan.prefix else ""
    plan = dataclasses.replace(plan, state=tuple(f"{at}{path}" for path in here))
    return plan


def _with_rewriter(layer: Layer, modules: dict[str, Any]) -> Layer:
    """Returns a layer with its arrays derived, if the module around rewrites them."""
    around = modules.get(layer.path.rpartition("/")[0]) if layer.path else None
    if not is_rewriting(around):
        return layer
    why = f"a {type(around).__name__} computes that from it at every call"
    rewrites = getattr(around, "variable_filter", lambda path, variable: True)
    arrays = [(x.leaf, getattr(modules[layer.path], x.leaf)) for x in layer.weights]
    derived = tuple((leaf, why) for leaf, x in arrays if rewrites((leaf,), x))
    return dataclasses.replace(layer, derived=derived)


def _check_kernels_of_their_own(
    assigned: Assignment, layers: list[Layer], modules: dict[str, Any]
) -> None:
    """Raises for an analog kernel with two names, because the plan would have one."""
    names: dict[int, list[str]] = {}
    for path, module in modules.items():
        for name, value in vars(module).items():
            if isinstance(value, nnx.Param):
                own = paths.join([name])
                full = f"{path}/{own}" if path else own
                names.setdefault(id(value), []).append(full)
    for layer, leaf in [(x, array.leaf) for x in layers for array in x.weights]:
        found = names.get(id(getattr(modules[layer.path], leaf)), [])
        if len(found) > 1 and on_hardware(assigned, layer, leaf):
            raise InputError(
                f"{' and '.join(map(repr, found))} share one kernel, but a kernel on a "
                "crossbar must belong to one layer: share the layer itself, or keep "
                "all of these layers digital with a rule"
            )


@functools.cache
def analog_root_class(base: type) -> type:
    """Returns the analog class of a model's class."""
    methods: dict[str, Any] = {
        name: _through_both_sides(base, name) for name in public_methods(base)
    }
    namespace = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce_by_base,
        "deterministic": mode_property(base),
        # For modules of the package that must not import this one.
        "analog_plan": property(lambda self: plan_of(self)),
        "set_view": view_setter(base),
        "_hwtrain_base": base,
        "_hwtrain_rebuild": analog_root_class,
        **methods,
    }
    return type(base.__name__, bases_of(base), namespace)


when_registered(analog_root_class.cache_clear)


def _through_both_sides(base: type, name: str):
    # The model itself may be a single analog layer.
    original = analog_methods(base).get(name, getattr(base, name))

    def method(self, *args, **kwargs):
        if self.__dict__.get("analog_running"):
            return original(self, *args, **kwargs)
        plan = _make(self, self.analog_assigned, check=False)
        mode = self.hardware_mode
        _check_modes(self, plan)
        plan = _followed(self, plan, name, args, kwargs)
        claim_chip_leaves(self, plan)
        weight_side.check_leaves(plan, nnx.state(self, nnx.Param))
        constants = _constants_of(self)
        if constants:
            given = constants if name == "__call__" else in_plan(plan, constants)
            plan = with_values(plan, given, IN_A_CALL)
        plan, values = split_plan(plan)
        if not weight_side.needs_root(plan, mode, values):
            return original(self, *args, **kwargs)
        key = weight_side.no_key()
        if weight_side.draws(plan, mode):
            if not hasattr(self, "analog_stream"):
                raise missing_stream(mode, self.analog_assigned.stream)
            key = self.analog_stream()
        return noisy_call(self, original, plan, mode, key, values, args, kwargs)

    return functools.update_wrapper(method, original, updated=())


def _followed(root: Any, plan: Plan, method: str, args: tuple, kwargs: dict) -> Plan:
    """Returns the plan with the weights that a call derives marked as such.

    Raises:
      ValueError: if a layer multiplies by weights that no crossbar can hold.
    """
    found = followed(root, plan, method, args, kwargs, _declared(root))
    weights = []
    for weight in plan.weights:
        path = weight_side.local(plan, weight.path)
        layer = path.rpartition("/")[0]
        if path in found.lost:
            raise lost_weight(path, layer, found.lost[path], weight.rule)
        if path in found.nonlinear:
            why = found.nonlinear[path]
            raise nonlinear_product(path, layer, why, weight.rule)
        if path in found.around:
            check_around(weight)
        why = weight.derived or found.derived.get(path, "")
        if why != weight.derived:
            weight = dataclasses.replace(weight, derived=why)
            check_derived(weight)
        if why and weight.stack != weight.parallel:
            why += ", and its layers are stacked, with leaves that it may reach too"
            raise lost_weight(path, layer, why, weight.rule)
        weights.append(weight)
    return dataclasses.replace(plan, weights=tuple(weights))


def _declared(root: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Returns the users' modules on hardware, with their known arrays.

    A stated product of another array would silently be digital. Flax's own classes
    state none.
    """
    modules = modules_of(root)
    inner = [f"{p}/" for p, m in modules.items() if p and hasattr(m, "analog_assigned")]
    layers = [describe(module, path) for path, module in modules.items()]
    return tuple(
        (layer.path, tuple(array.leaf for array in layer.weights))
        for layer in layers
        if not plain_class(type(modules[layer.path])).__module__.startswith("flax.")
        and hardware_of(root.analog_assigned, layer, "")[0] is not None
        and not any(f"{layer.path}/".startswith(prefix) for prefix in inner)
    )


def _check_modes(root: Any, plan: Plan) -> None:
    """Raises if a layer is in another mode than its model."""
    modules = modules_of(root)
    for weight in plan.weights:
        path = weight_side.local(plan, weight.layer_path)
        mode = getattr(modules.get(path), "hardware_mode", root.hardware_mode)
        if mode != root.hardware_mode:
            raise InputError(
                f"the layer {path!r} is in {mode} mode, its model in "
                f"{root.hardware_mode} mode. Set the mode of the whole model: "
                f"hwtrain.{root.hardware_mode}_mode(model)"
            )
