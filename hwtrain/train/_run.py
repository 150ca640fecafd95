"""Reopens the run in a folder: its models, data and trained parameters."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from hwtrain import evaluate
from hwtrain._errors import InputError
from hwtrain.evaluate._on_chips import can_be_constants
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train._comparison import deployed, on_population, start
from hwtrain.train._config import Config
from hwtrain.train._entries import EntryError
from hwtrain.train._folder import CONFIG_FILE, moved, read_run
from hwtrain.train._loop import TrainState
from hwtrain.train._preparation import Preparation, prepare
from hwtrain.train._reading import located
from hwtrain.train._report import HARDWARE_AWARE, PLAIN
from hwtrain.train._task import Metric
from hwtrain.train._training import best_of
from hwtrain.train._variants import (
    Varied,
    combinations,
    require_effect,
    with_entries,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run of `hwtrain train`; its folder is never changed.

    Attributes:
      folder: its folder.
      config: its configuration.
      ready: its models and data.
    """

    folder: Path
    config: Config
    ready: Preparation

    def trained(self, seed: int, name: str = HARDWARE_AWARE) -> TrainState:
        """Returns the newest checkpoint of a model, or the best one.

        Args:
          seed: the training seed.
          name: which model.

        Returns:
          The state, with the number of updates done.

        Raises:
          ValueError: if the run has no such seed, or has not saved a checkpoint yet.
        """
        if seed not in self.config.training.seeds:
            raise InputError(
                f"{self.folder}: the training seeds of this run are "
                f"{', '.join(map(str, self.config.training.seeds))}, got {seed}"
            )
        where = self.folder / name / f"seed_{seed}"
        state = start(self.config, self.ready, name, seed)
        for folder in (best_of(where), where):
            if folder.is_dir():
                with checkpoints.open_checkpoints(folder, read_only=True) as manager:
                    state, _ = checkpoints.restore_latest(manager, state)
            if int(state.step):
                return state
        raise InputError(
            f"{where}: expected a checkpoint of the {name} model, got none; let the "
            "run go on until it has saved one: hwtrain train CONFIG --resume"
        )

    def plain_on_chips(self, seed: int) -> tuple[dict[str, Any], int]:
        """Returns the plain model's variables on the chip, and the updates done.

        Its input ranges are calibrated on the training data, as for `results.json`.

        Args:
          seed: the training seed.
        """
        state, quiet = self.trained(seed, PLAIN), Console(quiet=True)
        variables = deployed(self.config, self.ready, state, seed, quiet)
        return variables, int(state.step)

    def on_chips(self) -> Any:
        """Returns the hardware-aware model in `chip_mode`."""
        return self.ready.frontend.on_chip(self.ready.factory, self.config.assigned)

    def test_batches(self) -> Iterator[tuple[Any, Any]]:
        """Yields the test set in batches for `evaluate.population`.

        Each is a pair of one batch: for the model, and for the metric.
        """
        return ((batch, batch) for batch in self.ready.data.evaluation())

    @property
    def metric(self) -> Metric:
        """The main metric."""
        return self.ready.task.metrics[0]

    def population(
        self,
        variables: dict[str, Any],
        *,
        chips: int | Sequence[int],
        times_s: Sequence[float] | None = None,
        hardware: Any = None,
        metric: Metric | None = None,
        constants: Mapping[str, Sequence[float]] | None = None,
        until: float | None = None,
    ) -> evaluate.Population:
        """Returns the main metric on the test set for chips with their own mismatch.

        Args:
          variables: variables of the hardware-aware model.
          chips: number of chips, or their seeds.
          times_s: seconds since programming; `None` for just after it.
          hardware: the hardware of all layers; `None` for that of the run.
          metric: what is measured; `None` for the main metric.
          constants: see `evaluate.population`.
          until: see `evaluate.population`.
        """
        config, ready = self.config, self.ready
        metric = self.metric if metric is None else metric
        task = ready.task._replace(metrics=(metric,))
        found = on_population(
            config,
            ready,
            task,
            config.assigned if hardware is None else hardware,
            variables,
            chips=chips,
            times_s=times_s,
            constants=constants,
            until=until,
        )
        return found[metric.name]

    def study(
        self,
        variables: dict[str, Any],
        varied: Varied,
        *,
        chips: int | Sequence[int],
        times_s: Sequence[float] | None = None,
        metric: Metric | None = None,
        until: float | None = None,
    ) -> evaluate.Study:
        """Returns a metric on chips of other hardware, for all combinations.

        Numbers that can be traced share one program (`evaluate.population` with
        `constants`); each combination of all others is a program of its own.

        Args:
          variables: variables of the hardware-aware model.
          varied: values by key, as `with_entries` takes them.
          chips: number of chips, or their seeds.
          times_s: seconds since programming; `None` for just after it.
          metric: what is measured; `None` for the main metric.
          until: see `evaluate.population`.

        Raises:
          ValueError: one line, for a key or a value that does not fit.
        """
        plan, option = self.ready.plan.effective, "--vary"
        traced = {
            key: values
            for key, values in varied.items()
            if can_be_constants(plan, {key: values})
        }
        settings = combinations(traced)
        constants = {key: [one[key] for one in settings] for key in traced}
        others = {key: values for key, values in varied.items() if key not in traced}
        found = []
        for entries in combinations(others):
            config = with_entries(self.config, entries, option)
            for key in entries:
                require_effect(config, key, option)
            population = self.population(
                variables,
                chips=chips,
                times_s=times_s,
                hardware=config.assigned,
                metric=metric,
                constants=constants or None,
                until=until,
            )
            found.append((entries, population))
        return evaluate.Study(found)

    def sensitivity(
        self,
        variables: dict[str, Any],
        *,
        chips: int | Sequence[int],
        t_s: float | None = None,
        metric: Metric | None = None,
    ) -> evaluate.Sensitivity:
        """Returns a metric with one layer, or all but one, from a chip.

        Args:
          variables: variables of the hardware-aware model.
          chips: number of chips, or their seeds.
          t_s: seconds since programming; `None` for just after it.
          metric: what is measured; `None` for the main metric.
        """
        return evaluate.sensitivity(
            self.on_chips(),
            variables,
            self.test_batches(),
            (self.metric if metric is None else metric).function,
            chips=chips,
            t_s=t_s,
            forward=self.ready.task.on_chip,
            key=jax.random.key(self.config.evaluation.seed),
            better=(self.metric if metric is None else metric).better,
        )


def open_run(folder: Path) -> Run:
    """Opens the run in a folder.

    Args:
      folder: a folder that `hwtrain train` wrote.

    Raises:
      ValueError: if it holds no run, or something its configuration names is gone.
    """
    config, source = read_run(folder)
    try:
        ready = prepare(config, source, folder)
    except EntryError as error:
        place = located(error, folder / CONFIG_FILE)
        raise InputError(f"{place}{moved(error, folder)}") from error
    return Run(folder=folder, config=config, ready=ready)
