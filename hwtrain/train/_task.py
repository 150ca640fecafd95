"""What a training minimises, what it measures, and how it calls the model."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwtrain._errors import InputError
from hwtrain.train._entries import EntryError

Outputs = Any
Batch = Any
Values = Callable[[Outputs, Batch], jax.Array]
"""`(outputs, batch) -> [B]`: one number for each example."""

Forward = Callable[[Callable[..., Any], Batch, bool], Outputs]
"""`(apply, batch, train) -> outputs`: calls the model, as `apply`, for a batch."""


class Metric(NamedTuple):
    """A number to measure on chips.

    Attributes:
      name: its name.
      function: `(outputs, batch) -> [B]`.
      better: which values are better.
      unit: its unit; empty for none.
    """

    name: str
    function: Values
    better: Literal["higher", "lower"]
    unit: str = ""

    @property
    def title(self) -> str:
        """The name with the unit: `accuracy in %`."""
        return f"{self.name} in {self.unit}" if self.unit else self.name

    def require_finite(self, values: Any, where: str) -> None:
        """Raises an `EntryError` if a value is NaN or infinite.

        Args:
          values: numbers of any shape.
          where: what was measured, for the message.
        """
        wrong = np.ravel(values)[~np.isfinite(np.ravel(values))]
        if wrong.size:
            raise EntryError(
                f"task.metrics.{self.name}",
                f"expected finite numbers, got {wrong[0]:g} {where}",
            )

    def improves(self, value: float, on: float) -> bool:
        """Whether a value is better than another one."""
        return value > on if self.better == "higher" else value < on


class Task(NamedTuple):
    """What to train a model for.

    Attributes:
      loss: minimised, `(outputs, batch) -> [B]`; the mean over examples counts.
      metrics: measured; the first is the main one.
      forward: `(apply, batch, train) -> outputs`.
    """

    loss: Values
    metrics: tuple[Metric, ...]
    forward: Forward

    def on_chip(self, apply: Callable[..., Any], batch: Batch) -> Outputs:
        """Calls the model as on a chip: not for training."""
        return self.forward(apply, batch, False)


def softmax_cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns the cross entropy of logits in nats, for batches `(inputs, labels)`.

    >>> batch = (jnp.zeros((1, 4)), jnp.array([3]))
    >>> print(f"{softmax_cross_entropy(jnp.zeros((1, 10)), batch)[0]:.3f}")
    2.303

    Args:
      outputs: `[B, ..., classes]` logits.
      batch: its second entry: `[B, ...]` integers.

    Returns:
      `[B]`, the mean over all further axes.
    """
    labels = batch[1]
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return _of_examples(losses)


def mean_squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean squared error, for batches `(inputs, targets)`.

    >>> mean_squared_error(jnp.ones((2, 3)), (None, jnp.zeros((2, 3)))).tolist()
    [1.0, 1.0]

    Args:
      outputs: `[B, ...]`.
      batch: its second entry: targets of the outputs' shape.

    Returns:
      `[B]`, the mean over all further axes.
    """
    targets = batch[1]
    if jnp.shape(outputs) != jnp.shape(targets):
        raise InputError(
            f"mean_squared_error expects outputs of the targets' shape "
            f"{jnp.shape(targets)}, got {jnp.shape(outputs)}"
        )
    return _of_examples(jnp.square(outputs - targets))


def next_token_cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns the cross entropy of each next token in nats.

    >>> next_token_cross_entropy(jnp.zeros((2, 5, 3)), jnp.zeros((2, 5), int)).shape
    (2,)

    Args:
      outputs: `[B, T, tokens]` logits; those of position t predict token t + 1.
      batch: `[B, T]` integers, or a tuple that begins with them.

    Returns:
      `[B]`, the mean over T - 1 tokens.
    """
    tokens = batch[0] if isinstance(batch, tuple | list) else batch
    losses = optax.softmax_cross_entropy_with_integer_labels(
        outputs[:, :-1], tokens[:, 1:]
    )
    return _of_examples(losses)


def accuracy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns the accuracy in %: 100 if the largest logit is right.

    >>> outputs = jnp.array([[0.1, 0.9], [0.8, 0.2]])
    >>> accuracy(outputs, (None, jnp.array([1, 1]))).tolist()
    [100.0, 0.0]

    Args:
      outputs: `[B, ..., classes]` logits.
      batch: its second entry: `[B, ...]` integers.

    Returns:
      `[B]`, the mean over all further axes.
    """
    return _of_examples(100.0 * (outputs.argmax(axis=-1) == batch[1]))


def _of_examples(values: jax.Array) -> jax.Array:
    """Returns the mean over all axes but the first."""
    return values.mean(axis=tuple(range(1, values.ndim)))


LOSSES: Mapping[str, Values] = {
    function.__name__: function
    for function in (
        softmax_cross_entropy,
        mean_squared_error,
        next_token_cross_entropy,
    )
}
"""Losses that a configuration knows by name."""

METRICS: Mapping[str, Values] = {"accuracy": accuracy, **LOSSES}
"""Metrics that a configuration knows by name."""


def metrics_of(loss: str, function: Values) -> tuple[Metric, ...]:
    """Returns what is measured where a configuration names no metric.

    Args:
      loss: the loss, as the configuration names it.
      function: the loss.
    """
    if loss == "softmax_cross_entropy":
        return (Metric("accuracy", accuracy, "higher", "%"),)
    name = loss if loss in LOSSES else "loss"
    return (Metric(name, function, "lower"),)


def forward_of(call: Callable[..., Any]) -> Forward:
    """Returns the function that calls a model with the first of a batch.

    The model is told whether it trains, if it has a parameter `train`,
    `deterministic` or `training`.

    >>> forward = forward_of(lambda x, train: x + train)
    >>> forward(lambda x, train: x + train, (1, 2), True)
    2

    Args:
      call: the model's call, for its signature.
    """
    known = inspect.signature(call).parameters
    flags = [name for name in ("train", "training", "deterministic") if name in known]

    def forward(apply: Callable[..., Any], batch: Batch, train: bool) -> Outputs:
        inputs = batch[0] if isinstance(batch, tuple | list) else batch
        told = {name: train != (name == "deterministic") for name in flags}
        return apply(inputs, **told)

    return forward
