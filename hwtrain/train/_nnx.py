"""A recipe's NNX module: as pure functions, hardware-aware, and on chips."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

from hwtrain._errors import InputError
from hwtrain._flax.adopting import adopt
from hwtrain._flax.calibration import calibrate
from hwtrain._flax.calls import first_call
from hwtrain._flax.modes import analogize, chip_mode, plan
from hwtrain._flax.nnx.step import stored
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import Graph, trace_graph
from hwtrain.checkpoint._of_nnx import collections_of
from hwtrain.dynapse import with_mismatch
from hwtrain.train._functional import Functional, ModelState, Params, stream_key
from hwtrain.train._task import Batch, Forward, forward_of

Factory = Callable[..., nnx.Module]

_BESIDE = nnx.Not(nnx.Any(nnx.Param, nnx.RngState))
"""Variables that a call may write, such as statistics of a BatchNorm."""


def plain(factory: Factory, forward: Forward, batch: Batch) -> Functional:
    """Returns the unchanged module as pure functions.

    >>> import jax.numpy as jnp
    >>> batch = (jnp.ones((5, 3)), jnp.zeros(5))
    >>> forward = lambda apply, batch, train: apply(batch[0])
    >>> model = plain(lambda rngs: nnx.Linear(3, 2, rngs=rngs), forward, batch)
    >>> params, state = model.init(0)
    >>> model.apply(params, state, batch, jax.random.key(0))[0].shape
    (5, 2)

    Args:
      factory: builds the module.
      forward: calls it for a batch.
      batch: unused; Linen needs it.

    Raises:
      ValueError: if it builds no NNX module.
    """
    del batch
    return _functional(lambda rngs: build(factory, rngs), forward)


def hardware_aware(
    factory: Factory, hardware: Any, forward: Forward, batch: Batch
) -> tuple[Functional, Plan]:
    """Returns the module in `train_mode` as pure functions, and its plan.

    The initial parameters equal those of the plain module. In a training step, the
    hardware draws its modifier and the noise of its `forward`. Without either, as in
    `presets.pcm()`, this trains like the plain module, and `inspect` says so.

    Args:
      factory: builds the module.
      hardware: a `Hardware`, or rules; see `analogize`.
      forward: calls the module for a batch.
      batch: an example, for the shapes.
    """

    def analog(rngs: nnx.Rngs) -> nnx.Module:
        return analogize(build(factory, rngs), hardware, rngs=nnx.Rngs(mismatch=0))

    args, kwargs = first_call(lambda apply, batch: forward(apply, batch, True), batch)
    found = plan(_abstract(analog), None, *args, **kwargs)
    return _functional(analog, forward), found


def graph(factory: Factory, forward: Forward, batch: Batch) -> Graph:
    """Returns how the module's layers are connected."""
    module = _abstract(functools.partial(build, factory))
    module.eval()
    args, kwargs = first_call(lambda apply, batch: forward(apply, batch, False), batch)
    return trace_graph(module, None, *args, **kwargs)


def default_forward(factory: Factory) -> Forward:
    """Returns the function that calls the module with the first of a batch."""
    module: Any = _abstract(functools.partial(build, factory))
    return forward_of(module)


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
      factory: builds the module.
      prototype: selects the deviating parameters.
      deviation: `percent_deviation` of `with_mismatch`.
      rule: `sigma_rule` of `with_mismatch`.
      forward: calls the module for a batch.
      batch: unused; Linen needs it.
    """
    del batch

    def noisy(rngs: nnx.Rngs) -> nnx.Module:
        streams = nnx.Rngs(mismatch=0)
        module = build(factory, rngs)
        return with_mismatch(module, prototype, deviation, rule, rngs=streams)

    return _functional(noisy, forward)


def on_chip(factory: Factory, hardware: Any) -> nnx.Module:
    """Returns the module in `chip_mode`."""
    module = analogize(build(factory, nnx.Rngs(0)), hardware, rngs=nnx.Rngs(mismatch=0))
    return chip_mode(module)


def variables(factory: Factory, params: Params, state: ModelState) -> dict[str, Any]:
    """Returns all variables by collection, as `export` takes them."""
    kept = nnx.state(_abstract(functools.partial(build, factory)), _BESIDE)
    nnx.replace_by_pure_dict(kept, state)
    return {**collections_of(kept), "params": params}


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
      factory: builds the module.
      hardware: the chip's hardware.
      given: the trained variables of the plain module.
      forward: calls the module as on a chip.
      batches: batches to calibrate input ranges on.
      console: where progress is shown.

    Raises:
      ValueError: if no range fits the inputs of a layer.
    """
    analog = on_chip(factory, hardware)
    given = {**given, "params": adopt(analog, given["params"])}
    if any(weight.ranged for weight in plan(analog).weights):
        given = calibrate(analog, given, batches, console=console, forward=forward)
    return given


def build(factory: Factory, rngs: nnx.Rngs) -> nnx.Module:
    """Returns the module after checking its type.

    Raises:
      ValueError: if it is no NNX module.
    """
    module = factory(rngs=rngs)
    if not isinstance(module, nnx.Module):
        raise InputError(
            f"{factory.__name__}: expected a function of rngs that returns an NNX "
            "module, or a function without arguments that returns a Linen module; got "
            f"one that returns {type(module).__name__}"
        )
    return module


def _value(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns a count or a key of a stream, which each training step sets anew."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _abstract(build: Callable[[nnx.Rngs], Any]) -> Any:
    """Returns a module without its arrays, which may be too large for one device."""
    return nnx.eval_shape(lambda: build(nnx.Rngs(0)))


def _functional(build: Factory, forward: Forward) -> Functional:
    def split(train: bool) -> tuple[Any, Any]:
        module = _abstract(build)
        module.train() if train else module.eval()
        graph, _, streams, _ = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return graph, jax.tree.map(_value, nnx.to_pure_dict(streams))

    training, testing = split(True), split(False)

    @jax.jit
    def init(seed: jax.typing.ArrayLike) -> tuple[Params, ModelState]:
        module = build(nnx.Rngs(jax.random.key(seed)))
        return stored(nnx.state(module, nnx.Param)), stored(nnx.state(module, _BESIDE))

    def calling(module: nnx.Module) -> Callable[..., Any]:
        def call(*args: Any, method: Any = "__call__", **kwargs: Any) -> Any:
            method = getattr(method, "__name__", method)
            return getattr(module, method)(*args, **kwargs)

        return call

    def apply(
        params: Params, state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Any, ModelState]:
        graph, streams = training
        module = nnx.merge(graph, params, streams, state)
        for _, node in nnx.iter_graph(module):
            if isinstance(node, nnx.RngStream):
                # Replaced, not set in place: the key may have another generator.
                node.key.set_value(stream_key(key, node.tag))
                node.count[...] = jnp.zeros_like(node.count[...])
        outputs = forward(calling(module), batch, True)
        return outputs, stored(nnx.state(module, _BESIDE))

    def evaluate(params: Params, state: ModelState, batch: Batch) -> Any:
        graph, streams = testing
        module = nnx.merge(graph, params, streams, state)
        return forward(calling(module), batch, False)

    return Functional(init, apply, evaluate)
