"""Everything that a run needs, loaded and checked before anything is written."""

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

from hwtrain import conductances
from hwtrain.checkpoint import Graph
from hwtrain.checkpoint.contents import Contents
from hwtrain.chips import chip_key
from hwtrain.crossbar import on_crossbar
from hwtrain.hardware import Hardware
from hwtrain.plan import AnalogWeight, Plan
from hwtrain.programming import program_weight
from hwtrain.training import linen, nnx
from hwtrain.training.config import Config
from hwtrain.training.functional import Functional
from hwtrain.training.loop import Split, Step, cross_entropy, init_state, make_step
from hwtrain.training.optimisation import (
    aware_optimizer,
    base_optimizer,
    learning_rate,
    noise_schedule,
    robust_loss,
)
from hwtrain.training.report import require_matplotlib
from hwtrain.training.source import named, reason, resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Models, optimizers and data of a run.

    Attributes:
      frontend: what is special to the model's framework.
      factory: the function of the recipe that builds the model.
      plain: the model as it is.
      aware: the hardware-aware model.
      plan: the plan of the hardware-aware model.
      graph: how its layers are connected.
      optimizer: of the plain model.
      aware_optimizer: of the hardware-aware model.
      plain_step: the training step of the plain model.
      aware_step: of the hardware-aware model.
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


def prepare(config: Config, folder: Path) -> Preparation:
    """Loads what a configuration names.

    Args:
      config: the configuration.
      folder: its folder, which its paths are relative to.

    Raises:
      ValueError: one line that names what is wrong.
    """
    require_matplotlib()
    train, test = load_data(config.data, config.training.batch_size, folder)
    factory = resolve(config.model, folder)
    with named(config.model):
        takes_rngs = "rngs" in inspect.signature(factory).parameters
        frontend = nnx if takes_rngs else linen
        example = train.inputs[:1]
        plain = frontend.plain(factory, example)
        aware, plan = frontend.hardware_aware(factory, config.hardware, example)
        graph = frontend.graph(factory, example)
    rate = learning_rate(config.training)
    base = base_optimizer(config.training, rate, folder)
    optimizer = aware_optimizer(base, plan, rate, config.export.chip_seed)
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
            aware,
            optimizer,
            cross_entropy,
            robust=robust_loss(config.training, plan),
            strength=noise_schedule(config.training, folder),
        ),
        train=train,
        test=test,
    )
    _check_outputs(config, ready)
    _check_step(config, plain, base, ready.plain_step, train)
    _check_step(config, aware, optimizer, ready.aware_step, train)
    _check_export(config, ready)
    return ready


def chip_hardware(hardware: Hardware, mismatch_std: float, *, plain: bool) -> Hardware:
    """Returns the hardware with another standard deviation of its mismatch.

    Args:
      hardware: the hardware; it has a mismatch.
      mismatch_std: the standard deviation.
      plain: leave out what the plain model was not trained with.
    """
    if hardware.mismatch is None:
        raise ValueError("expected hardware with a mismatch, got none")
    mismatch = dataclasses.replace(hardware.mismatch, std_dev=mismatch_std)
    if plain:
        return Hardware(mapping=hardware.mapping, mismatch=mismatch)
    return dataclasses.replace(hardware, mismatch=mismatch)


def load_data(source: str, batch_size: int, folder: Path) -> tuple[Split, Split]:
    """Loads and checks the training and the test set.

    Args:
      source: the function that returns them, as a configuration names it.
      batch_size: examples in an update.
      folder: what a relative path is relative to.

    Raises:
      ValueError: one line that names what is wrong.
    """
    function = resolve(source, folder)
    with named(source):
        data = function()
    try:
        train, test = (Split(*map(_as_array, part)) for part in data)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: expected a function that returns "
            f"((inputs, labels), (inputs, labels)), got {type(data).__name__}: {error}"
        ) from None
    for name, part in (("training", train), ("test", test)):
        if np.ndim(part.labels) != 1 or len(part.inputs) != len(part.labels):
            raise ValueError(
                f"{source}: expected as many inputs as labels, labels of one "
                f"axis, got a {name} set of shapes {np.shape(part.inputs)} and "
                f"{np.shape(part.labels)}"
            )
        if not len(part.labels) or not np.issubdtype(part.labels.dtype, np.integer):
            raise ValueError(
                f"{source}: expected at least one example, labels of whole "
                f"numbers, got a {name} set of {len(part.labels)} examples, labels "
                f"{part.labels.dtype}"
            )
    shapes = np.shape(train.inputs), np.shape(test.inputs)
    if shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            f"{source}: expected training and test inputs of the same shape, got "
            f"{shapes[0]} and {shapes[1]}"
        )
    if batch_size > len(train.labels):
        raise ValueError(
            f"training.batch_size: expected at most the {len(train.labels)} examples "
            f"of the training set, got {batch_size}"
        )
    return train, test


def _as_array(values: Any) -> Any:
    return values if hasattr(values, "dtype") else np.asarray(values)


def _check_outputs(config: Config, ready: Preparation) -> None:
    """Checks that the model's outputs are logits of the classes that the data have."""
    batch = _batch_shape(ready.train, config.training.batch_size).inputs
    for model in (ready.plain, ready.aware):
        params = jax.eval_shape(model.init, 0)
        with named(config.model):
            outputs = jax.eval_shape(model.apply, params, batch, jax.random.key(0))
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != batch.shape[0]:
            came = type(outputs).__name__ if shape is None else f"the shape {shape}"
            raise ValueError(
                f"{config.model}: expected outputs [examples, classes] of inputs "
                f"{batch.shape}, got {came}"
            )
        labels = np.concatenate([ready.train.labels, ready.test.labels])
        if labels.min() < 0 or labels.max() >= shape[1]:
            raise ValueError(
                f"{config.data}: expected labels from 0 to {shape[1] - 1}, because "
                f"{config.model} has {shape[1]} outputs; got labels from "
                f"{labels.min()} to {labels.max()}"
            )


def _check_step(
    config: Config,
    model: Functional,
    optimizer: optax.GradientTransformation,
    step: Step,
    train: Split,
) -> None:
    """Checks that a training step can be taken; nothing is computed."""

    def first_step(data: Split, order: jax.Array) -> Any:
        state = init_state(model.init(0), optimizer)
        return step(state, data, order, jax.random.key(0))

    size = config.training.batch_size
    data = _batch_shape(train, len(train.labels))
    order = jax.ShapeDtypeStruct((len(train.labels) // size, size), np.int32)
    try:
        jax.eval_shape(first_step, data, order)
    # What an optimizer raises, when it misses an argument, is up to it.
    except Exception as error:
        raise ValueError(
            f"training.optimizer: expected {config.training.optimizer} to return an "
            "optax transformation that needs gradients, its state and parameters "
            f"alone, got {reason(error)}; take another one, such as optax:adam, or "
            "train in a loop of your own with hwtrain.optim.hardware_aware"
        ) from error


def _check_export(config: Config, ready: Preparation) -> None:
    """Checks that the export will find what it needs, on shapes alone."""
    params = jax.eval_shape(ready.aware.init, 0)
    contents = Contents({"params": params}, ready.plan, [config.export.chip_seed])
    leaves = {leaf.path: leaf.value for leaf in contents.leaves}
    for weight in ready.plan.weights:
        dtype = leaves[weight.path].dtype
        if not np.issubdtype(dtype, np.floating) and dtype != jnp.bfloat16:
            raise ValueError(
                f"{config.model}: expected an analog weight {weight.path} of real "
                f"floating-point numbers, got {dtype}"
            )
        scale = leaves.get(weight.leaf("mapping_scale"))
        jax.eval_shape(
            functools.partial(_conductances, weight), leaves[weight.path], scale
        )


def _conductances(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array | None
) -> Any:
    """Returns what an export computes of one weight."""
    if weight.hardware.programs:
        return program_weight(weight, kernel, scale, chip_key(0))
    w, _ = on_crossbar(weight, kernel, scale)
    return conductances.targets(weight, weight.to_matrix(w))


def _batch_shape(data: Split, size: int) -> Any:
    """Returns the shapes and dtypes of `size` examples, as JAX takes them."""
    return Split(
        *(
            jax.ShapeDtypeStruct(
                (size, *np.shape(part)[1:]), jax.dtypes.canonicalize_dtype(part.dtype)
            )
            for part in data
        )
    )
