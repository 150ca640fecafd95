"""What a configuration says of updates: optimizer, noise over time, objective."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hwtrain import objectives, optim
from hwtrain.chips import chip_key
from hwtrain.plan import Plan
from hwtrain.training.config import TrainingParameter
from hwtrain.training.source import reason, resolve


def learning_rate(training: TrainingParameter) -> optax.Schedule:
    """Returns the learning rate of each update."""
    rate = training.learning_rate
    if training.schedule == "cosine":
        return optax.cosine_decay_schedule(rate, training.steps)
    return optax.constant_schedule(rate)


def base_optimizer(
    training: TrainingParameter, schedule: optax.Schedule, folder: Path
) -> optax.GradientTransformation:
    """Returns the optimizer that a configuration names.

    Args:
      training: how a model is trained.
      schedule: the learning rate of each update.
      folder: what a relative path is relative to.

    Raises:
      ValueError: one line that names what is wrong.
    """
    build = resolve(training.optimizer, folder)
    try:
        optimizer = build(schedule)
    # What a function raises, when it is called with something else, is up to it.
    except Exception as error:
        raise ValueError(
            f"training.optimizer: expected {training.optimizer} to be a function of a "
            f"learning rate, got {reason(error)}"
        ) from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            f"training.optimizer: expected {training.optimizer} to return an optax "
            f"transformation, got {type(optimizer).__name__}"
        )
    return optimizer


def aware_optimizer(
    base: optax.GradientTransformation,
    plan: Plan,
    rate: optax.Schedule,
    chip_seed: int,
) -> optax.GradientTransformation:
    """Returns the optimizer of an analog model, which trains one chip if it drifts.

    Args:
      base: the optimizer of the plain model.
      plan: the plan of the analog one.
      rate: the learning rate of each update, for input ranges too.
      chip_seed: the chip's number.
    """
    drifts = [weight.hardware.drift for weight in plan.weights]
    drawn = any(drift is not None and drift.draws for drift in drifts)
    key = chip_key(chip_seed) if drawn else None
    return optim.hardware_aware(
        base, plan, input_range_learning_rate=rate, drift_key=key
    )


def robust_loss(
    training: TrainingParameter, plan: Plan
) -> Callable[..., Callable[..., Any]] | None:
    """Returns what makes a loss robust, as `make_step` takes it.

    Args:
      training: how the model is trained.
      plan: its plan.

    Returns:
      `(loss, outputs) -> loss`; `None` for the loss alone. It raises a `ValueError` if
      the objective would do nothing.
    """
    objective = training.objective
    if objective is None:
        return None

    def robust(loss: Callable[..., Any], outputs: Callable[..., Any]) -> Any:
        try:
            return objectives.robust(loss, plan, objective, outputs=outputs)
        except ValueError as error:
            raise ValueError(f"training.objective: {error}") from error

    return robust


def noise_schedule(
    training: TrainingParameter, folder: Path
) -> Callable[[jax.Array], Any] | None:
    """Returns how strong the noise is after a number of updates.

    Args:
      training: how the model is trained.
      folder: what a relative path is relative to.

    Returns:
      Of the number of updates, what `noise_strength` takes; `None` for 1.

    Raises:
      ValueError: one line that names what is wrong.
    """
    parameter = training.noise_schedule
    if parameter is None:
        return None
    build = resolve(parameter.function, folder)
    try:
        schedule = build(**dict(parameter.arguments))
        value = jax.eval_shape(schedule, jnp.zeros((), jnp.int32))
    # What a function raises, when it is called with something else, is up to it.
    except Exception as error:
        raise ValueError(
            f"training.noise_schedule: expected {parameter.function} to return, for "
            f"the arguments {dict(parameter.arguments)}, a function of the number of "
            f"updates, got {reason(error)}"
        ) from error
    if getattr(value, "shape", None) != ():
        raise ValueError(
            f"training.noise_schedule: expected {parameter.function} to return a "
            f"schedule of one number, got {value}"
        )
    return lambda step: {".*": schedule(step), **dict(parameter.layers)}
