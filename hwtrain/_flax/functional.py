"""An analog model, Linen or NNX, as a function of its variables and a key."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from hwtrain._arrays import paths, processes
from hwtrain._arrays.shared import is_shared, require_alike
from hwtrain._errors import InputError
from hwtrain._flax.calls import divided
from hwtrain._flax.linen import root as linen_root
from hwtrain._flax.nnx import root as nnx_root
from hwtrain._flax.nnx.step import stored
from hwtrain._plan.leaf_names import is_effective, may_be_leaf


def as_function(
    analog: Any, mode: str, variables: Any = None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns `function(variables, key, *args, **kwargs)`, and the variables.

    Args:
      analog: the analog model; it is not changed.
      mode: `"train"`, `"chip"` or `"eval"`.
      variables: Linen: the variables. NNX: `params` to use instead of the model's, or
        `None` for the model's; other variables of a state may be included, or given as
        further collections.

    Returns:
      The function, which draws the noise of a step from `key`, and its variables: a
      dict whose entry `params` is a nested dict of arrays. In chip mode, `params` may
      include the leaves that `with_chip_leaves` of `chips` puts beside a chip's
      weights. The function returns only outputs; variables that a call writes, such as
      the statistics of a BatchNorm, are dropped. For Linen it takes `rngs`, `mutable`
      and `method` as Flax's `apply` does. All randomness except that of `key` is the
      same in every call.
    """
    if isinstance(analog, nnx.Module):
        return _nnx_function(analog, mode, variables)
    model = linen_root.with_mode(analog, mode)
    tree = dict(variables) if "params" in variables else {"params": variables}

    stream = linen_root.assigned(analog).stream

    def function(
        variables: Any,
        key: jax.Array,
        *args: Any,
        rngs: Any = None,
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        given = rngs if isinstance(rngs, Mapping) or rngs is None else {"params": rngs}
        # Count 0, as of an NNX stream at its first call, so that both draw the same.
        rngs = {**(given or {}), stream: jax.random.fold_in(key, 0)}
        found = model.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs)
        return found if mutable is False else found[0]

    return function, tree


def are_shared(analog: Any, **given: Any) -> bool:
    """Returns whether all processes call a model together; see `is_shared`.

    Args:
      analog: the analog model.
      **given: its variables and arguments.
    """
    own = nnx.state(analog) if isinstance(analog, nnx.Module) else None
    return is_shared({"model": own, **given})


def require_same_plan(plan: Any, shared: bool) -> None:
    """Raises on all processes unless they have the same plan.

    Args:
      plan: the plan, or weights of it.
      shared: whether all processes call this; otherwise it does nothing.
    """
    if shared:
        processes.require_same("the plan", zlib.crc32(repr(plan).encode()))


def agreed(program: Any, shared: bool) -> Callable[..., Any]:
    """Returns a compiled function that raises on all processes if it does on one.

    It runs only when all have traced it, with like arguments: a process in the program
    would wait for the others without end.

    Args:
      program: from `jax.jit`, called as `program(variables, key, *args)`.
      shared: whether all processes call it; otherwise it is returned as it is.
    """
    if not shared:
        return program

    def call(variables: Any, key: jax.Array, *args: Any) -> Any:
        with processes.together(True):
            program.trace(variables, key, *args)
        require_alike({"variables": variables, "arguments": args})
        return program(variables, key, *args)

    return call


def compiled(
    function: Callable[..., Any], kwargs: Mapping[str, Any], shared: bool = False
) -> Callable[..., Any]:
    """Returns a function of `as_function` with its keyword arguments as one program.

    Args:
      function: called as `function(variables, key, *args, **kwargs)`.
      kwargs: keyword arguments of every call.
      shared: whether all processes call it together; see `agreed`.

    Returns:
      A function called as `compiled(variables, key, *args)`.
    """
    arrays, static = divided(kwargs)

    @jax.jit
    def program(variables: Any, key: jax.Array, arrays: Any, *args: Any) -> Any:
        return function(variables, key, *args, **arrays, **static)

    call = agreed(program, shared)
    return lambda variables, key, *args: call(variables, key, arrays, *args)


def _check_same(given: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises unless the given parameters of an NNX model are all of its parameters."""
    for path in sorted(own.keys() | given.keys()):
        shapes = [tuple(t[path].shape) if path in t else None for t in (given, own)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"the parameters given for the model should hold {path!r} of shape "
                f"{shapes[1]}, got {shapes[0]} (None: missing). Complete those of the "
                "plain model with hwtrain.adopt(analog, params)"
            )


def _one_tree(given: Any) -> Any:
    """Returns parameters and a checkpoint's other collections as one tree.

    Args:
      given: parameters, an `nnx.State`, or collections including `params`.
    """
    if isinstance(given, nnx.State):
        return stored(given)
    if "params" not in given:
        return given
    tree = _one_tree(given["params"])
    for name, collection in given.items():
        if name not in ("params", "rest"):  # `rest` is the model's own
            tree = _merged(tree, collection)
    return tree


def _merged(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[Any, Any]:
    """Returns the union of nested mappings."""
    merged = dict(one)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(one.get(name), Mapping)
        merged[name] = _merged(one[name], value) if both else value
    return merged


def _filled(model: Any, given: Any) -> nnx.State:
    """Returns a model's state with the given parameters and statistics."""
    state = nnx.state(model)
    values = stored(state)
    beside = paths.leaves(stored(nnx.state(model, nnx.Not(nnx.Param))))
    leaves = paths.leaves(given)
    # Variables other than parameters, such as statistics of a BatchNorm, are optional.
    left_out = beside.keys() - leaves.keys()
    own = {k: v for k, v in paths.leaves(values).items() if k not in left_out}
    _check_same(leaves, own)
    nnx.replace_by_pure_dict(state, paths.insert(values, leaves))
    return state


def _nnx_function(
    analog: Any, mode: str, params: Any
) -> tuple[Callable[..., Any], dict[str, Any]]:
    model = nnx_root.set_mode(nnx.clone(analog), mode)
    beside: dict[str, Any] = {}
    if params is not None:
        params = _one_tree(params)
        own = paths.leaves(nnx.state(model, nnx.Param)).keys()
        given = paths.leaves(params)
        effective = {x for x in given if is_effective(x) and may_be_leaf(x, given)}
        effective -= own
        beside = {path: given[path] for path in effective}
        params = paths.drop(params, lambda path: path not in effective)
        nnx.update(model, _filled(model, params))
    graphdef, state, rest = nnx.split(model, nnx.Param, ...)
    own = paths.leaves(stored(state)).keys()

    def function(variables: Any, key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        # Copies, because both structures are filled in place, and a state's variables
        # belong to the trace that created them.
        filled, rest = jax.tree.map(lambda leaf: leaf, (state, variables["rest"]))
        params = variables["params"]
        known = paths.drop(params, lambda path: path in own)
        beside = paths.drop(params, lambda path: path not in own)
        nnx.replace_by_pure_dict(filled, known)
        called = nnx.merge(graphdef, filled, rest)
        if beside:
            nnx.update(called, beside)
        called.analog_stream = nnx.RngStream(key, tag="mismatch")
        return called(*args, **kwargs)

    params = paths.insert(stored(state), beside)
    return function, {"params": params, "rest": rest}
