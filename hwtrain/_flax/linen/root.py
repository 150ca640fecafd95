"""The root of an analog Linen model: a clone with its class replaced.

There is no wrapper module, so no path changes. Every public method of the user's class
applies the weight side (a transform of `params` on entry) and the signal side
(interceptors around each layer).
"""

import dataclasses
import functools
import inspect
import itertools
from typing import Any

import jax
from flax import linen as nn

from hwtrain._arrays import paths
from hwtrain._arrays.random import fold_in
from hwtrain._errors import InputError
from hwtrain._flax import weight_side
from hwtrain._flax.attributes import plain_class
from hwtrain._flax.errors import missing_stream
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.linen.guard import (
    entered,
    guarded_getattr,
    guarded_getattribute,
    is_running,
    unguarded,
)
from hwtrain._flax.linen.kept_leaves import AnyLeaf, kept
from hwtrain._flax.linen.layers import (
    analog_call,
    create_leaves,
    describe,
    names_of,
    refuse_late,
    returns,
    states_product,
)
from hwtrain._flax.linen.prepass import (
    analog_trace,
    fresh,
    linen_plan,
    parameter_shapes,
)
from hwtrain._flax.linen.scopes import belonging
from hwtrain._flax.loops import as_root, when_returned
from hwtrain._flax.read_keys import generator_of
from hwtrain._flax.stored_outputs import stored
from hwtrain._plan.constants import Constants, in_plan, merged, split_plan, with_values
from hwtrain._plan.layer import joined
from hwtrain._plan.plan import Plan
from hwtrain._plan.planning import hardware_of, make_plan, real
from hwtrain._plan.rules import Assignment
from hwtrain._plan.traceable import IN_A_CALL


def analogize_linen(module: nn.Module, assigned: Assignment) -> nn.Module:
    """Returns an analog clone of a module, in train mode."""
    if hasattr(type(module), "_hwtrain_base"):
        raise InputError(
            f"{type(module).__name__} is analog already; analogize the plain module"
        )
    return _with_class(module, analog_class(type(module), assigned, "train"))


_fresh = itertools.count()


def with_mode(module: Any, mode: str) -> Any:
    """Returns a clone of an analog module in another mode."""
    cls = analog_class(plain_class(type(module)), assigned(module), mode)
    return _another(module, _with_values(cls, module._hwtrain_constants))


def with_constants(module: Any, constants: Constants) -> Any:
    """Returns a clone of an analog module with additional traced constants.

    Arguments as for `hwtrain.with_constants`.
    """
    mode = assigned(module) and module._hwtrain_mode
    cls = analog_class(plain_class(type(module)), assigned(module), mode)
    given = merged(module._hwtrain_constants, constants)
    return _another(module, _with_values(cls, given))


def _with_values(cls: Any, constants: Constants) -> Any:
    """Returns an analog class with traced constants, which is new to every cache."""
    if not constants:
        return cls
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__annotations__": {"_hwtrain_number": int},
        # Flax compares modules by their fields, and a new class may reuse the memory of
        # an old one.
        "_hwtrain_number": dataclasses.field(
            default=next(_fresh), init=False, repr=False
        ),
        "_hwtrain_constants": constants,
    }
    made: Any = type(cls.__name__, (cls,), namespace)
    made.__init__ = cls.__init__
    return made


def assigned(module: Any) -> Assignment:
    """Returns the assignment of an analog module.

    Raises:
      ValueError: if the module is not analog.
    """
    if not hasattr(type(module), "_hwtrain_assigned"):
        raise InputError(
            f"{type(module).__name__} is not analog; write analogize(module, hardware)"
        )
    cls: Any = type(module)
    return cls._hwtrain_assigned


def plan_of(
    module: nn.Module, variables: Any, args: tuple, kwargs: dict, method: str, rngs: Any
) -> Plan:
    """Returns the plan of an analog module for an example call."""
    tree = variables if "params" in variables else {"params": variables}
    plan = linen_plan(module, assigned(module), tree, rngs, method, args, kwargs)
    present = parameter_shapes(tree["params"])
    made = [w.effective_path for w in plan.weights if w.pending]
    there = [path for path in made if weight_side.local(plan, path) in present]
    return plan.effective if there else plan


def _with_class(module: nn.Module, cls: type) -> nn.Module:
    # A module created in another one's call already belongs to it; a clone would not.
    inside = isinstance(module.parent, nn.Module)
    analog = module if inside else module.clone()
    internals.put(analog, __class__=cls)
    return analog


def _another(module: nn.Module, cls: type) -> nn.Module:
    """Returns the module in another class; the given one stays as it is."""
    inside = isinstance(module.parent, nn.Module)
    other = internals.of_same_scope(module) if inside else module.clone()
    internals.put(other, __class__=cls)
    return other


@functools.cache
def analog_class(base: type, assigned: Assignment, mode: str) -> type:
    """Returns the analog class of a module class, one for each assignment and mode.

    It is cached, so that equal models are equal and share every jit cache.
    """
    methods: dict[str, Any] = {
        name: _through_both_sides(base, name) for name in _public_methods(base)
    }
    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__getattribute__": guarded_getattribute,
        "__getattr__": guarded_getattr,
        "__reduce__": _reduce,
        "clone": unguarded(base, "clone"),
        "__repr__": unguarded(base, "__repr__"),
        "apply": _with_own_method(base, "apply"),
        "init_with_output": _with_own_method(base, "init_with_output"),
        "_hwtrain_base": base,
        "_hwtrain_assigned": assigned,
        "_hwtrain_mode": mode,
        "_hwtrain_constants": {},
        **methods,
    }
    made: Any = type(base.__name__, (base,), namespace)
    # Flax generates an `__init__` for every subclass, without decorators around the
    # user's. The fields are the same.
    made.__init__ = base.__init__
    return made


def _public_methods(base: type) -> list[str]:
    names = []
    for cls in base.__mro__[: base.__mro__.index(nn.Module)]:
        for name, value in vars(cls).items():
            public = name == "__call__" or not name.startswith("_")
            if public and name != "setup" and inspect.isfunction(value):
                names.append(name)
    return list(dict.fromkeys(names))


def _through_both_sides(base: type, name: str):
    original = getattr(base, name)

    def method(self, *args, **kwargs):
        if internals.scope_of(self) is None or is_running(self):
            return original(self, *args, **kwargs)
        run = _initialize if self.is_initializing() else _apply
        with belonging(self) as ours, entered(self, ours):
            return run(self, ours, original, name, args, kwargs)

    functools.update_wrapper(method, original, updated=())
    return method


def _relative(root: nn.Module, module: nn.Module) -> str:
    return paths.join(module.path[len(root.path) :])


def _initialize(root: Any, ours, original, name: str, args: tuple, kwargs: dict):
    """Runs `init`: the plain forward pass, and the leaves of analog layers."""
    told = assigned(root)
    layers, users = {}, set()
    waiting = []

    def interceptor(next_function, args, kwargs, context):
        module = context.module
        if not ours(module):
            return next_function(*args, **kwargs)
        # Read before the call, because Flax rewinds a module's scope after it.
        scope = internals.scope_of(module)
        result = next_function(*args, **kwargs)
        path = _relative(root, module)
        users.update(names_of(scope, path, told.own_leaves))
        layer = describe(context, path, args, kwargs)
        # A module may share its layer's scope.
        layers[path] = joined(layers.get(path), layer)
        waiting.append((scope, layer))
        if states_product(context):
            return result  # the user's parameter names are known after the method
        ready = [pair for pair in waiting if _within(pair[1].path, path)]
        waiting[:] = [pair for pair in waiting if not _within(pair[1].path, path)]
        for scope, layer in ready:
            for array in layer.weights:
                hardware, rule = hardware_of(told, layer, array.leaf)
                if hardware is not None:
                    create_leaves(scope, layer, array.leaf, hardware, rule)
        return result

    with (
        nn.intercept_methods(interceptor),
        analog_trace(("init", next(fresh))),
        kept(AnyLeaf(told.own_leaves), told.own_leaves),
    ):
        result = original(root, *args, **kwargs)
    if name == "__call__":
        params = root.variables.get("params", {})
        shapes = parameter_shapes(params)
        # Checks that every rule applies somewhere, and that all weights are real.
        real(make_plan(told, list(layers.values()), shapes, users), params)
    return result


def _within(path: str, other: str) -> bool:
    return not other or f"{path}/".startswith(f"{other}/")


def _apply(root: Any, ours, original, name: str, args: tuple, kwargs: dict):
    """Runs a method with weight side and signal side."""
    told, mode = assigned(root), root._hwtrain_mode
    rngs = internals.streams_of(root)
    # Bound modules cannot be hashed, but plans of equal calls should be cached.
    unbound = internals.unbound(root)
    static = analog_class(plain_class(type(root)), told, mode)
    object.__setattr__(unbound, "__class__", static)  # without traced constants
    plan = linen_plan(
        unbound,
        told,
        root.variables,
        rngs,
        name,
        args,
        kwargs,
    )
    weight_side.check_leaves(plan, root.variables.get("params", {}))
    constants = root._hwtrain_constants
    if constants:
        given = constants if name == "__call__" else in_plan(plan, constants)
        plan = with_values(plan, given, IN_A_CALL)
    plan, values = split_plan(plan)
    through = weight_side.needs_root(plan, mode, values)
    key = weight_side.no_key() if through else None
    if weight_side.draws(plan, mode):
        # Not make_rng, which counts calls and falls back to the params stream.
        if told.stream not in rngs:
            raise missing_stream(mode, told.stream)
        key = _at_call(root, rngs[told.stream])
    by_path = {
        weight_side.local(plan, weight.path): weight
        for weight in plan.weights
        if weight.kind != "raw"
    }

    outputs = {weight_side.local(plan, each.path): each for each in plan.outputs}

    def kept_result(path, context, found, arguments):
        output = outputs.get(path)
        if output and returns(context, output):
            return stored(output, found, arguments)
        return found

    def interceptor(next_function, args, kwargs, context):
        if not ours(context.module):
            return next_function(*args, **kwargs)
        path = _relative(root, context.module)
        found = analog_call(by_path, path, mode, context, next_function, args, kwargs)
        return kept_result(path, context, found, (args, kwargs))

    def refusal(next_function, args, kwargs, context):
        if not ours(context.module):
            return next_function(*args, **kwargs)
        path = _relative(root, context.module)
        refuse_late(by_path, path, context, args)
        return kept_result(
            path, context, next_function(*args, **kwargs), (args, kwargs)
        )

    names = {
        path.rpartition("/")[2] for weight in plan.weights for path in weight.owned
    }

    def run(module, *args, **kwargs):
        when_returned(functools.partial(nn.intercept_methods, refusal))
        with kept(names, told.own_leaves):
            return original(module, *args, **kwargs)

    if key is not None:
        run = nn.map_variables(
            run,
            "params",
            trans_in_fn=functools.partial(_transform, plan, mode, key, values),
            mutable=False,
        )
    with (
        nn.intercept_methods(interceptor),
        analog_trace((told, mode)),
        generator_of(key),
        kept(()),
    ):
        return as_root(run, root, *args, **kwargs)


def _at_call(root: Any, key: jax.Array) -> jax.Array:
    """Returns the key for this call of a root in its scope; later calls draw anew.

    The first call uses the key itself. A model is called once in `apply`; inside
    another module, or bound, it may be called several times.
    """
    scope = internals.scope_of(root)
    count = getattr(scope, "hwtrain_calls", 0)
    scope.hwtrain_calls = count + 1
    return fold_in(key, count) if count else key


def _transform(
    plan: Plan, mode: str, key: Any, values: weight_side.Values, variables: Any
) -> Any:
    """Returns the variables of one step, with the leaves that analog layers need."""
    params, leaves = weight_side.step_weights(
        variables["params"], plan, mode, key, values
    )
    return {**variables, "params": paths.insert(params, leaves)}


def _with_own_method(base: type, name: str):
    """Makes `method=Model.encode` refer to the analog method, not the user's."""
    original = getattr(base, name)

    @nn.nowrap
    def call(self, *args, method=None, **kwargs):
        given = getattr(method, "__name__", "")
        if callable(method) and getattr(base, given, None) is method:
            method = given
        return original(self, *args, method=method, **kwargs)

    functools.update_wrapper(call, original, updated=())
    return call


@nn.nowrap
def _reduce(self):
    fields = {
        name: object.__getattribute__(self, name)
        for name, field in self.__dataclass_fields__.items()
        if field.init and name != "parent"
    }
    cls = type(self)
    base, mode = cls._hwtrain_base, cls._hwtrain_mode
    constants = cls._hwtrain_constants
    return _rebuild, (base, cls._hwtrain_assigned, mode, fields, constants)


def _rebuild(
    base: type,
    assigned: Assignment,
    mode: str,
    fields: dict[str, Any],
    constants: Constants,
):
    return _with_values(analog_class(base, assigned, mode), constants)(**fields)
