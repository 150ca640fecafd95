"""A recipe's Linen module: as pure functions, hardware-aware, and on chips."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax.errors import InvalidRngError
from rich.console import Console

from hwtrain._arrays.random import fold_in
from hwtrain._errors import InputError
from hwtrain._flax.adopting import adopt
from hwtrain._flax.calibration import calibrate
from hwtrain._flax.calls import first_call
from hwtrain._flax.modes import analogize, chip_mode, plan
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import Graph, trace_graph
from hwtrain.dynapse import with_mismatch
from hwtrain.train._entries import EntryError
from hwtrain.train._functional import Functional, ModelState, Params, stream_key
from hwtrain.train._task import Batch, Forward, forward_of

Factory = Callable[[], nn.Module]

_STREAMS = ("mismatch", "dropout", "params")
"""Rng streams of a training step; Flax draws from `params` for any other one."""


def plain(factory: Factory, forward: Forward, batch: Batch) -> Functional:
    """Returns the unchanged module as pure functions.

    >>> import jax.numpy as jnp
    >>> batch = (jnp.ones((5, 3)), jnp.zeros(5))
    >>> forward = lambda apply, batch, train: apply(batch[0])
    >>> model = plain(lambda: nn.Dense(2), forward, batch)
    >>> params, state = model.init(0)
    >>> model.apply(params, state, batch, jax.random.key(0))[0].shape
    (5, 2)

    Args:
      factory: returns a module.
      forward: calls it for a batch.
      batch: an example, for the shapes.

    Raises:
      ValueError: if it is no Linen module, or draws something when it does not train,
        such as dropout.
    """
    module = build(factory)
    model = _functional(module, forward, batch)
    try:
        jax.eval_shape(model.evaluate, *jax.eval_shape(model.init, 0), batch)
    except InvalidRngError as error:
        raise EntryError(
            "model",
            f"expected a module that draws nothing when it does not train, as on a "
            f"chip; got {type(module).__name__}: {str(error).partition(' (')[0]}. Give "
            "its call an argument train, and its nn.Dropout deterministic=not train",
        ) from error
    return model


def hardware_aware(
    factory: Factory, hardware: Any, forward: Forward, batch: Batch
) -> tuple[Functional, Plan]:
    """Returns the module in `train_mode` as pure functions, and its plan.

    The initial parameters equal those of the plain module. In a training step, the
    hardware draws its modifier and the noise of its `forward`. Without either, as in
    `presets.pcm()`, this trains like the plain module, and `inspect` says so.

    Args:
      factory: returns a module.
      hardware: a `Hardware`, or rules; see `analogize`.
      forward: calls the module for a batch.
      batch: an example, for the shapes.
    """
    module = analogize(build(factory), hardware)
    model = _functional(module, forward, batch)
    params, state = jax.eval_shape(model.init, 0)
    args, kwargs = _call(forward, batch, train=True)
    rngs = dict.fromkeys(_STREAMS, jax.random.key(0))
    return model, plan(module, {"params": params, **state}, *args, rngs=rngs, **kwargs)


def graph(factory: Factory, forward: Forward, batch: Batch) -> Graph:
    """Returns how the module's layers are connected."""
    module = build(factory)
    args, kwargs = _call(forward, batch, train=False)
    method = kwargs.pop("method", None)
    init = functools.partial(module.init, method=method, **kwargs)
    variables = jax.eval_shape(init, jax.random.key(0), *args)
    return trace_graph(module, variables, *args, method=method, **kwargs)


def default_forward(factory: Factory) -> Forward:
    """Returns the function that calls the module with the first of a batch."""
    return forward_of(build(factory).__call__)


def deviating(
    factory: Factory,
    prototype: Any,
    deviation: float,
    rule: float,
    forward: Forward,
    batch: Batch,
) -> Functional:
    """Returns the module with mismatch drawn at every step, as pure functions.

    Args:
      factory: returns a module.
      prototype: selects the deviating parameters.
      deviation: `percent_deviation` of `with_mismatch`.
      rule: `sigma_rule` of `with_mismatch`.
      forward: calls the module for a batch.
      batch: an example, for the shapes.
    """
    module = with_mismatch(build(factory), prototype, deviation, rule)
    return _functional(module, forward, batch)


def on_chip(factory: Factory, hardware: Any) -> nn.Module:
    """Returns the module in `chip_mode`."""
    return chip_mode(analogize(build(factory), hardware))


def variables(factory: Factory, params: Params, state: ModelState) -> dict[str, Any]:
    """Returns all variables by collection, as `export` takes them."""
    del factory
    return {"params": params, **state}


def deployed(
    factory: Factory,
    hardware: Any,
    given: dict[str, Any],
    forward: Callable[[Callable[..., Any], Batch], Any],
    batches: list[Batch],
    console: Console,
) -> dict[str, Any]:
    """Returns the plain module's variables plus the leaves that the hardware needs.

    Args:
      factory: returns the module.
      hardware: the chip's hardware.
      given: the trained variables of the plain module.
      forward: calls the module as on a chip.
      batches: batches to calibrate input ranges on.
      console: where progress is shown.

    Raises:
      ValueError: if no range fits the inputs of a layer.
    """
    analog = on_chip(factory, hardware)
    args, kwargs = first_call(forward, batches[0])
    given = adopt(analog, given, *args, **kwargs)
    if any(weight.ranged for weight in plan(analog, given, *args, **kwargs).weights):
        given = calibrate(analog, given, batches, console=console, forward=forward)
    return given


def build(factory: Factory) -> nn.Module:
    """Returns the module after checking its type.

    Raises:
      ValueError: if it is no Linen module.
    """
    module = factory()
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{factory.__name__}: expected a function without arguments that returns a "
            "Linen module, or a function of rngs that returns an NNX module; got one "
            f"that returns {type(module).__name__}"
        )
    return module


def _call(
    forward: Forward, batch: Batch, *, train: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of the module's first call for a batch."""
    return first_call(lambda apply, batch: forward(apply, batch, train), batch)


def _functional(module: nn.Module, forward: Forward, batch: Batch) -> Functional:
    args, kwargs = _call(forward, batch, train=True)

    @jax.jit
    def init(seed: jax.typing.ArrayLike) -> tuple[Params, ModelState]:
        variables = dict(module.init(jax.random.key(seed), *args, **kwargs))
        return variables.pop("params", {}), variables

    def apply(
        params: Params, state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Any, ModelState]:
        numbers, now = itertools.count(), state

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            # An NNX stream folds its count into its key: both frameworks draw alike.
            number = next(numbers)
            rngs = {
                name: fold_in(stream_key(key, name), number) for name in _STREAMS
            } | kwargs.pop("rngs", {})
            given = {"params": params, **now}
            if not now:
                return module.apply(given, *args, rngs=rngs, **kwargs)
            outputs, written = module.apply(
                given, *args, rngs=rngs, mutable=list(now), **kwargs
            )
            now = {**now, **written}
            return outputs

        return forward(call, batch, True), now

    def evaluate(params: Params, state: ModelState, batch: Batch) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return module.apply({"params": params, **state}, *args, **kwargs)

        return forward(call, batch, False)

    return Functional(init, apply, evaluate)
