"""Loads and checks everything a run needs before it writes anything."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwtrain._arrays import paths
from hwtrain._flax.materializing import materialize
from hwtrain._flax.strength import noise_strength
from hwtrain._parts.source import reason, resolve
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import Graph
from hwtrain.checkpoint._contents import Contents
from hwtrain.chips import _conductances as conductances
from hwtrain.chips import chip_key
from hwtrain.chips._crossbar import on_crossbar
from hwtrain.chips._programming import keys_of_chip, program_weight
from hwtrain.train import _linen as linen
from hwtrain.train import _nnx as nnx
from hwtrain.train._config import Config, TrainingParameter, has_deviation
from hwtrain.train._entries import EntryError, named
from hwtrain.train._functional import Functional, Params
from hwtrain.train._loop import Split, Step, cross_entropy, init_state, make_step
from hwtrain.train._mismatch_config import MismatchConfig
from hwtrain.train._optimisation import (
    aware_optimizer,
    base_optimizer,
    learning_rate,
    noise_schedule,
    robust_loss,
)
from hwtrain.train._report import require_matplotlib
from hwtrain.weights.mapping import MAPPING_SCALE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Models, optimizers and data of a run.

    Attributes:
      frontend: the module of functions for the model's framework.
      factory: the function of the recipe that builds the model.
      plain: the plain model.
      aware: the hardware-aware model.
      plan: the plan of the hardware-aware model.
      graph: the connections of its layers.
      optimizer: the optimizer of the plain model.
      aware_optimizer: the optimizer of the hardware-aware model.
      plain_step: the training step of the plain model.
      aware_step: the training step of the hardware-aware model.
      train: the training set.
      test: the test set.
    """

    frontend: ModuleType
    factory: Callable[..., Any]
    plain: Functional
    aware: Functional
    plan: Plan
    graph: Graph
    optimizer: optax.GradientTransformation
    aware_optimizer: optax.GradientTransformation
    plain_step: Step
    aware_step: Step
    train: Split
    test: Split


def with_effective(
    ready: Preparation, hardware: Hardware, params: Params
) -> tuple[Params, Plan]:
    """Returns parameters with the weights that layers multiply by, and their plan.

    Both are unchanged unless layers compute their weights from stored parameters.

    Args:
      ready: the models of a run.
      hardware: the hardware of the hardware-aware model.
      params: its parameters.
    """
    if ready.plan == ready.plan.effective:
        return params, ready.plan
    analog, given = ready.frontend.on_chip(ready.factory, hardware, params)
    made = materialize(analog, given, jnp.asarray(ready.train.inputs[:1]))
    return made.get("params", made), ready.plan.effective


def prepare(config: Config, folder: Path) -> Preparation:
    """Loads and checks all that a configuration names.

    Args:
      config: the configuration.
      folder: its folder, which its paths are relative to.

    Raises:
      ValueError: one line that names the wrong entry.
    """
    require_matplotlib()
    train, test = load_data(config.data, config.training.batch_size, folder)
    frontend, factory, plain = build_plain(config, train, folder)
    example = train.inputs[:1]
    with named("data", config.model, given=f"inputs {example.shape} of {config.data}"):
        graph = frontend.graph(factory, example)
    with named("hardware", config.model):
        aware, plan = frontend.hardware_aware(factory, config.hardware, example)
    rate = learning_rate(config.training)
    base = base_optimizer(config.training, rate, folder)
    optimizer = aware_optimizer(base, plan, rate, config.export.chip_seed)
    strength = noise_schedule(config.training, folder)
    robust = robust_loss(config.training, plan)
    ready = Preparation(
        frontend=frontend,
        factory=factory,
        plain=plain,
        aware=aware,
        plan=plan,
        graph=graph,
        optimizer=base,
        aware_optimizer=optimizer,
        plain_step=make_step(plain, base, cross_entropy),
        aware_step=make_step(
            aware, optimizer, cross_entropy, robust=robust, strength=strength
        ),
        train=train,
        test=test,
    )
    _check_outputs(config, ready)
    _check_strength(config, ready, strength)
    check_step(config.training, plain, base, ready.plain_step, train)
    without = functools.partial(
        make_step, aware, loss=cross_entropy, robust=robust, strength=strength
    )
    check_step(config.training, aware, optimizer, ready.aware_step, train, without)
    with named("hardware"):
        _check_export(config, ready)
    return ready


def build_plain(
    config: Config | MismatchConfig, train: Split, folder: Path
) -> tuple[ModuleType, Callable[..., Any], Functional]:
    """Returns the framework's module of functions, the model's factory and the model.

    Args:
      config: names the model and the data.
      train: the training set.
      folder: the folder that relative paths refer to.

    Raises:
      EntryError: (a `ValueError`) one line that names the wrong entry.
    """
    with named("model", config.model):
        factory = resolve(config.model, folder)
        takes_rngs = "rngs" in inspect.signature(factory).parameters
        if takes_rngs:
            return nnx, factory, nnx.plain(factory, train.inputs[:1])
        # Built alone first, because errors in the call may be the data's fault.
        linen.build(factory)
    example = train.inputs[:1]
    with named("data", config.model, given=f"inputs {example.shape} of {config.data}"):
        return linen, factory, linen.plain(factory, example)


def chip_hardware(hardware: Hardware, mismatch_std: float) -> Hardware:
    """Returns the hardware with another standard deviation of its mismatch.

    Args:
      hardware: the hardware.
      mismatch_std: the standard deviation; 0 if the hardware has no mismatch. A
        mismatch of a user's own without a field `std_dev` stays as it is.
    """
    if hardware.mismatch is None:
        if mismatch_std:
            raise ValueError(
                f"expected a mismatch_std of 0, because the hardware has no mismatch; "
                f"got {mismatch_std:g}"
            )
        return hardware
    if not has_deviation(hardware.mismatch):
        return hardware
    changes: dict[str, Any] = {"std_dev": mismatch_std}
    mismatch = dataclasses.replace(hardware.mismatch, **changes)
    return dataclasses.replace(hardware, mismatch=mismatch)


def load_data(source: str, batch_size: int, folder: Path) -> tuple[Split, Split]:
    """Loads and checks the training set and the test set.

    Args:
      source: the function that returns them, as named in a configuration.
      batch_size: examples in each update.
      folder: the folder that relative paths refer to.

    Raises:
      ValueError: one line that names the wrong entry.
    """
    with named("data", source):
        data = resolve(source, folder)()
    try:
        train, test = (Split(*map(_as_array, part)) for part in data)
    except (TypeError, ValueError) as error:
        raise EntryError(
            "data",
            f"{source}: expected a function that returns "
            f"((inputs, labels), (inputs, labels)), got {type(data).__name__}: {error}",
        ) from None
    for name, part in (("training", train), ("test", test)):
        if np.ndim(part.labels) != 1 or len(part.inputs) != len(part.labels):
            raise EntryError(
                "data",
                f"{source}: expected as many inputs as labels, labels of one "
                f"axis, got a {name} set of shapes {np.shape(part.inputs)} and "
                f"{np.shape(part.labels)}",
            )
        if not len(part.labels) or not np.issubdtype(part.labels.dtype, np.integer):
            raise EntryError(
                "data",
                f"{source}: expected at least one example, labels of whole "
                f"numbers, got a {name} set of {len(part.labels)} examples, labels "
                f"{part.labels.dtype}",
            )
    shapes = np.shape(train.inputs), np.shape(test.inputs)
    if shapes[0][1:] != shapes[1][1:]:
        raise EntryError(
            "data",
            f"{source}: expected training and test inputs of the same shape, got "
            f"{shapes[0]} and {shapes[1]}",
        )
    if batch_size > len(train.labels):
        raise EntryError(
            "training.batch_size",
            f"expected at most the {len(train.labels)} examples of the training set, "
            f"got {batch_size}",
        )
    return train, test


def _as_array(values: Any) -> Any:
    return values if hasattr(values, "dtype") else np.asarray(values)


def _check_outputs(config: Config, ready: Preparation) -> None:
    """Checks that the model's outputs are logits of the classes in the data."""
    batch = _batch_shape(ready.train, config.training.batch_size).inputs
    for model in (ready.plain, ready.aware):
        params = jax.eval_shape(model.init, 0)
        given = f"inputs {batch.shape} of {config.data}"
        with named("data", config.model, given=given):
            outputs = jax.eval_shape(model.apply, params, batch, jax.random.key(0))
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != batch.shape[0]:
            came = type(outputs).__name__ if shape is None else f"the shape {shape}"
            raise EntryError(
                "model",
                f"{config.model}: expected outputs [examples, classes] of inputs "
                f"{batch.shape}, got {came}",
            )
        labels = np.concatenate([ready.train.labels, ready.test.labels])
        if labels.min() < 0 or labels.max() >= shape[1]:
            raise EntryError(
                "data",
                f"{config.data}: expected labels from 0 to {shape[1] - 1}, because "
                f"{config.model} has {shape[1]} outputs; got labels from "
                f"{labels.min()} to {labels.max()}",
            )


def _check_strength(
    config: Config, ready: Preparation, strength: Callable[[jax.Array], Any] | None
) -> None:
    """Checks that a noise schedule matches the layers that it names."""
    if strength is None:
        return
    params = jax.eval_shape(ready.aware.init, 0)
    inputs = _batch_shape(ready.train, config.training.batch_size).inputs

    def call(params: Params, inputs: jax.Array, step: jax.Array) -> jax.Array:
        with noise_strength(strength(step)):
            return ready.aware.apply(params, inputs, jax.random.key(0))

    with named("training.noise_schedule"):
        step = jax.ShapeDtypeStruct((), np.int32)
        jax.eval_shape(call, params, inputs, step)


def check_step(
    training: TrainingParameter,
    model: Functional,
    optimizer: optax.GradientTransformation,
    step: Step,
    train: Split,
    without: Callable[..., Step] | None = None,
    objective: str = "training.objective",
) -> None:
    """Checks by tracing that a training step can be taken; nothing is computed.

    Args:
      training: the training configuration.
      model: the model.
      optimizer: its optimizer.
      step: from `make_step`.
      train: the training set.
      without: returns the same step with another optimizer, to find errors that the
        optimizer did not cause; `None` if the loss is the plain one.
      objective: the key of the objective in that case.

    Raises:
      EntryError: (a `ValueError`) one line that names the wrong entry.
    """
    try:
        _trace(training, model, optimizer, step, train)
    # An optimizer that misses an argument may raise any error.
    except Exception as error:
        if without is not None:
            still = optax.set_to_zero()
            with named(objective):
                _trace(training, model, still, without(optimizer=still), train)
        raise EntryError(
            "training.optimizer",
            f"expected {training.optimizer} to return an optax transformation that "
            "needs gradients, its state and parameters alone, got "
            f"{reason(error)}; take another one, such as optax:adam, or train in a "
            "loop of your own with hwtrain.optim.hardware_aware",
        ) from error


def _trace(
    training: TrainingParameter,
    model: Functional,
    optimizer: optax.GradientTransformation,
    step: Step,
    train: Split,
) -> None:
    """Traces the first step of a training."""

    def first_step(data: Split, order: jax.Array) -> Any:
        state = init_state(model.init(0), optimizer)
        return step(state, data, order, jax.random.key(0))

    size = training.batch_size
    data = _batch_shape(train, len(train.labels))
    order = jax.ShapeDtypeStruct((len(train.labels) // size, size), np.int32)
    jax.eval_shape(first_step, data, order)


def _check_export(config: Config, ready: Preparation) -> None:
    """Checks on shapes alone that the export will succeed."""
    params, plan = jax.eval_shape(ready.aware.init, 0), ready.plan.effective
    shapes = paths.leaves(params)
    derived = [weight for weight in plan.weights if weight.derived]
    made = {weight.path: shapes[weight.stored] for weight in derived}
    params = paths.insert(params, made)
    contents = Contents({"params": params}, plan, [config.export.chip_seed])
    leaves = {leaf.path: leaf.value for leaf in contents.leaves}
    for weight in plan.weights:
        dtype = leaves[weight.path].dtype
        if not np.issubdtype(dtype, np.floating) and dtype != jnp.bfloat16:
            raise EntryError(
                "model",
                f"{config.model}: expected an analog weight {weight.path} of real "
                f"floating-point numbers, got {dtype}",
            )
        scale = leaves.get(weight.leaf(MAPPING_SCALE))
        jax.eval_shape(
            functools.partial(_conductances, weight), leaves[weight.path], scale
        )


def _conductances(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array | None
) -> Any:
    """Computes an export's conductances of one weight."""
    if weight.hardware.programs:
        return program_weight(weight, kernel, scale, keys_of_chip(weight, chip_key(0)))
    w, _ = on_crossbar(weight, kernel, scale)
    return conductances.targets(weight, weight.to_matrix(w))


def _batch_shape(data: Split, size: int) -> Any:
    """Returns the shapes and dtypes of `size` examples in JAX's dtypes."""
    return Split(
        *(
            jax.ShapeDtypeStruct(
                (size, *np.shape(part)[1:]), jax.dtypes.canonicalize_dtype(part.dtype)
            )
            for part in data
        )
    )
