"""Tries a training step by tracing it; nothing is computed."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from hwtrain._parts.source import reason
from hwtrain.train._batches import Data
from hwtrain.train._config import (
    TrainingParameter,
)
from hwtrain.train._entries import EntryError, named
from hwtrain.train._functional import Functional
from hwtrain.train._loop import Step, init_state


def check_step(
    training: TrainingParameter,
    model: Functional,
    optimizer: optax.GradientTransformation,
    step: Step,
    data: Data,
    without: Callable[..., Step] | None = None,
    objective: str = "training.objective",
) -> None:
    """Checks by tracing that a training step can be taken; nothing is computed.

    Args:
      training: the training configuration.
      model: the model.
      optimizer: its optimizer.
      step: from `make_step`.
      data: the batches.
      without: returns the same step with another optimizer, to find errors that the
        optimizer did not cause; `None` if the loss is the plain one.
      objective: the key of the objective in that case.

    Raises:
      EntryError: (a `ValueError`) one line that names the wrong entry.
    """
    try:
        _trace(training, model, optimizer, step, data)
    # An optimizer that misses an argument may raise any error.
    except Exception as error:
        if without is not None:
            still = optax.set_to_zero()
            with named(objective):
                _trace(training, model, still, without(optimizer=still), data)
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
    data: Data,
) -> None:
    """Traces the first step of a training."""

    def first_step(taken: Any) -> Any:
        average = training.ema is not None
        state = init_state(model.init(0), optimizer, average=average)
        return step(state, taken, jax.random.key(0))

    jax.eval_shape(first_step, data.taken)
