"""Everything that a run needs, loaded and checked before anything is written."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optax

from hwtrain import optim
from hwtrain.hardware import Hardware
from hwtrain.plan import Plan
from hwtrain.training import linen, nnx
from hwtrain.training.config import Config, TrainingParameter
from hwtrain.training.functional import Functional
from hwtrain.training.loop import Split
from hwtrain.training.report import require_matplotlib
from hwtrain.training.source import resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Models, optimizers and data of a run.

    Attributes:
      frontend: what is special to the model's framework.
      factory: the function of the recipe that builds the model.
      plain: the model as it is.
      aware: the hardware-aware model.
      plan: the plan of the hardware-aware model.
      optimizer: of the plain model.
      aware_optimizer: of the hardware-aware model.
      train: the training set.
      test: the test set.
    """

    frontend: ModuleType
    factory: Callable[..., Any]
    plain: Functional
    aware: Functional
    plan: Plan
    optimizer: optax.GradientTransformation
    aware_optimizer: optax.GradientTransformation
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
    train, test = _load_data(config, folder)
    factory = resolve(config.model, folder)
    takes_rngs = "rngs" in inspect.signature(factory).parameters
    frontend = nnx if takes_rngs else linen
    example = train.inputs[:1]
    plain = frontend.plain(factory, example)
    aware, plan = frontend.hardware_aware(factory, config.hardware, example)
    base = _optimizer(config.training, folder)
    return Preparation(
        frontend=frontend,
        factory=factory,
        plain=plain,
        aware=aware,
        plan=plan,
        optimizer=base,
        aware_optimizer=optim.hardware_aware(base, plan),
        train=train,
        test=test,
    )


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


def _load_data(config: Config, folder: Path) -> tuple[Split, Split]:
    data = resolve(config.data, folder)()
    try:
        train, test = (Split(*part) for part in data)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{config.data}: expected a function that returns "
            f"((inputs, labels), (inputs, labels)), got {type(data).__name__}: {error}"
        ) from None
    for name, part in (("training", train), ("test", test)):
        if np.ndim(part.labels) != 1 or len(part.inputs) != len(part.labels):
            raise ValueError(
                f"{config.data}: expected as many inputs as labels, labels of one "
                f"axis, got a {name} set of shapes {np.shape(part.inputs)} and "
                f"{np.shape(part.labels)}"
            )
    shapes = np.shape(train.inputs), np.shape(test.inputs)
    if shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            f"{config.data}: expected training and test inputs of the same shape, got "
            f"{shapes[0]} and {shapes[1]}"
        )
    size = config.training.batch_size
    if size > len(train.labels):
        raise ValueError(
            f"training.batch_size: expected at most the {len(train.labels)} examples "
            f"of the training set, got {size}"
        )
    return train, test


def _optimizer(
    training: TrainingParameter, folder: Path
) -> optax.GradientTransformation:
    rate = training.learning_rate
    schedule = (
        optax.cosine_decay_schedule(rate, training.steps)
        if training.schedule == "cosine"
        else optax.constant_schedule(rate)
    )
    build = resolve(training.optimizer, folder)
    try:
        optimizer = build(schedule)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"training.optimizer: expected {training.optimizer} to be a function of a "
            f"learning rate, got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            f"training.optimizer: expected {training.optimizer} to return an optax "
            f"transformation, got {type(optimizer).__name__}"
        )
    return optimizer
