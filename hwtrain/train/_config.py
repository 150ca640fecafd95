"""The configuration of a training run: frozen, validated dataclasses from one file."""

import dataclasses
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    model_validator,
)
from pydantic.dataclasses import dataclass

from hwtrain._parts.fields import (
    CONFIG,
    MOST,
    MOST_COUNTED,
    Chips,
    Deviation,
    PositiveDeviation,
    Size,
)
from hwtrain._plan.hardware import Hardware
from hwtrain.objectives import AnyObjective

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Source = Annotated[str, Field(pattern=r"^.+:[A-Za-z_]\w*$")]


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"expected seeds that differ, got {list(seeds)}")
    return seeds


_Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)]


def _pairs(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, dict) else value


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(
            f"expected a pattern as Python's re takes it, got {text!r}: {error}"
        ) from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression for paths, applied by `re.fullmatch`."""

_Argument = bool | int | float | str


def _computable(value: _Argument) -> _Argument:
    most = MOST_COUNTED if isinstance(value, int) else MOST
    if not isinstance(value, str) and not -most <= value <= most:
        raise ValueError(f"expected a number from {-most:g} to {most:g}, got {value:g}")
    return value


Arguments = Annotated[
    tuple[tuple[str, Annotated[_Argument, AfterValidator(_computable)]], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
]
"""Keyword arguments; in TOML, a table."""

Factors = Annotated[
    tuple[tuple[Pattern, Deviation], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
]
"""Factors by pattern; in TOML, a table."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class NoiseScheduleParameter:
    """How the noise in training changes over the updates.

    >>> NoiseScheduleParameter(
    ...     function="optax:linear_schedule",
    ...     arguments={"init_value": 0.0, "end_value": 1.0, "transition_steps": 500},
    ... ).arguments[0]
    ('init_value', 0.0)
    """

    function: Source
    """`module:function` or `file.py:function` that takes the arguments and returns a
    schedule: a function of the number of updates done, giving a factor on all standard
    deviations."""
    arguments: Arguments = ()
    """The function's keyword arguments."""
    layers: Factors = ()
    """Additional factors of layers by pattern; see `hwtrain.noise_strength`."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainingParameter:
    """How both models are trained.

    >>> TrainingParameter(steps=2000).schedule
    'cosine'
    """

    seeds: _Seeds = (0,)
    """Training seeds, for initial parameters, order of the data and noise."""
    steps: Size
    """Updates for each model and seed."""
    batch_size: Size = 64
    """Examples in each update."""
    optimizer: Source = "optax:adam"
    """`module:function` or `file.py:function` that takes a learning rate and returns an
    optax transformation."""
    learning_rate: PositiveDeviation = 1e-3
    """Learning rate of the first update."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over time: constant, or a half cosine down to zero."""
    noise_schedule: NoiseScheduleParameter | None = None
    """Schedule of the noise. `None`: the noise stays as the hardware configures it."""
    objective: AnyObjective | None = None
    """Objective that the hardware-aware model minimises instead of the loss. `None`:
    the loss."""
    generator: Literal["fast", "threefry"] = "fast"
    """Generator of the noise: `hwtrain.fast_prng`, or `hwtrain.threefry_prng`, which
    draws the numbers of `jax.random` in two to three times the time."""
    checkpoint_every: Size = 500
    """Updates between two checkpoints. The last update is always saved."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvaluationParameter:
    """The population of chips that both models are evaluated on.

    Both use the configured hardware with all its effects; the plain model's input
    ranges are calibrated on the training data.

    >>> EvaluationParameter(mismatch_std=(0.0, 0.1)).chips
    128
    """

    chips: Chips = 128
    """Number of chips, with seeds 0, 1, ..., each with its own frozen
    draws: mismatch, programming noise, stuck devices."""
    seed: Seed = 0
    """Seed of the noise drawn at each read of a chip."""
    mismatch_std: Annotated[tuple[Deviation, ...], Field(min_length=1)] = (0.0,)
    """Values of `hardware.mismatch.std_dev`, with one population for each. Hardware
    without a mismatch, or with one of your own without that field, has one
    population."""
    batch_size: Size = 512
    """Examples evaluated at once."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ExportParameter:
    """The export of the trained model.

    >>> ExportParameter().chip_seed
    0
    """

    chip_seed: Seed = 0
    """Seed of the chip that is stored beside the nominal model, with its frozen
    draws: mismatch, programming noise, stuck devices."""


def has_deviation(mismatch: Any) -> bool:
    """Whether a mismatch has a field `std_dev`, which the evaluation varies."""
    return any(field.name == "std_dev" for field in dataclasses.fields(mismatch))


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Config:
    """A training run: plain and hardware-aware model, export and evaluation.

    `read_config` reads it from a TOML file.
    """

    model: Source
    """`path/to/file.py:function`, relative to the configuration's folder, or
    `module:function` of an installed package. The function returns a Linen module, or
    takes `rngs` and returns an NNX module."""
    data: Source
    """A function in the same notation. It returns `((inputs, labels), (inputs,
    labels))`: training and test set, inputs `[examples, ...]`, labels `[examples]`
    integers."""
    training: TrainingParameter
    hardware: Hardware
    parts: tuple[str, ...] = ()
    """Files or modules that register your own parts used in `hardware`:
    `path/to/file.py`, relative to the configuration's folder, or an installed
    module."""
    evaluation: EvaluationParameter = Field(default_factory=EvaluationParameter)
    export: ExportParameter = Field(default_factory=ExportParameter)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hardware.mismatch is None and any(self.evaluation.mismatch_std):
            raise ValueError(
                "hardware.mismatch: expected a table [hardware.mismatch], because "
                "evaluation.mismatch_std varies its std_dev; got none. Write for "
                'example type = "add_normal" and std_dev = 0.1 in it, or, for chips '
                "without mismatch, leave evaluation.mismatch_std out"
            )
        mismatch = self.hardware.mismatch
        levels = self.evaluation.mismatch_std
        if mismatch is not None and any(levels) and not has_deviation(mismatch):
            raise ValueError(
                "evaluation.mismatch_std: expected none, because it varies "
                f"hardware.mismatch.std_dev, and the mismatch {mismatch.type!r} has no "
                f"field std_dev; got {list(levels)}. Leave it "
                "out, or name the field of your class std_dev"
            )
        if self.hardware.converter is None:
            raise ValueError(
                "hardware.converter: expected a table [hardware.converter], because "
                "the export turns weights into conductances with it; got none. Write "
                'for example type = "single_pair" in it'
            )
        if self.hardware.mismatch is None and not self.hardware.frozen:
            raise ValueError(
                "hardware: expected a table [hardware.mismatch] or "
                "[hardware.noise_model], because the exported chip (export.chip_seed) "
                "would be the nominal model; got neither. Write for example type = "
                '"add_normal" and std_dev = 0.1 in [hardware.mismatch]'
            )
        if not self.hardware.frozen:
            raise ValueError(
                "hardware.mismatch.std_dev: expected a number greater than 0, because "
                "the exported chip (export.chip_seed) would be the nominal model; got "
                "0. Write the mismatch of your chip, or give it a "
                "[hardware.noise_model]; evaluation.mismatch_std may still hold 0"
            )
        return self
