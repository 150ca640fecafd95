"""A recipe's NNX module: as pure functions, hardware-aware, and on chips."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

from hwtrain._arrays import paths
from hwtrain._flax.adopting import adopt
from hwtrain._flax.calibration import calibrate
from hwtrain._flax.modes import analogize, chip_mode, plan
from hwtrain._flax.nnx.step import stored
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import Graph, trace_graph
from hwtrain.dynapse import with_mismatch
from hwtrain.train._entries import EntryError
from hwtrain.train._functional import Functional, Params, check_call, stream_key

Factory = Callable[..., nnx.Module]


def plain(factory: Factory, inputs: jax.Array) -> Functional:
    """Returns the unchanged module as pure functions.

    >>> import jax.numpy as jnp
    >>> model = plain(lambda rngs: nnx.Linear(3, 2, rngs=rngs), jnp.ones((1, 3)))
    >>> model.apply(model.init(0), jnp.ones((5, 3)), jax.random.key(0)).shape
    (5, 2)

    Args:
      factory: builds the module, whose only variables are parameters and rng streams.
      inputs: unused; Linen needs it.

    Raises:
      ValueError: if it builds no NNX module, or one with other variables.
    """
    del inputs
    return _functional(lambda rngs: _build(factory, rngs))


def hardware_aware(
    factory: Factory, hardware: Hardware, inputs: jax.Array
) -> tuple[Functional, Plan]:
    """Returns the module in `train_mode` as pure functions, and its plan.

    The initial parameters equal those of the plain module. In a training step, the
    hardware draws its modifier and the noise of its `forward`. Without either, as in
    `presets.pcm()`, this trains like the plain module, and `inspect` says so.
    """

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return analogize(_build(factory, rngs), hardware, rngs=nnx.Rngs(mismatch=0))

    return _functional(build), plan(build(nnx.Rngs(0)), None, inputs)


def graph(factory: Factory, inputs: jax.Array) -> Graph:
    """Returns how the module's layers are connected."""
    return trace_graph(_build(factory, nnx.Rngs(0)), None, inputs)


def deviating(
    factory: Factory, prototype: Any, deviation: float, rule: float, inputs: jax.Array
) -> Functional:
    """Returns the module with mismatch drawn at every step, as pure functions.

    Args:
      factory: builds the module.
      prototype: selects the deviating parameters.
      deviation: `percent_deviation` of `with_mismatch`.
      rule: `sigma_rule` of `with_mismatch`.
      inputs: unused; Linen needs it.
    """
    del inputs

    def build(rngs: nnx.Rngs) -> nnx.Module:
        streams = nnx.Rngs(mismatch=0)
        module = _build(factory, rngs)
        return with_mismatch(module, prototype, deviation, rule, rngs=streams)

    return _functional(build)


def on_chip(
    factory: Factory, hardware: Hardware, params: Params
) -> tuple[nnx.Module, Params]:
    """Returns the module in `chip_mode` and its parameters."""
    module = analogize(
        _build(factory, nnx.Rngs(0)), hardware, rngs=nnx.Rngs(mismatch=0)
    )
    return chip_mode(module), params


def deployed(
    factory: Factory,
    hardware: Hardware,
    params: Params,
    batches: list[jax.Array],
    console: Console,
) -> Params:
    """Returns the plain module's parameters plus the leaves that the hardware needs.

    Args:
      factory: builds the module.
      hardware: the chip's hardware.
      params: the trained parameters of the plain module.
      batches: inputs to calibrate input ranges on.
      console: where progress is shown.

    Raises:
      ValueError: if no range fits the inputs of a layer.
    """
    analog, _ = on_chip(factory, hardware, params)
    params = adopt(analog, params)
    if any(weight.ranged for weight in plan(analog).weights):
        params = calibrate(analog, params, batches, console=console)
    return params


def _build(factory: Factory, rngs: nnx.Rngs) -> nnx.Module:
    module = factory(rngs=rngs)
    if not isinstance(module, nnx.Module):
        raise ValueError(
            f"{factory.__name__}: expected a function of rngs that returns an NNX "
            "module, or a function without arguments that returns a Linen module; got "
            f"one that returns {type(module).__name__}"
        )
    check_call(module)
    return module


def _functional(build: Factory) -> Functional:
    graph, _, streams, others = nnx.split(
        build(nnx.Rngs(0)), nnx.Param, nnx.RngState, ...
    )
    if others:
        named = [paths.join(keys) for keys, _ in nnx.to_flat_state(others)]
        raise EntryError(
            "model",
            "the training loop takes NNX modules whose only variables are parameters "
            f"and rng streams; this one has {', '.join(named)}. Take a norm without "
            "running statistics, such as nnx.LayerNorm or nnx.GroupNorm, for "
            "nnx.BatchNorm, or train it in a loop of your own with "
            "hwtrain.optim.hardware_aware",
        )

    @jax.jit
    def init(seed: jax.typing.ArrayLike) -> Params:
        module = build(nnx.Rngs(jax.random.key(seed)))
        return stored(nnx.state(module, nnx.Param))

    def apply(params: Params, inputs: jax.Array, key: jax.Array) -> jax.Array:
        module = nnx.merge(graph, params, nnx.to_pure_dict(streams))
        for _, node in nnx.iter_graph(module):
            if isinstance(node, nnx.RngStream):
                # Replaced, not set in place: the key may have another generator.
                node.key.set_value(stream_key(key, node.tag))
                node.count[...] = jnp.zeros_like(node.count[...])
        return module(inputs)  # pyright: ignore[reportCallIssue]

    return Functional(init, apply)
