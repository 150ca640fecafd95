"""All that hwtrain needs of Linen beyond what Flax documents.

Nothing else in the package touches it. Each function says why the documented way does
not do; `tests/transforms/test_flax_internals.py` says what each expects of Flax.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import DenyList, axes_scan, lift
from flax.linen import linear, recurrent
from flax.linen import module as module_lib
from flax.linen.dtypes import promote_dtype as _promote_dtype

InterceptorContext = module_lib.InterceptorContext
"""What an interceptor is told of a call: documented, but not where it is."""


GateParams = recurrent.DenseParams
"""The module that holds the parameters of one gate of an `OptimizedLSTMCell`. It is a
layer to the plan, and has no public name."""


def put(module: nn.Module, **attributes: Any) -> None:
    """Sets attributes of a module, or its class.

    A bound module is frozen, and its own `__setattr__` would register submodules.
    """
    for name, value in attributes.items():
        object.__setattr__(module, name, value)


def scope_of(module: nn.Module) -> Any:
    """Returns the scope of a module; `None` if it is not bound.

    A module's scope is no documented attribute. It is needed where its variables,
    flags and names outlive the call of the module's method, which rewinds them. A root
    guards its attributes: this asks around its guard.
    """
    return object.__getattribute__(module, "scope")


def path_of(scope: Any) -> tuple[str, ...]:
    """Returns the path of a scope: `Module.path` would ask for a bound module."""
    return scope.path


def has_flag(module: nn.Module, flag: str) -> bool:
    """Whether the scope of a module has a flag, which Flax hands on to those within.

    Only flags go through lifted transforms; no attribute of a module does.
    """
    scope = scope_of(module)
    return scope is not None and scope.has_flag(flag)


def flag(scope: Any, name: str) -> Callable[[], None]:
    """Sets a flag of a scope, and returns what takes it away."""
    before = scope.flags
    scope.flags = before.copy({name: True})

    def undo() -> None:
        scope.flags = before

    return undo


def in_setup(module: nn.Module) -> bool:
    """Whether the `setup` of a module runs, in which it may reach its submodules."""
    return object.__getattribute__(module, "_state").in_setup


def children_of(module: nn.Module) -> list[nn.Module]:
    """Returns the submodules that a module holds already.

    They are in no field, and to look at an attribute would run `setup`.
    """
    children = object.__getattribute__(module, "_state").children.values()
    return [child for child in children if isinstance(child, nn.Module)]


def unbound(module: nn.Module) -> nn.Module:
    """Returns a module as it was before it was bound, with its submodules.

    `Module.unbind` gives the variables too, and refuses modules within others. What a
    plain `clone` shares with the bound one, its submodules, would be bound still.
    """
    return module.clone(parent=None, _deep_clone=True, _reset_names=True, name=None)


def streams_of(module: nn.Module) -> dict[str, jax.Array]:
    """Returns the keys of the streams of a bound module, by name.

    `make_rng` counts its calls, and falls back to the stream `params`.
    """
    return {name: rng.as_jax_rng() for name, rng in scope_of(module).rngs.items()}


def function_of(context: InterceptorContext) -> Callable[..., Any]:
    """Returns the function of the method of a call.

    `orig_method` is bound, so that it does not say of which class it is.
    """
    return getattr(context.orig_method, "func", context.orig_method)


def intercepted(function: Callable[..., Any], module: nn.Module, *args: Any) -> Any:
    """Calls a function of a module and more as a method of the module's.

    Flax shows interceptors the methods that a module's class defines. A product that a
    method states is none.
    """
    return module_lib.run_interceptors(function, module, *args)


# Of a scope, since a module's own is rewound when its method returns.


def names_taken(scope: Any) -> tuple[str, ...]:
    """Returns the names of what a module has called into being."""
    return tuple(scope.reservations)


def is_taken(scope: Any, name: str) -> bool:
    """Whether a module has called something in it by a name."""
    return scope.name_reserved(name)


def parameter(scope: Any, name: str) -> Any:
    """Returns a parameter, as it is stored."""
    return scope.get_variable("params", name)


def put_parameter(scope: Any, name: str, value: Any) -> None:
    """Puts a parameter, unless it is there: `Module.param` would count a key."""
    if not scope.has_variable("params", name):
        scope.put_variable("params", name, value)


def all_but(collection: str) -> DenyList:
    """Returns what `apply(mutable=)` takes for all collections but one."""
    return DenyList(collection)


def map_variables_function() -> Callable[..., Any]:
    """Returns the function by which Flax maps the variables of a module."""
    return lift.map_variables


def put_map_variables_function(function: Callable[..., Any]) -> None:
    """Puts another one in its place.

    Layers such as `nn.WeightNorm` call it, so that no argument of a user's reaches it.
    """
    lift.map_variables = function


unchanged = lift.id_fn
"""What that function takes for a map that does nothing."""


def canonical_padding(padding: Any, rank: int) -> Any:
    """Returns the padding of a convolution as its layer hands it on."""
    return linear.canonicalize_padding(padding, rank)


def bias_shape(
    einsum: nn.Einsum, equation: str, inputs: jax.Array, kernel: jax.Array
) -> list[int]:
    """Returns the shape in which an `nn.Einsum` adds its bias."""
    return einsum._get_bias_shape(equation, inputs, kernel)[1]


def promoted(*arrays: jax.Array | None, dtype: Any) -> list[Any]:
    """Returns arrays in the dtype of a layer that has no field for it."""
    return _promote_dtype(*arrays, dtype=dtype)


_CHECKED_SCAN = next(
    code
    for code in axes_scan.scan.__code__.co_consts
    if getattr(code, "co_name", None) == "scan_fn"
)


def checks_what_is_constant() -> bool:
    """Whether an `nn.scan` traces its body now only to see what is constant in it.

    It does before it loops. Nothing but the Python stack tells the two traces apart.
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
    """Whether this version of Flax has no callback in a body that it checks so.

    From 0.12.12 on it takes what a callback is given for something that is to be
    constant, and raises.
    """

    class Body(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            jax.debug.callback(lambda x: None, carry)
            return carry, None

    scan = nn.scan(Body, length=1)(parent=None)
    with jax.ensure_compile_time_eval():  # it may be asked in a trace
        try:
            jax.eval_shape(functools.partial(scan.apply, {}), jnp.zeros(()), None)
        except ValueError:
            return True
    return False
