"""Loads what a configuration names: model, data, task; and checks how they fit."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._parts.source import resolve
from hwtrain.train import _linen as linen
from hwtrain.train import _nnx as nnx
from hwtrain.train._batches import Data, Split, of_arrays, of_iterators
from hwtrain.train._config import (
    Config,
    EarlyStoppingParameter,
    TaskParameter,
    TrainingParameter,
)
from hwtrain.train._entries import EntryError, named
from hwtrain.train._functional import Functional
from hwtrain.train._mismatch_config import MismatchConfig
from hwtrain.train._task import (
    LOSSES,
    METRICS,
    Metric,
    Task,
    Values,
    metrics_of,
    softmax_cross_entropy,
)


def build_plain(
    config: Config | MismatchConfig,
    task: TaskParameter,
    data: Data,
    folder: Path,
) -> tuple[ModuleType, Callable[..., Any], Task, Functional]:
    """Returns the framework's functions, the model's factory, the task, the model.

    Args:
      config: names the model and the data.
      task: the task's configuration.
      data: the batches.
      folder: the folder that relative paths refer to.

    Raises:
      EntryError: (a `ValueError`) one line that names the wrong entry.
    """
    with named("model", config.model):
        factory = resolve(config.model, folder)
        frontend = nnx if "rngs" in inspect.signature(factory).parameters else linen
        # Built alone first, because errors in the call may be the data's fault.
        forward = frontend.default_forward(factory)
    if task.forward is not None:
        with named("task.forward"):
            forward = resolve(task.forward, folder)
    found = _task(task, forward, folder)
    shapes = jax.tree.map(np.shape, data.example)
    given = f"a batch {shapes} of {config.data}"
    key = "data" if task.forward is None else "task.forward"
    with named(key, task.forward or config.model, given=given):
        plain = frontend.plain(factory, forward, data.example)
        jax.eval_shape(plain.evaluate, *jax.eval_shape(plain.init, 0), data.example)
    return frontend, factory, found, plain


def _task(task: TaskParameter, forward: Any, folder: Path) -> Task:
    """Returns the task that a configuration describes."""
    loss = _values(task.loss, LOSSES, "task.loss", folder)
    metrics = tuple(
        Metric(
            name,
            _values(entry.function, METRICS, f"task.metrics.{name}.function", folder),
            entry.better,
            entry.unit,
        )
        for name, entry in task.metrics
    )
    return Task(loss, metrics or metrics_of(task.loss, loss), forward)


def _values(source: str, known: Any, key: str, folder: Path) -> Values:
    """Returns a loss or a metric by name, or of a user's own."""
    if ":" in source:
        with named(key):
            return resolve(source, folder)
    if source not in known:
        raise EntryError(
            key,
            f"expected one of {', '.join(known)}, or a function of your own as "
            f'"path/to/file.py:function", got {source!r}',
        )
    return known[source]


def load_data(source: str, batch_size: int, evaluated: int, folder: Path) -> Data:
    """Loads and checks the data.

    Args:
      source: the function that returns them, as named in a configuration.
      batch_size: examples in each update, of arrays.
      evaluated: examples evaluated at once, of arrays.
      folder: the folder that relative paths refer to.

    Raises:
      ValueError: one line that names the wrong entry.
    """
    with named("data", source):
        data = resolve(source, folder)()
    if isinstance(data, tuple | list) and len(data) == 2 and any(map(callable, data)):
        return of_iterators(source, *data)
    try:
        train, test = (Split(*map(_as_array, part)) for part in data)
    except (TypeError, ValueError) as error:
        raise EntryError(
            "data",
            f"{source}: expected a function that returns ((inputs, labels), (inputs, "
            f"labels)) or (train, evaluation), got {type(data).__name__}: {error}",
        ) from None
    for name, part in (("training", train), ("test", test)):
        shapes = np.shape(part.inputs), np.shape(part.labels)
        if not all(shapes) or shapes[0][0] != shapes[1][0]:
            raise EntryError(
                "data",
                f"{source}: expected as many inputs as labels, got a {name} set of "
                f"shapes {shapes[0]} and {shapes[1]}",
            )
        if not shapes[0][0]:
            raise EntryError(
                "data", f"{source}: expected at least one example in the {name} set"
            )
    for name, ours, theirs in zip(("inputs", "labels"), train, test):
        if np.shape(ours)[1:] != np.shape(theirs)[1:]:
            raise EntryError(
                "data",
                f"{source}: expected training and test {name} of the same shape, got "
                f"{np.shape(ours)} and {np.shape(theirs)}",
            )
    if batch_size > len(train.inputs):
        raise EntryError(
            "training.batch_size",
            f"expected at most the {len(train.inputs)} examples of the training set, "
            f"got {batch_size}",
        )
    return of_arrays(source, train, test, batch_size=batch_size, evaluated=evaluated)


def _as_array(values: Any) -> Any:
    return values if hasattr(values, "dtype") else np.asarray(values)


def check_task(
    config: Config | MismatchConfig, task: Task, model: Functional, data: Data
) -> None:
    """Checks by tracing that loss and metrics fit the model's outputs.

    Args:
      config: the configuration.
      task: what is measured.
      model: the plain model.
      data: the batches.

    Raises:
      EntryError: (a `ValueError`) one line that names the wrong entry.
    """
    variables = jax.eval_shape(model.init, 0)
    outputs = jax.eval_shape(model.evaluate, *variables, data.example)
    shapes = jax.tree.map(jnp.shape, outputs)
    if task.loss is softmax_cross_entropy:
        _check_classes(config, outputs, data)
    given = f"outputs {shapes}"
    entries = {"task.loss": task.loss}
    for metric in task.metrics:
        entries[f"task.metrics.{metric.name}"] = metric.function
    examples = jnp.shape(jax.tree.leaves(data.example)[0])[:1]
    for key, function in entries.items():
        name = getattr(function, "__name__", type(function).__name__)
        with named(key, name, given=given):
            found = jax.eval_shape(function, outputs, data.example)
        if getattr(found, "shape", None) != examples:
            came = getattr(found, "shape", type(found).__name__)
            raise EntryError(
                key,
                f"expected {name} to return one number for each example of a batch, "
                f"shape {examples}, got {came}",
            )


def metric_of(stopping: EarlyStoppingParameter, task: Task) -> Metric:
    """Returns the metric by which the best state of a training is found.

    Args:
      stopping: the configuration.
      task: what is measured.

    Raises:
      EntryError: (a `ValueError`) if there is no such metric.
    """
    metrics = {metric.name: metric for metric in task.metrics}
    name = task.metrics[0].name if stopping.metric is None else stopping.metric
    if name not in metrics:
        raise EntryError(
            "training.early_stopping.metric",
            f"expected one of {', '.join(metrics)}, got {name!r}",
        )
    return metrics[name]


def check_shares(training: TrainingParameter, data: Data) -> None:
    """Checks that a batch can be divided among its parts and among the devices.

    Args:
      training: the training configuration.
      data: the batches.

    Raises:
      EntryError: (a `ValueError`) one line that names the wrong entry.
    """
    batch = jax.eval_shape(data.take, data.taken, jax.ShapeDtypeStruct((), np.int32))
    examples, parts = len(jax.tree.leaves(batch)[0]), 1
    for name in ("accumulate", "devices"):
        parts *= getattr(training, name)
        if examples % parts:
            raise EntryError(
                f"training.{name}",
                f"expected a batch of {examples} examples to be divided into {parts} "
                "equal parts, for training.accumulate times training.devices; take "
                "another size of the batch",
            )


def _check_classes(config: Config | MismatchConfig, outputs: Any, data: Data) -> None:
    """Checks that outputs are logits of the classes in the data."""
    shape = getattr(outputs, "shape", None)
    for labels in map(np.asarray, data.targets):
        wanted = (len(data.example[0]), *labels.shape[1:])
        if shape is None or shape[:-1] != wanted:
            came = type(outputs).__name__ if shape is None else f"the shape {shape}"
            raise EntryError(
                "model",
                f"{config.model}: expected outputs {[*wanted, 'classes']} for labels "
                f"{list(wanted)}, because the loss is softmax_cross_entropy; got "
                f"{came}. Another loss is chosen by task.loss",
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise EntryError(
                "data",
                f"{config.data}: expected labels of whole numbers, because the loss is "
                f"softmax_cross_entropy; got {labels.dtype}. Another loss is chosen by "
                "task.loss",
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < shape[-1]:
            raise EntryError(
                "data",
                f"{config.data}: expected labels from 0 to {shape[-1] - 1}, because "
                f"{config.model} has {shape[-1]} outputs; got labels from "
                f"{labels.min()} to {labels.max()}",
            )
