"""The configuration of a training run: frozen, validated dataclasses from one file."""

import dataclasses
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    model_validator,
)
from pydantic_core import core_schema

from hwtrain._errors import InputError
from hwtrain._parts.cost_constants import CostParameter
from hwtrain._parts.fields import (
    MOST,
    MOST_COUNTED,
    Chips,
    Deviation,
    PositiveDeviation,
    Size,
    at_least,
    configuration,
)
from hwtrain._parts.wording import METRIC_NAME, NAMED, SOURCE
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.rules import Rule
from hwtrain.objectives import AnyObjective

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Source = Annotated[str, Field(pattern=SOURCE)]
Named = Annotated[str, Field(pattern=NAMED)]
"""A built-in function's name, or a `Source`."""

MetricName = Annotated[str, Field(pattern=METRIC_NAME)]


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise InputError(f"expected seeds that differ, got {list(seeds)}")
    return seeds


_Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)]


def _pairs(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, dict) else value


def pattern(text: str) -> str:
    """Returns a regular expression, or raises a `ValueError` for what is none."""
    try:
        re.compile(text)
    except re.error as error:
        raise InputError(
            f"expected a pattern as Python's re takes it, got {text!r}: {error}"
        ) from None
    return text


Pattern = Annotated[str, AfterValidator(pattern)]
"""A regular expression for paths, applied by `re.fullmatch`."""

_Argument = bool | int | float | str


def _computable(value: _Argument) -> _Argument:
    most = MOST_COUNTED if isinstance(value, int) else MOST
    if not isinstance(value, str) and not -most <= value <= most:
        raise InputError(f"expected a number from {-most:g} to {most:g}, got {value:g}")
    return value


class FreeNames:
    """Describes pairs of a name and a value as the table that a file has for them."""

    def __get_pydantic_json_schema__(
        self, core: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        _, value = handler(core)["items"]["prefixItems"]
        return {"type": "object", "additionalProperties": value}


Arguments = Annotated[
    tuple[tuple[str, Annotated[_Argument, AfterValidator(_computable)]], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
    FreeNames(),
]
"""Keyword arguments; in TOML, a table."""

Factors = Annotated[
    tuple[tuple[Pattern, Deviation], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
    FreeNames(),
]
"""Factors by pattern; in TOML, a table."""


@configuration
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


@configuration
class MetricParameter:
    """A metric that models are measured by.

    >>> MetricParameter(function="metrics.py:hits", better="higher").unit
    ''
    """

    function: Named
    """`"accuracy"` (in %), `"softmax_cross_entropy"`, `"mean_squared_error"` or
    `"next_token_cross_entropy"`, or a function of your own, `(outputs, batch) -> [B]`,
    as `path/to/file.py:function` or `module:function`."""
    better: Literal["higher", "lower"]
    """Which values are better."""
    unit: Annotated[str, Field(max_length=20)] = ""
    """The unit, for tables and plots."""


Replacements = Annotated[
    tuple[tuple[Pattern, str], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
    FreeNames(),
]
"""Replacements by pattern; in TOML, a table."""


@configuration
class InitialParameter:
    """The checkpoint that both models start from.

    >>> InitialParameter(path="runs/plain/plain/seed_0", skip=("head/.*",)).rename
    ()
    """

    path: Annotated[str, Field(min_length=1)]
    """An Orbax checkpoint, a folder of a `CheckpointManager` or of a model of a run
    (`"RUN/plain/seed_0"`), a `.safetensors` file or a folder of them, a `.msgpack` file
    of `flax.serialization`, or a hardware-ready checkpoint, relative to the
    configuration's folder; or a function that returns a tree of arrays, as
    `path/to/file.py:function` or `module:function`."""
    rename: Replacements = ()
    """Replacements for paths of arrays by pattern, as `re.sub` takes them; a pattern
    matches the whole path, and each is applied to the result of those before."""
    skip: tuple[Pattern, ...] = ()
    """Patterns for renamed paths of arrays that are not loaded, such as those of a
    head for other classes."""


def _as_table(value: Any) -> Any:
    if isinstance(value, str):
        return {"path": value}
    if not isinstance(value, dict):
        return value
    # Pydantic takes a list for a tuple only where no validator comes before it.
    return {key: tuple(x) if isinstance(x, list) else x for key, x in value.items()}


InitialFrom = Annotated[
    InitialParameter,
    BeforeValidator(_as_table, json_schema_input_type=str | InitialParameter),
]
"""A checkpoint; in TOML, a table or only its path."""

Metrics = Annotated[
    tuple[tuple[MetricName, MetricParameter], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
    FreeNames(),
]
"""Metrics by name; in TOML, a table for each."""


@configuration
class TaskParameter:
    """What both models are trained for, and what they are measured by.

    >>> TaskParameter().loss
    'softmax_cross_entropy'
    """

    loss: Named = "softmax_cross_entropy"
    """The loss: `"softmax_cross_entropy"` or `"mean_squared_error"` of batches
    `(inputs, targets)`, `"next_token_cross_entropy"` of batches of tokens, or a
    function of your own, `(outputs, batch) -> [B]`, as `path/to/file.py:function` or
    `module:function`."""
    metrics: Metrics = ()
    """Metrics by name, the main one first. None: the accuracy for
    `"softmax_cross_entropy"`, the loss for any other one."""
    forward: Source | None = None
    """A function `(apply, batch, train) -> outputs` that calls the model, as `apply`.
    `None`: the model is called with the first of a batch and, if its call has an
    argument `train`, `training` or `deterministic`, with that."""


@configuration
class EarlyStoppingParameter:
    """Keeps the best of several states of a training, and may end it early.

    The hardware-aware model is measured by a metric on chips, in `chip_mode`, the plain
    one without hardware. What is kept is evaluated and exported.

    >>> EarlyStoppingParameter(every=100, patience=5).chips
    8
    """

    every: Size
    """Updates between two measurements."""
    patience: Size | None = None
    """Measurements in a row that bring nothing better, after which the training ends.
    `None`: it never ends early."""
    chips: Chips = 8
    """Number of chips, with the seeds 0, 1, ..."""
    metric: str | None = None
    """Name of the metric. `None`: the main one."""


@configuration
class LogParameter:
    """What is written of a training while it runs.

    Every row has the loss, the norm of the gradient and, for each layer with an input
    range, the mean range and the share of inputs beyond it, of one batch of training
    data. The rows are `log/MODEL/seed_N.csv` in the run's folder.

    >>> LogParameter(every=100).tensorboard
    False
    """

    every: Size = 100
    """Updates between two rows; the first and the last update have one too."""
    tensorboard: bool = False
    """Write for TensorBoard as well, into `log/MODEL/seed_N`; needs `hwtrain[log]`."""
    hook: Source | None = None
    """A function `(model, seed, step, values)` that is told every row, such as one that
    calls `wandb.log`; `model` is a name, and `values` are numbers by name."""


@configuration
class TrainingParameter:
    """How both models are trained.

    >>> TrainingParameter(steps=2000).schedule
    'cosine'
    """

    init_from: InitialFrom | None = None
    """Checkpoint that both models start from, as a table or only its path. What it
    holds beside the weights, such as input ranges, is for the hardware-aware model.
    `None`: each starts from the initial parameters of its seed."""
    seeds: _Seeds = (0,)
    """Training seeds, for initial parameters, order of the data and noise."""
    steps: Size
    """Updates for each model and seed."""
    batch_size: Size = 64
    """Examples in each update, of data in arrays."""
    optimizer: Source = "optax:adam"
    """`module:function` or `file.py:function` that takes the learning rate's schedule,
    a function of the number of updates done, and returns an optax transformation. One
    that ignores its argument also ignores `learning_rate` and `schedule`, which are
    then for input ranges and learned clip bounds only."""
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
    accumulate: Size = 1
    """Equal parts of a batch that pass through the model one after the other, to save
    memory; their gradients are averaged."""
    ema: Annotated[float, Field(lt=1), *at_least(1e-12)] | None = None
    """Decay of a moving average of the parameters, such as 0.999; the average is
    evaluated and exported. `None`: the parameters themselves are."""
    early_stopping: EarlyStoppingParameter | None = None
    """Keeps the best state of a training. `None`: the last one."""
    log: LogParameter | None = None
    """Log of the training. `None`: no log."""
    devices: Size = 1
    """Devices that share the examples of a batch."""


@configuration
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
    mismatch_std: tuple[Deviation, ...] = ()
    """Values of `hardware.mismatch.std_dev`, with one population for each. None: one
    population, of the hardware as it is configured."""
    batch_size: Size = 512
    """Examples evaluated at once, of data in arrays."""


@configuration
class ExportParameter:
    """The export of the trained model.

    >>> ExportParameter().chip_seed
    0
    """

    chip_seed: Seed = 0
    """Seed of the chip that is stored beside the nominal model, with its frozen
    draws: mismatch, programming noise, stuck devices."""


@configuration
class RuleParameter:
    """Hardware of some layers; see `hwtrain.Rule`.

    In a file, a rule has any entries of `[hardware]`, and those that it leaves out are
    taken from there.

    >>> RuleParameter(pattern="head", digital=True).hardware is None
    True
    """

    pattern: Pattern | None = None
    """Regular expression for the paths of layers."""
    params: Pattern | None = None
    """Regular expression for the paths of parameters, instead of `pattern`."""
    rows: int | None = None
    """With `params`, the input axis of the array. `None`: the second to last."""
    columns: int | None = None
    """With `params`, the output axis. `None`: the last."""
    digital: bool = False
    """Keep the layers digital."""
    frozen: bool = False
    """Never train the arrays."""
    hardware: Hardware | None = None
    """Their hardware."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.digital == (self.hardware is not None):
            raise InputError("a rule has either digital = true, or hardware of its own")
        self.rule  # noqa: B018 - raises for arguments that do not fit each other
        return self

    @property
    def rule(self) -> Rule:
        """The rule, as `analogize` takes it."""
        return Rule(
            self.pattern,
            self.hardware,
            params=self.params,
            rows=self.rows,
            columns=self.columns,
            frozen=self.frozen,
        )


def assigned(hardware: Hardware, rules: tuple[RuleParameter, ...]) -> Any:
    """Returns the hardware of all layers, as `analogize` takes it.

    Args:
      hardware: of all layers that no rule matches.
      rules: the rules.
    """
    return (*(rule.rule for rule in rules), hardware) if rules else hardware


def has_deviation(mismatch: Any) -> bool:
    """Whether a mismatch has a field `std_dev`, which the evaluation varies."""
    return any(field.name == "std_dev" for field in dataclasses.fields(mismatch))


@configuration
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
    labels))`: training and test set, inputs `[examples, ...]`, labels `[examples,
    ...]`. Or `(train, evaluation)`: `train(seed, start_step)` returns an iterator of
    batches from that update on, `evaluation()` an iterable of batches; a batch is a
    tree of arrays with the examples first."""
    training: TrainingParameter
    hardware: Hardware = Field(default_factory=Hardware)
    """The chip. `preset` takes one from `hwtrain.presets`, which other entries change;
    a table that is set to `"none"` is left out."""
    rules: tuple[RuleParameter, ...] = ()
    """Layers with other hardware, the first rule that matches counts. A rule has any
    entries of `[hardware]` beside its own."""
    task: TaskParameter = Field(default_factory=TaskParameter)
    parts: tuple[str, ...] = ()
    """Files or modules that register your own parts used in `hardware`:
    `path/to/file.py`, relative to the configuration's folder, or an installed
    module."""
    evaluation: EvaluationParameter = Field(default_factory=EvaluationParameter)
    export: ExportParameter = Field(default_factory=ExportParameter)
    cost: CostParameter | None = None
    """Constants by which energy, latency and area are computed, for `results.json` and
    `hwtrain inspect --cost`. `preset` takes them from `hwtrain.evaluate.technologies`.
    `None`: they are not."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        mismatches = [chip.mismatch for chip in self.chips if chip.mismatch is not None]
        levels = self.evaluation.mismatch_std
        if any(levels) and not mismatches:
            raise InputError(
                "hardware.mismatch: expected a table [hardware.mismatch], because "
                "evaluation.mismatch_std varies its std_dev; got none. Write for "
                'example type = "add_normal" and std_dev = 0.1 in it, or, for chips '
                "without mismatch, leave evaluation.mismatch_std out"
            )
        if any(levels) and not any(has_deviation(each) for each in mismatches):
            raise InputError(
                "evaluation.mismatch_std: expected none, because it varies "
                f"hardware.mismatch.std_dev, and the mismatch {mismatches[0].type!r} "
                f"has no field std_dev; got {list(levels)}. Leave it "
                "out, or name the field of your class std_dev"
            )
        return self

    @property
    def levels(self) -> tuple[float | None, ...]:
        """The standard deviations of the mismatch to evaluate at.

        `None` stands for hardware as it is configured, of no single deviation.
        """
        mismatches = [chip.mismatch for chip in self.chips if chip.mismatch is not None]
        found = {getattr(each, "std_dev", None) for each in mismatches} - {None}
        if found and self.evaluation.mismatch_std:
            return self.evaluation.mismatch_std
        return tuple(found) if len(found) == 1 else (None,)

    @property
    def chips(self) -> tuple[Hardware, ...]:
        """All hardware of the model: that of the rules, and that of other layers."""
        of_rules = (rule.hardware for rule in self.rules)
        return (*(chip for chip in of_rules if chip is not None), self.hardware)

    @property
    def assigned(self) -> Any:
        """The hardware of all layers, as `analogize` takes it."""
        return assigned(self.hardware, self.rules)
