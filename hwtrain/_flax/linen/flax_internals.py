"""Undocumented parts of Linen that hwtrain uses.

No other module of the package uses any. Each function says why documented ways do not
suffice; `tests/_flax/test_flax_internals.py` tests what they expect of Flax.
"""

import contextlib
import contextvars
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import DenyList, axes_scan, lift
from flax.linen import linear, recurrent
from flax.linen import module as module_lib
from flax.linen.dtypes import promote_dtype as _promote_dtype

InterceptorContext = module_lib.InterceptorContext
"""The context of an intercepted call: documented, but not its location."""

GateParams = recurrent.DenseParams
"""The module with the parameters of one gate of an `OptimizedLSTMCell`. The plan treats
it as a layer; it has no public name."""


def put(module: nn.Module, **attributes: Any) -> None:
    """Sets attributes of a module, or its class.

    A bound module is frozen, and its own `__setattr__` would register submodules.
    """
    for name, value in attributes.items():
        object.__setattr__(module, name, value)


def of_same_scope(module: nn.Module) -> nn.Module:
    """Returns another object of a bound module, with its variables and name.

    `clone` would make a new submodule of its parent, with parameters of its own. Each
    object has its own scope, as a module has one after each of its calls, because a
    scope takes each name once.
    """
    other = object.__new__(type(module))
    vars(other).update(vars(module))
    state = copy.copy(module._state)
    state.children = dict(state.children)
    put(other, _state=state, scope=module.scope and module.scope.rewound())
    return other


def scope_of(module: nn.Module) -> Any:
    """Returns the scope of a module; `None` if it is not bound.

    A module's scope is an undocumented attribute. It is needed for variables, flags and
    names that outlive the call of the module's method, which rewinds them. Reads past
    the guard of a root's attributes.
    """
    return object.__getattribute__(module, "scope")


def path_of(scope: Any) -> tuple[str, ...]:
    """Returns the path of a scope; `Module.path` needs a bound module."""
    return scope.path


def has_flag(module: nn.Module, flag: str) -> bool:
    """Whether the scope of a module has a flag, which its submodules inherit.

    Lifted transforms preserve flags, but no attributes of a module.
    """
    scope = scope_of(module)
    return scope is not None and scope.has_flag(flag)


def flag(scope: Any, name: str) -> Callable[[], None]:
    """Sets a flag of a scope, and returns a function that restores the flags."""
    before = scope.flags
    scope.flags = before.copy({name: True})

    def undo() -> None:
        scope.flags = before

    return undo


def in_setup(module: nn.Module) -> bool:
    """Whether the `setup` of a module is running; it may access its submodules."""
    return object.__getattribute__(module, "_state").in_setup


def children_of(module: nn.Module) -> list[nn.Module]:
    """Returns the existing submodules of a module.

    They are not fields, and accessing an attribute would run `setup`.
    """
    children = object.__getattribute__(module, "_state").children.values()
    return [child for child in children if isinstance(child, nn.Module)]


def unbound(module: nn.Module) -> nn.Module:
    """Returns a module as it was before it was bound, with its submodules.

    `Module.unbind` also returns the variables, and rejects nested modules. A plain
    `clone` shares submodules with the bound module, which would stay bound.
    """
    return module.clone(parent=None, _deep_clone=True, _reset_names=True, name=None)


def streams_of(module: nn.Module) -> dict[str, jax.Array]:
    """Returns the keys of the streams of a bound module, by name.

    `make_rng` counts its calls, and falls back to the stream `params`.
    """
    return {name: rng.as_jax_rng() for name, rng in scope_of(module).rngs.items()}


def function_of(context: InterceptorContext) -> Callable[..., Any]:
    """Returns the function of the called method.

    `orig_method` is bound, so it does not reveal its class.
    """
    return getattr(context.orig_method, "func", context.orig_method)


def intercepted(function: Callable[..., Any], module: nn.Module, *args: Any) -> Any:
    """Calls a function as if it were a method of the module.

    Flax shows interceptors only methods defined by a module's class, and a stated
    product is not one.
    """
    return module_lib.run_interceptors(function, module, *args)


# These take a scope, because a module's own is rewound when its method returns.


def names_taken(scope: Any) -> tuple[str, ...]:
    """Returns the names that a module has used in its scope."""
    return tuple(scope.reservations)


def is_taken(scope: Any, name: str) -> bool:
    """Whether a name is used in a scope."""
    return scope.name_reserved(name)


def parameter(scope: Any, name: str) -> Any:
    """Returns a parameter as stored."""
    return scope.get_variable("params", name)


def put_parameter(scope: Any, name: str, value: Any) -> None:
    """Stores a parameter unless it exists; `Module.param` would count a key."""
    if not scope.has_variable("params", name):
        scope.put_variable("params", name, value)


def all_but(collection: str) -> DenyList:
    """Returns the argument of `apply(mutable=)` for all collections except one."""
    return DenyList(collection)


def map_variables_function() -> Callable[..., Any]:
    """Returns the function with which Flax maps the variables of a module."""
    return lift.map_variables


def put_map_variables_function(function: Callable[..., Any]) -> None:
    """Replaces that function.

    Layers such as `nn.WeightNorm` call it directly, so it cannot be passed in.
    """
    lift.map_variables = function


unchanged = lift.id_fn
"""The argument of that function for a map that changes nothing."""


def canonical_padding(padding: Any, rank: int) -> Any:
    """Returns the padding of a convolution in the form that its layer passes on."""
    return linear.canonicalize_padding(padding, rank)


def bias_shape(
    einsum: nn.Einsum, equation: str, inputs: jax.Array, kernel: jax.Array
) -> list[int]:
    """Returns the shape in which an `nn.Einsum` adds its bias."""
    return einsum._get_bias_shape(equation, inputs, kernel)[1]


def promoted(*arrays: jax.Array | None, dtype: Any) -> list[Any]:
    """Returns arrays in the dtype of a layer without a `promote_dtype` field."""
    return _promote_dtype(*arrays, dtype=dtype)


_CHECKED_SCAN = next(
    code
    for code in axes_scan.scan.__code__.co_consts
    if getattr(code, "co_name", None) == "scan_fn"
)


_check_scans: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "hwtrain_check_scans", default=True
)
_scan = axes_scan.scan


@functools.wraps(_scan)
def _scan_as_asked(
    fn: Any,
    in_axes: Any,
    out_axes: Any,
    *args: Any,
    check_constancy_invariants: bool = True,
    **kwargs: Any,
) -> Any:
    constants = axes_scan.broadcast in jax.tree.leaves(out_axes)
    check = check_constancy_invariants and (constants or _check_scans.get())
    return _scan(
        fn, in_axes, out_axes, *args, check_constancy_invariants=check, **kwargs
    )


@contextlib.contextmanager
def unchecked_scans() -> Iterator[None]:
    """Has an `nn.scan` trace its body only once, in its loop, as callbacks need it.

    Before, it would look for constants in the body: since Flax 0.12.12, it rejects
    callbacks there. An `nn.scan` that returns constants is checked all the same.
    """
    axes_scan.scan = _scan_as_asked
    token = _check_scans.set(False)
    try:
        yield
    finally:
        _check_scans.reset(token)


def checks_what_is_constant() -> bool:
    """Whether an `nn.scan` is tracing its body only to find constants.

    It does so before it loops. Only the Python stack tells the two traces apart.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        looping = "constants_out" in frame.f_locals
        if frame.f_code is _CHECKED_SCAN and not looping:
            return True
        frame = frame.f_back
    return False


@functools.cache
def refuses_callbacks() -> bool:
    """Whether this version of Flax rejects callbacks in a body that it checks this way.

    From 0.12.12 on, it expects the arguments of callbacks to be constant, and raises
    otherwise.
    """

    class Body(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            jax.debug.callback(lambda x: None, carry)
            return carry, None

    scan = nn.scan(Body, length=1)(parent=None)
    token = _check_scans.set(True)
    try:
        with jax.ensure_compile_time_eval():  # it may be asked in a trace
            jax.eval_shape(functools.partial(scan.apply, {}), jnp.zeros(()), None)
    except ValueError:
        return True
    finally:
        _check_scans.reset(token)
    return False
