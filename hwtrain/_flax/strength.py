"""Scales the noise of training at a step by a traced value, such as a schedule's."""

import contextlib
import contextvars
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan

_PATTERN_OF_ALL = ".*"

_active: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "hwtrain_strength", default=None
)


# Part of every jit cache key, because traces at another strength must not be reused.
_trace = jax.make_user_context(default_value=None)
_fresh = itertools.count()
_checked: set[Any] = set()


@contextlib.contextmanager
def noise_strength(strength: ArrayLike | Mapping[str, ArrayLike]) -> Iterator[None]:
    r"""Multiplies the noise of analog models called inside, in train mode.

    .. math:: \sigma \to a\,\sigma

    for every standard deviation and every probability of the model's draws in a step:
    weight noise, dropped and stuck weights, random drift, noise and spreads of the
    periphery. Rounding, clipping and the keys do not change, so that 1 gives the model
    without this context, and 0 the model of the same hardware without noise, both bit
    for bit.

    Enter it inside the compiled function, with a traced value, such as that of an Optax
    schedule: a new value needs no recompilation. A number from outside is a constant of
    the program, which is compiled for each value.

    >>> import optax
    >>> from flax import linen as nn
    >>> from hwtrain import Hardware, WeightModifierParameter
    >>> from hwtrain import analogize
    >>> noise = WeightModifierParameter(type="add_normal", std_dev=0.1)
    >>> analog, x = analogize(nn.Dense(4), Hardware(modifier=noise)), jnp.ones((1, 3))
    >>> params = analog.init(jax.random.key(0), x)
    >>> ramp = optax.linear_schedule(0.0, 1.0, transition_steps=100)
    >>> @jax.jit
    ... def noisy(params, step, key):
    ...     with noise_strength(ramp(step)):
    ...         return analog.apply(params, x, rngs={"mismatch": key})
    >>> y = noisy(params, 0, jax.random.key(1))

    Args:
      strength: a, not negative: a scalar for all layers, or scalars by pattern, of
        which those that match a layer's whole path are multiplied (`re.fullmatch`; for
        a raw parameter, its own path). Layers without a match keep 1.

    Raises:
      ValueError: for a negative number or an array; inside, for a model in chip mode,
        whose noise is a chip's; on exit, for a pattern that matched no layer, or if
        nothing inside drew any noise.
    """
    given = strength if isinstance(strength, Mapping) else {_PATTERN_OF_ALL: strength}
    values = {pattern: _scalar(pattern, value) for pattern, value in given.items()}
    token = _token(values)
    used: set[str] = set()
    reset = _active.set((values, used))
    try:
        with _trace(token):
            yield
    finally:
        _active.reset(reset)
    # A program already compiled for the same number is not traced again.
    if token not in _checked:
        _check_used(values, used)
        if isinstance(token, tuple):
            _checked.add(token)


def strengths(plan: Plan) -> dict[str, jax.Array]:
    """Returns by path the strength for weights whose noise is scaled.

    Args:
      plan: the plan of the called model.
    """
    if _active.get() is None:
        return {}
    values, used = _active.get()
    found = {}
    for weight in plan.weights:
        raw = weight.kind == "raw"
        if not weight.hardware.noisy(periphery=not raw):
            continue
        name = weight.path if raw else weight.layer_path
        # A product of all matches, because jit does not keep the order of a dict.
        matching = [pattern for pattern in values if re.fullmatch(pattern, name)]
        if matching:
            used.update(matching)
            factors = [values[pattern] for pattern in matching]
            found[weight.path] = jnp.asarray(math.prod(factors))
    return found


def check_mode(mode: str) -> None:
    """Raises for a model in chip mode whose noise would be scaled."""
    if mode == "chip" and _active.get() is not None:
        raise InputError(
            "noise_strength scales the noise of training, and this model is in "
            "chip_mode, which draws the noise of a chip: call it outside of "
            "noise_strength, or put it into train_mode"
        )


def _scalar(pattern: str, value: ArrayLike) -> Any:
    traced = isinstance(value, Tracer)
    array: Any = jnp.asarray(value, jnp.float32) if traced else np.asarray(value)
    if np.shape(array) or (not traced and not array >= 0):
        raise InputError(
            f"noise_strength takes a scalar that is not negative, got {value} for "
            f"{pattern!r}"
        )
    return array if traced else np.float32(array)


def _token(values: Mapping[str, jax.Array]) -> Any:
    """Returns an identifier of the values: numbers by value, traced ones by the trace.

    Entering twice within one trace with different traced values needs two traces of the
    functions compiled inside.
    """
    if any(isinstance(value, Tracer) for value in values.values()):
        return next(_fresh)
    return tuple((pattern, float(value)) for pattern, value in values.items())


def _check_used(values: Mapping[str, jax.Array], used: set[str]) -> None:
    for pattern in values:
        if pattern not in used:
            what = (
                "no analog model was called inside that draws noise in train_mode"
                if pattern == _PATTERN_OF_ALL
                else f"the pattern {pattern!r} matches no layer that draws noise in "
                "train_mode"
            )
            raise InputError(
                f"noise_strength does nothing: {what}. Call the analog model inside, "
                "with hardware that draws, or leave it out"
            )
