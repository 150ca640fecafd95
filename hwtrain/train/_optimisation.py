"""Builds the optimizer, the noise schedule and the objective of a configuration."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hwtrain import objectives, optim
from hwtrain._parts.source import reason, resolve
from hwtrain._plan.plan import Plan
from hwtrain.chips import chip_key
from hwtrain.train._batches import Data
from hwtrain.train._config import TrainingParameter
from hwtrain.train._entries import EntryError, named
from hwtrain.train._loop import Step, data_mesh, make_step
from hwtrain.train._task import Task

_ALL = ".*"
_LOOKED_AT = 10_000


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
      training: the training configuration.
      schedule: the learning rate of each update.
      folder: the folder that relative paths refer to.

    Raises:
      ValueError: one line that names the wrong entry.
    """
    with named("training.optimizer"):
        build = resolve(training.optimizer, folder)
    try:
        optimizer = build(schedule)
    # A function that expects other arguments may raise any error.
    except Exception as error:
        raise EntryError(
            "training.optimizer",
            f"expected {training.optimizer} to be a function of the learning rate's "
            "schedule, itself a function of the number of updates; got "
            f"{reason(error)}",
        ) from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise EntryError(
            "training.optimizer",
            f"expected {training.optimizer} to return an optax transformation, got "
            f"{type(optimizer).__name__}",
        )
    return optimizer


def aware_optimizer(
    base: optax.GradientTransformation,
    plan: Plan,
    rate: optax.Schedule,
    chip_seed: int,
) -> optax.GradientTransformation:
    """Returns the optimizer of an analog model; a drift is drawn for a single chip.

    Args:
      base: the optimizer of the plain model.
      plan: the plan of the analog model.
      rate: the learning rate of each update, used for input ranges too.
      chip_seed: seed of the chip.
    """
    drifts = [weight.hardware.drift for weight in plan.weights]
    drawn = any(drift is not None and drift.draws for drift in drifts)
    key = chip_key(chip_seed) if drawn else None
    return optim.hardware_aware(
        base, plan, input_range_learning_rate=rate, drift_key=key
    )


def step_maker(
    training: TrainingParameter, task: Task, data: Data
) -> tuple[Mesh, Callable[..., Step]]:
    """Returns the devices of a training, and `make_step` with all but the model.

    Args:
      training: the training configuration.
      task: what the models are trained for.
      data: the batches.

    Raises:
      ValueError: if there are fewer devices.
    """
    with named("training.devices"):
        mesh = data_mesh(training.devices)
    return mesh, functools.partial(
        make_step,
        loss=task.loss,
        take=data.take,
        accumulate=training.accumulate,
        average=training.ema,
        mesh=mesh,
    )


def robust_loss(
    training: TrainingParameter, plan: Plan
) -> Callable[..., Callable[..., Any]] | None:
    """Returns the function that makes a loss robust, for `make_step`.

    Args:
      training: the training configuration.
      plan: the model's plan.

    Returns:
      `(loss, outputs) -> loss`; `None` to keep the loss. It raises a `ValueError` if
      the objective would have no effect.
    """
    objective = training.objective
    if objective is None:
        return None

    def robust(loss: Callable[..., Any], outputs: Callable[..., Any]) -> Any:
        try:
            return objectives.robust(
                loss, plan, objective, outputs=outputs, has_aux=True
            )
        except ValueError as error:
            raise EntryError("training.objective", str(error)) from error

    return robust


def noise_schedule(
    training: TrainingParameter, folder: Path
) -> Callable[[jax.Array], Any] | None:
    """Returns the strength of the noise as a function of the number of updates.

    Args:
      training: the training configuration.
      folder: the folder that relative paths refer to.

    Returns:
      A function from the number of updates to an argument of `noise_strength`; `None`
      for 1.

    Raises:
      ValueError: one line that names the wrong entry.
    """
    parameter = training.noise_schedule
    if parameter is None:
        return None
    with named("training.noise_schedule.function"):
        build = resolve(parameter.function, folder)
    try:
        schedule = build(**dict(parameter.arguments))
        value = jax.eval_shape(schedule, jnp.zeros((), jnp.int32))
    # A function that expects other arguments may raise any error.
    except Exception as error:
        raise EntryError(
            "training.noise_schedule",
            f"expected {parameter.function} to return, for the arguments "
            f"{dict(parameter.arguments)}, a function of the number of updates, got "
            f"{reason(error)}",
        ) from error
    if getattr(value, "shape", None) != ():
        raise EntryError(
            "training.noise_schedule",
            f"expected {parameter.function} to return a schedule of one number, got "
            f"{value}",
        )
    _check_values(schedule, training.steps)
    factors = dict(parameter.layers)
    of_all = factors.pop(_ALL, 1.0)
    return lambda step: {_ALL: of_all * schedule(step), **factors}


def _check_values(schedule: Callable[[jax.Array], Any], steps: int) -> None:
    """Raises if a schedule is negative, NaN or infinite at an update."""
    # At most _LOOKED_AT updates are checked, evenly spaced.
    numbers = np.unique(np.linspace(0, steps - 1, min(steps, _LOOKED_AT)).astype(int))

    @jax.jit
    def values(numbers: jax.Array) -> jax.Array:
        return jax.lax.map(lambda n: jnp.asarray(schedule(n), jnp.float32), numbers)

    found = np.asarray(values(jnp.asarray(numbers, jnp.int32)))
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if wrong.size:
        raise EntryError(
            "training.noise_schedule",
            f"expected strengths that are finite and not negative, got "
            f"{found[wrong[0]]:g} after {numbers[wrong[0]]} updates",
        )
