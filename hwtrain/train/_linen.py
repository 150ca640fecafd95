"""A recipe's Linen module: as pure functions, hardware-aware, and on chips."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax.errors import InvalidRngError
from rich.console import Console

from hwtrain._arrays.random import fold_in
from hwtrain._flax.adopting import adopt
from hwtrain._flax.calibration import calibrate
from hwtrain._flax.modes import analogize, chip_mode, plan
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import Graph, trace_graph
from hwtrain.dynapse import with_mismatch
from hwtrain.train._entries import EntryError
from hwtrain.train._functional import Functional, Params, check_call, stream_key

Factory = Callable[[], nn.Module]


def plain(factory: Factory, inputs: jax.Array) -> Functional:
    """Returns the unchanged module as pure functions.

    >>> import jax.numpy as jnp
    >>> model = plain(lambda: nn.Dense(2), jnp.ones((1, 3)))
    >>> model.apply(model.init(0), jnp.ones((5, 3)), jax.random.key(0)).shape
    (5, 2)

    Args:
      factory: returns a module whose only variables are `params`.
      inputs: example inputs for the shapes, `[examples, ...]`.

    Raises:
      ValueError: if it is no Linen module, has variables beside `params`, or draws
        something, such as dropout, without a stream for it.
    """
    module = build(factory)
    model = _functional(module, inputs)
    try:
        jax.eval_shape(module.apply, {"params": jax.eval_shape(model.init, 0)}, inputs)
    except InvalidRngError as error:
        raise EntryError(
            "model",
            f"expected a module that draws nothing without a stream, as on a chip; got "
            f"{type(module).__name__}: {str(error).partition(' (')[0]}. Write "
            'deterministic=not self.has_rng("dropout") for its nn.Dropout',
        ) from error
    return model


def hardware_aware(
    factory: Factory, hardware: Hardware, inputs: jax.Array
) -> tuple[Functional, Plan]:
    """Returns the module in `train_mode` as pure functions, and its plan.

    The initial parameters equal those of the plain module. In a training step, the
    hardware draws its modifier and the noise of its `forward`. Without either, as in
    `presets.pcm()`, this trains like the plain module, and `inspect` says so.
    """
    module = analogize(build(factory), hardware)
    model = _functional(module, inputs)
    variables = {"params": jax.eval_shape(model.init, 0)}
    return model, plan(module, variables, inputs)


def graph(factory: Factory, inputs: jax.Array) -> Graph:
    """Returns how the module's layers are connected."""
    module = build(factory)
    variables = jax.eval_shape(module.init, jax.random.key(0), inputs)
    return trace_graph(module, variables, inputs)


def deviating(
    factory: Factory, prototype: Any, deviation: float, rule: float, inputs: jax.Array
) -> Functional:
    """Returns the module with mismatch drawn at every step, as pure functions.

    Args:
      factory: returns a module whose only variables are `params`.
      prototype: selects the deviating parameters.
      deviation: `percent_deviation` of `with_mismatch`.
      rule: `sigma_rule` of `with_mismatch`.
      inputs: example inputs, `[examples, ...]`.
    """
    module = with_mismatch(build(factory), prototype, deviation, rule)
    return _functional(module, inputs)


def on_chip(
    factory: Factory, hardware: Hardware, params: Params
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the module in `chip_mode` and its variables."""
    return chip_mode(analogize(build(factory), hardware)), {"params": params}


def deployed(
    factory: Factory,
    hardware: Hardware,
    params: Params,
    batches: list[jax.Array],
    console: Console,
) -> Params:
    """Returns the plain module's parameters plus the leaves that the hardware needs.

    Args:
      factory: returns the module.
      hardware: the chip's hardware.
      params: the trained parameters of the plain module.
      batches: inputs to calibrate input ranges on.
      console: where progress is shown.

    Raises:
      ValueError: if no range fits the inputs of a layer.
    """
    analog, _ = on_chip(factory, hardware, params)
    variables = {"params": adopt(analog, params, batches[0])}
    if any(weight.ranged for weight in plan(analog, variables, batches[0]).weights):
        variables = calibrate(analog, variables, batches, console=console)
    return variables["params"]


def build(factory: Factory) -> nn.Module:
    """Returns the module after checking its type and call.

    Raises:
      ValueError: if it is no Linen module.
    """
    module = factory()
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{factory.__name__}: expected a function without arguments that returns a "
            "Linen module, or a function of rngs that returns an NNX module; got one "
            f"that returns {type(module).__name__}"
        )
    check_call(module)
    return module


def _functional(module: nn.Module, inputs: jax.Array) -> Functional:
    kinds = jax.eval_shape(module.init, jax.random.key(0), inputs)
    if set(kinds) != {"params"}:
        raise EntryError(
            "model",
            "the training loop takes Linen modules whose only collection is 'params'; "
            f"{type(module).__name__} has {sorted(kinds)}. Take a norm without running "
            "statistics, such as nn.LayerNorm or nn.GroupNorm, for nn.BatchNorm, or "
            "train it in a loop of your own with hwtrain.optim.hardware_aware",
        )

    @jax.jit
    def init(seed: jax.typing.ArrayLike) -> Params:
        return module.init(jax.random.key(seed), inputs)["params"]

    def apply(params: Params, inputs: jax.Array, key: jax.Array) -> jax.Array:
        # An NNX stream folds its count into its key; with 0 both frameworks draw alike.
        mismatch = fold_in(stream_key(key, "mismatch"), 0)
        rngs = {"mismatch": mismatch, "dropout": stream_key(key, "dropout")}
        outputs: Any = module.apply({"params": params}, inputs, rngs=rngs)
        return outputs

    return Functional(init, apply)
