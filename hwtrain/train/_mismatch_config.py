"""The configuration of a comparison of trainings under mismatch."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from hwtrain._errors import InputError
from hwtrain._parts.fields import (
    Chips,
    Deviation,
    Positive,
    PositiveDeviation,
    configuration,
)
from hwtrain.objectives import AnyObjective
from hwtrain.train._config import (
    Config,
    Pattern,
    Source,
    TaskParameter,
    TrainingParameter,
)


@configuration
class DeviationParameter:
    """The mismatch drawn at each training step.

    Kernels and all parameters of a DynapSim deviate; see
    `hwtrain.frozen_mismatch_prototype` and `hwtrain.dynamic_mismatch_prototype`.

    >>> DeviationParameter(digital=("readout/.*",)).sigma_rule
    3.0
    """

    digital: tuple[Pattern, ...] = ()
    """Patterns for paths of parameters that are not on the chip."""
    percent_deviation: PositiveDeviation = 0.3
    """Deviation in training, 0.3 for 30 %."""
    sigma_rule: Positive = 3.0
    """Number of standard deviations in a deviation, in training and on the chips."""


@configuration
class ChipsParameter:
    """The frozen chips that all models are evaluated on.

    >>> ChipsParameter(percent_deviation=(0.0, 0.3)).chips
    64
    """

    chips: Chips = 64
    """Number of chips, with seeds 0, 1, ..., the same for all models."""
    percent_deviation: Annotated[tuple[Deviation, ...], Field(min_length=1)] = (0.3,)
    """Deviations, with one population of chips for each."""


@configuration
class MismatchConfig:
    """A comparison of training plain, with mismatch and with a robust objective.

    `read_config` reads it from a TOML file with a table `[mismatch]`.
    """

    model: Source
    """As in `Config`."""
    data: Source
    """As in `Config`."""
    training: TrainingParameter
    mismatch: DeviationParameter
    task: TaskParameter = Field(default_factory=TaskParameter)
    """As in `Config`."""
    objective: AnyObjective | None = None
    """Objective that a third model minimises. `None`: no third model."""
    evaluation: ChipsParameter

    @model_validator(mode="after")
    def _check(self) -> Self:
        instead = {
            "objective": "the third model's objective is the table [objective]",
            "noise_schedule": "the third model's objective is the table [objective]",
            "early_stopping": "the last state of each training is compared",
        }
        for name, what in instead.items():
            if getattr(self.training, name) is not None:
                raise InputError(
                    f"training.{name}: does nothing beside a table [mismatch]; {what}"
                )
        return self


def kind_of(data: Mapping[str, Any]) -> type[Config] | type[MismatchConfig]:
    """Returns the class of a configuration given as plain data."""
    return MismatchConfig if "mismatch" in data else Config
