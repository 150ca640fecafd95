"""What a configuration says of updates: optimizer, noise over time, objective."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwtrain import objectives, optim
from hwtrain._parts.source import reason, resolve
from hwtrain._plan.plan import Plan
from hwtrain.chips import chip_key
from hwtrain.train._config import TrainingParameter
from hwtrain.train._entries import EntryError, named

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
      training: how a model is trained.
      schedule: the learning rate of each update.
      folder: what a relative path is relative to.

    Raises:
      ValueError: one line that names what is wrong.
    """
    with named("training.optimizer"):
        build = resolve(training.optimizer, folder)
    try:
        optimizer = build(schedule)
    # What a function raises, when it is called with something else, is up to it.
    except Exception as error:
        raise EntryError(
            "training.optimizer",
            f"expected {training.optimizer} to be a function of a learning rate, got "
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
            raise EntryError("training.objective", str(error)) from error

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
    with named("training.noise_schedule.function"):
        build = resolve(parameter.function, folder)
    try:
        schedule = build(**dict(parameter.arguments))
        value = jax.eval_shape(schedule, jnp.zeros((), jnp.int32))
    # What a function raises, when it is called with something else, is up to it.
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
    """Raises for a schedule that is negative, NaN or infinite at an update."""
    # Of very many, those evenly apart.
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
