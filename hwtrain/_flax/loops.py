"""The place of a read: its indices in all enclosing loops and maps of JAX.

JAX traces the body of a loop once, and nothing visible to a layer counts its steps. So
while an analog root is traced, `scan` and `while_loop` pass an index to their body, and
a read gets the indices of all loops and maps that enclose it. They count steps and
rows, do not depend on values, and are recomputed by `remat`.

1. Loops are redirected in the code of JAX's functions, not at names in `jax.lax`: a
   function imported by value is the same object, and `fori_loop`, `map` and Flax's
   loops call it. Outside a root, and in other threads, nothing changes.
2. A `vmap` already has its index: JAX creates it on demand. A read finds it on the
   Python stack between itself and its root, whenever the vmapped function was created.
3. JAX caches traces and reuses them. Their key includes a user context, which gets a
   fresh value after every read inside a trace that may be cached: no trace cached under
   the current value contains a read. So no index is frozen and no draw repeats.
4. A JAX loop on the stack that passed no index is an error: its noise would repeat.
5. A function with a custom derivative and its rule are two programs of one call: they
   are redirected too, and count from the same numbers.

All private names of JAX are used in this file only. `install` checks them.
"""

import contextlib
import contextvars
import functools
import inspect
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src import core
from jax._src.interpreters import batching

from hwtrain._errors import InputError

Index = Any
"""The index of a step or a row: `uint32`, a traced scalar."""


class _Root:
    """The counters of a running root.

    Attributes:
      calls: number of reads by name, because a second call draws anew.
      late: contexts for rules that run after the root has returned.
      kept: whether a read was inside a trace that JAX may cache and reuse.
    """

    def __init__(self):
        self.calls: dict[str, int] = {}
        self.late: list[Callable[[], contextlib.AbstractContextManager[Any]]] = []
        self.kept = False


# Part of the key of every trace that JAX caches.
_trace: Any = jax.make_user_context(default_value=None)


class _Key(threading.local):
    """The value of that part in a thread's roots; no trace under it has a read."""

    def __init__(self):
        self.value = object()


_key = _Key()


class _Here(NamedTuple):
    """The current position of the trace.

    Attributes:
      root: the running root, if any.
      steps: the step of each enclosing loop, outermost first.
      late: whether a rule is running whose root has returned.
    """

    root: _Root | None = None
    steps: tuple[Index, ...] = ()
    late: bool = False


_OUTSIDE = _Here()

_here: contextvars.ContextVar[_Here] = contextvars.ContextVar(
    "hwtrain_here", default=_OUTSIDE
)


@contextlib.contextmanager
def _standing(**changed: Any) -> Iterator[None]:
    token = _here.set(_here.get()._replace(**changed))
    try:
        yield
    finally:
        _here.reset(token)


def as_root(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function as an analog root, so that reads inside know their place.

    A root inside a root belongs to the outer one.
    """
    if _here.get().root is not None:
        return function(*args, **kwargs)
    return as_new_root(function, *args, **kwargs)


def as_new_root(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As `as_root`, but independent of the loops and calls of an outer root."""
    new = _Root()
    try:
        with _standing(root=new, steps=()), _trace(_key.value):
            return function(*args, **kwargs)
    finally:
        if new.kept and _here.get().root is not None:
            _never_again()  # the restored context is older than the reads


def shared() -> Any:
    """Lets our own functions that JAX compiles inside a root share their traces.

    Returns a context in which there must be no read.
    """
    return _trace("shared")


def place(name: str) -> tuple[int, tuple[Index, ...]]:
    """Returns the place of a read: the number of the call and the enclosing indices.

    The pair is unique for each call in a root, and each step and row of the loops and
    maps inside it. Loops come first, outermost first; then the maps.

    Args:
      name: the name whose calls are counted.

    Raises:
      ValueError: inside a loop or map with an unknown step, or without a root.
    """
    indices = (*_here.get().steps, *rows(name))
    root: Any = _here.get().root
    call = root.calls[name] = root.calls.get(name, -1) + 1
    return call, indices


def rows(name: str) -> tuple[Index, ...]:
    """Returns the indices of the maps around a read, equal for all calls and steps.

    Arguments and errors as for `place`.
    """
    root = _here.get().root
    if root is None:
        raise returned(name)
    found, kept = _read_stack(name)
    if kept:
        root.kept = True
        _never_again()
    return found


_MUST_NOT = "must not call an analog layer: call it outside, and pass its output in"
_WAY_OUT = (
    "A rule of jax.custom_vjp or jax.custom_jvp, a function under shard_map or pmap, "
    f"and a jaxpr that is kept by hand {_MUST_NOT}"
)


def runs_late() -> bool:
    """Returns whether a rule is running whose root has returned."""
    return _here.get().late


def returned(name: str) -> ValueError:
    """Returns the error for a layer that is called after its root has returned."""
    return InputError(
        f"{name}: its noise is drawn after its model has returned, where neither the "
        "call nor a step is known: jax.grad(jax.jit(loss)) runs the rule of a "
        "custom_vjp or custom_jvp there. Write jax.jit(jax.grad(loss)); else such a "
        f"rule {_MUST_NOT}"
    )


def when_returned(context: Callable[[], Any]) -> None:
    """Gives the current root a context for rules that run after it has returned."""
    root: Any = _here.get().root
    root.late.append(context)


def _never_again() -> None:
    """Changes the key of later traces, in this root and later ones.

    The context is never exited; leaving the root restores the earlier one.
    """
    _key.value = object()
    _trace(_key.value).__enter__()


def _at(step: Index) -> contextlib.AbstractContextManager[None]:
    """Marks the tracing of a loop's body at a step.

    JAX may trace a body twice and keep either trace. This does no harm: call numbers
    only increase, in the same order with and without `remat`.
    """
    return _standing(steps=(*_here.get().steps, step))


# The step is an extra carry, which needs no length and also counts reversed scans.


def _scan(original, f, init, xs=None, *args, **kwargs):
    def body(carry, x):
        with _at(carry[0]):
            new, y = f(carry[1], x)
        return (carry[0] + jnp.uint32(1), new), y

    carry, ys = original(body, (jnp.uint32(0), init), xs, *args, **kwargs)
    return carry[1], ys


def _while_loop(original, cond_fun, body_fun, init_val):
    def cond(carry):
        with _at(carry[0]):
            return cond_fun(carry[1])

    def body(carry):
        with _at(carry[0]):
            return carry[0] + jnp.uint32(1), body_fun(carry[1])

    return original(cond, body, (jnp.uint32(0), init_val))[1]


def _one_call(original, rule, *args, _rules, **kwargs):
    """Calls a function with derivative rules, so that each of them is the same call.

    JAX runs the function or a rule, or both in turn: with `remat` first one, then the
    other. A rule that runs after the root has returned runs in the root's contexts.
    """
    if str(getattr(rule.fun, "__module__", "")).startswith(("jax.", "hwtrain.")):
        return original(rule, *args, **kwargs)
    root: Any = _here.get().root
    before = dict(root.calls)

    def once(function):
        @functools.wraps(function)
        def counted(*args, **kwargs):
            if _here.get().root is not root:
                with contextlib.ExitStack() as late:
                    late.enter_context(_standing(late=True))
                    for context in root.late:
                        late.enter_context(context())
                    return function(*args, **kwargs)
            after, root.calls = root.calls, dict(before)
            try:
                return function(*args, **kwargs)
            finally:
                for name, number in after.items():
                    root.calls[name] = max(number, root.calls.get(name, number))

        return counted

    copied = object.__new__(type(rule))  # its own `__new__` needs a function
    vars(copied).update(vars(rule))
    for name in _rules:
        function = getattr(rule, name)
        setattr(copied, name, None if function is None else once(function))
    return original(copied, *args, **kwargs)


_OURS = {
    code
    for function in (_scan, _while_loop)
    for code in function.__code__.co_consts
    if isinstance(code, types.CodeType)
}
"""The code of the bodies that the redirected loops run."""

_LOOPS: dict[types.CodeType, str] = {}
"""The code of JAX's loops, which identifies them on the stack."""

_lock = threading.Lock()


def install() -> None:
    """Redirects JAX's loops, once.

    Raises:
      RuntimeError: if this version of JAX is incompatible with the redirection.
    """
    with _lock:
        if _LOOPS:
            return
        _check_version()
        for function, replacement in (
            (jax.lax.scan, _scan),
            (jax.lax.while_loop, _while_loop),
        ):
            _LOOPS[_redirect(function, replacement)] = function.__name__
        for kind, rules in (
            (jax.custom_vjp, ("fun", "fwd", "bwd")),
            (jax.custom_jvp, ("fun", "jvp")),
        ):
            _redirect(kind.__call__, functools.partial(_one_call, _rules=rules))


def _check_version() -> None:
    """Raises unless a read finds the rows of a vmapped function."""
    found: list[Index] = []

    def row(x):
        found.extend(_read_stack("a read")[0])
        return x + (found[-1] if found else 0)

    with jax.ensure_compile_time_eval():  # the first model may be created in a trace
        y = as_new_root(jax.vmap(row), jnp.zeros(2, jnp.uint32))
    if len(found) != 1 or y.tolist() != [0, 1]:
        raise RuntimeError(
            f"hwtrain does not support JAX {jax.__version__}: it cannot find a map on "
            "the stack. Install a version that hwtrain's requirements allow"
        )


def _redirect(function: Any, replacement: Any) -> types.CodeType:
    """Redirects calls of a JAX function, however imported, to a replacement.

    Returns:
      The function's code, which from now on runs in another function.
    """
    inner = inspect.unwrap(function)  # without the wrapper that filters tracebacks
    code = inner.__code__
    original = types.FunctionType(
        code, inner.__globals__, inner.__name__, inner.__defaults__, inner.__closure__
    )
    original.__kwdefaults__ = inner.__kwdefaults__

    def choose(*args, **kwargs):
        if _here.get().root is None:
            return original(*args, **kwargs)
        return replacement(original, *args, **kwargs)

    def redirected(*args, _choose, **kwargs):
        return _choose(*args, **kwargs)

    choose.__code__ = choose.__code__.replace(co_filename=code.co_filename)
    inner.__signature__ = inspect.signature(inner)
    # In this order, the function stays callable from other threads throughout.
    inner.__kwdefaults__ = {"_choose": choose}
    # A generic function (PEP 695) has a cell for its type variable, which must stay.
    # With JAX's own file name, JAX leaves the code out of tracebacks and of the source
    # lines of operations.
    inner.__code__ = redirected.__code__.replace(
        co_freevars=code.co_freevars,
        co_name=code.co_name,
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
    )
    inner.__defaults__ = None
    return code


_JAX = os.path.dirname(jax.__file__) + os.sep

_RULES = os.path.basename(inspect.getfile(inspect.unwrap(jax.lax.scan)))
"""The file of JAX's loops, which also holds their rules."""

_KEEP_NOTHING = (
    "traceback_util.py",
    "api.py",
    "ad.py",
    "batching.py",
    "linear_util.py",
    "custom_derivatives.py",
    _RULES,
)
"""Files of JAX that call a function without caching its trace.

A missing file only costs time.
"""

_DEVICES = {"shard_map.py": "shard_map", "pmap.py": "pmap"}
"""Files that run a function on many devices."""

_BY_HAND = ("make_jaxpr_f", "closure_convert")
"""Functions that return a jaxpr."""


def _read_stack(name: str) -> tuple[tuple[Index, ...], bool]:
    """Returns the rows of the maps between a read and its root, outermost first.

    Also returns whether JAX may cache a trace around the read. Raises inside a loop
    without a step.
    """
    found: dict[int, Index] = {}  # by tag, which all traces of one map share
    bodies, kept, late, tag = 0, False, "", 0
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not as_new_root.__code__:
        code = frame.f_code
        if code in _OURS:
            bodies += 1
        elif code in _LOOPS and bodies:  # each loop directly contains one of our bodies
            bodies -= 1
        elif not bodies and code.co_filename.startswith(_JAX):
            file = os.path.basename(code.co_filename)
            # These run a function outside of the maps that enclose it.
            if code.co_name == "eval_jaxpr" or file == "custom_batching.py":
                late = late or code.co_name
            _check_frame(name, code, file, late == "eval_jaxpr")
            kept |= file not in _KEEP_NOTHING
            trace = frame.f_locals.get("trace") if file == "batching.py" else None
            if isinstance(trace, batching.BatchTrace):
                if late == "eval_jaxpr":
                    raise _no_step(name, f"vmap, {_RUNS_LATE}")
                if late:
                    raise _no_step(name, "custom_vmap under a vmap")
                tag = id(trace.tag)  # tags compare equal, so use their identity
                if tag not in found:
                    found[tag] = _row(trace, frame.f_locals.get("in_vals", ()))
            elif code.co_name == "vmap_f" and _within_jax(frame):
                # jacfwd and the like map over directions of a single evaluation.
                found.pop(tag, None)
        frame = frame.f_back
    return tuple(reversed(found.values())), kept


def _row(trace: batching.BatchTrace, mapped: Sequence[Any]) -> Index:
    """Returns the index of each row of a map, placed on a mesh like the rows.

    Args:
      trace: the trace of the map.
      mapped: the mapped values.
    """
    axis = trace.axis_data.explicit_mesh_axis
    with core.set_current_trace(trace.parent_trace):
        numbers = jnp.arange(trace.axis_data.size, dtype=jnp.uint32)
        if axis is not None:
            meshes = (jax.typeof(value).sharding.mesh for value in mapped)
            mesh = next(mesh for mesh in meshes if not mesh.empty)
            spec = jax.sharding.PartitionSpec(axis)
            numbers = jax.reshard(numbers, jax.sharding.NamedSharding(mesh, spec))
    return batching.BatchTracer(trace, numbers, 0)


def _within_jax(frame: Any) -> bool:
    """Returns whether a map was made by one of JAX's derivative functions."""
    caller = frame.f_back
    while caller.f_code.co_filename.endswith("traceback_util.py"):
        caller = caller.f_back
    return caller.f_code.co_filename == frame.f_code.co_filename


_RUNS_LATE = "by the rule of a derivative, which runs when the loop has returned"


def _check_frame(name: str, code: types.CodeType, file: str, late: bool) -> None:
    """Raises for a frame of JAX in which a read cannot know its place."""
    where = _LOOPS.get(code) or _DEVICES.get(file)
    if code.co_name in _BY_HAND:
        where = code.co_name.removesuffix("_f")
    if file == _RULES and code.co_name.startswith(("_scan_", "_while_")):
        loop = "scan" if "scan" in code.co_name else "while_loop"
        where = f"{loop}, {_RUNS_LATE}"
    if late and _here.get().steps:
        where = f"loop, {_RUNS_LATE}"
    if where is not None:
        raise _no_step(name, where)


def _no_step(name: str, where: str) -> ValueError:
    return InputError(
        f"{name}: its noise is drawn inside JAX's {where}. No step is known there: it "
        f"would repeat. {_WAY_OUT}"
    )
