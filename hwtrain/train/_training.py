"""Trains one model from one seed: checkpoints, the best state, an early end."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import CheckpointManager
from rich.console import Console

from hwtrain._arrays.fast_random import fast_prng, threefry_prng
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train._batches import Data
from hwtrain.train._config import TrainingParameter
from hwtrain.train._divergence import diverged
from hwtrain.train._entries import EntryError
from hwtrain.train._log import Logged, open_log
from hwtrain.train._loop import Step, Stop, TrainState, never, run_steps
from hwtrain.train._progress import show_progress
from hwtrain.train._task import Metric


def best_of(where: Path) -> Path:
    """Returns the folder of a training's best state, beside those of all seeds.

    Args:
      where: folder of its newest checkpoints.
    """
    return where.parent / "best" / where.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring:
    """How the best state of a training is found.

    Attributes:
      metric: what is measured.
      measure: measures a state.
    """

    metric: Metric
    measure: Callable[[TrainState], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One model to train.

    Attributes:
      title: label of the progress display.
      parameter: the configuration.
      step: from `make_step`.
      data: the batches.
      measuring: how the best state is found; used with `early_stopping`.
      log: what is logged; `None` for no log.
    """

    title: str
    parameter: TrainingParameter
    step: Step
    data: Data
    measuring: Measuring | None = None
    log: Logged | None = None


def train_seed(
    training: Training,
    state: TrainState,
    seed: int,
    where: Path,
    console: Console,
    stop: Stop = never,
) -> TrainState:
    """Returns the trained state of one seed, continuing from its last checkpoint.

    Args:
      training: what to train.
      state: the state before the first update.
      seed: the training seed.
      where: folder of its checkpoints.
      console: where progress is shown.
      stop: whether to stop; called after each update.

    Raises:
      DivergedError: (a `ValueError`) if a loss or a parameter is NaN or infinite; such
        a state is not saved.
      EntryError: (a `ValueError`) if the data end early or cannot be continued.
      OSError: if a checkpoint cannot be written, naming its folder and the free space.
      KeyboardInterrupt: if `stop` returned true; a checkpoint is saved first.
    """
    stop_if_asked(stop)
    steps, title = training.parameter.steps, training.title
    with checkpoints.open_checkpoints(where) as manager:
        state, saved = checkpoints.restore_latest(manager, state)
        course = _Course(training, where, saved)
        done = int(state.step)
        if done == steps or course.ended:
            _say(console, f"{title}: all {done} steps are done")
            return course.result(state)
        if done:
            _say(console, f"{title}: continuing from step {done}")
            if not training.data.continues:
                raise EntryError(
                    "data",
                    f"{training.data.name}: expected data that can go on at step "
                    f"{done}, got an iterator that begins anew. Let train take (seed, "
                    "start_step), or return an iterator with get_state and set_state; "
                    f"or delete {where} to train this seed anew",
                )
        log: Any = contextlib.nullcontext()
        if training.log is not None:
            out, model = where.parent.parent, where.parent.name
            log = open_log(training.log, out, model, seed, done)
        with log as write:
            state = _train(training, state, seed, manager, course, console, stop, write)
        return course.result(state)


def _train(
    training: Training,
    state: TrainState,
    seed: int,
    manager: CheckpointManager,
    course: "_Course",
    console: Console,
    stop: Stop,
    write: Callable[..., None] | None,
) -> TrainState:
    parameter, title = training.parameter, training.title
    done, steps = int(state.step), parameter.steps
    source = training.data.training(seed, done, course.of_data)
    generator = fast_prng if parameter.generator == "fast" else threefry_prng
    updates = run_steps(
        training.step, state, source, steps=steps, seed=seed, generator=generator
    )
    every = training.log.parameter.every if training.log is not None else 0
    with show_progress(console, title, start=done, steps=steps) as progress:
        for number, (state, loss) in enumerate(updates, start=done + 1):
            shown = progress.report(number, loss)
            asked, measuring = stop(), course.measures(number)
            saving = asked or measuring or number % parameter.checkpoint_every == 0
            saving = saving or number == steps
            # Only these steps wait for the device.
            if saving or not (shown is None or math.isfinite(shown)):
                _require_no_bad(state, manager, title, parameter.learning_rate)
            writing = number == 1 or number == steps or (every and number % every == 0)
            if saving or (writing and write is not None):
                with progress.aside(loss):
                    if measuring:
                        course.measure(number, state)
                    if write is not None and training.log is not None and writing:
                        key = jax.random.key(seed, impl=generator)
                        write(number, training.log.measure(state, key))
                    if saving:
                        checkpoints.save(manager, state, course.saved(source.state()))
            if course.ended:
                _say(console, f"{title}: {course.why_ended}")
                break
            if asked:
                raise KeyboardInterrupt
    return state


class _Course:
    """What a training has measured so far, and the best state."""

    def __init__(self, training: Training, where: Path, saved: dict[str, Any] | None):
        stopping = training.parameter.early_stopping
        self._measuring = training.measuring if stopping is not None else None
        self._every = stopping.every if stopping is not None else 0
        self._patience = stopping.patience if stopping is not None else None
        self._steps = training.parameter.steps
        self._where = best_of(where)
        self.history: list[list[float]] = list((saved or {}).get("measured", []))
        self.of_data = (saved or {}).get("data")

    def measures(self, number: int) -> bool:
        """Whether the state after an update is measured."""
        if self._measuring is None:
            return False
        return number % self._every == 0 or number == self._steps

    def measure(self, number: int, state: TrainState) -> None:
        """Measures a state, and keeps it if it is the best so far."""
        assert self._measuring is not None
        metric, value = self._measuring.metric, self._measuring.measure(state)
        metric.require_finite(value, f"after {number} updates")
        best = self.best
        self.history.append([number, value])
        if best is None or metric.improves(value, best[1]):
            with checkpoints.open_checkpoints(self._where, keep=1) as manager:
                checkpoints.save(manager, state, {}, replace=True)

    @property
    def best(self) -> list[float] | None:
        """The number of updates and the value of the best measurement so far."""
        best = None
        for entry in self.history:
            assert self._measuring is not None
            if best is None or self._measuring.metric.improves(entry[1], best[1]):
                best = entry
        return best

    @property
    def ended(self) -> bool:
        """Whether nothing has become better for too long."""
        best = self.best if self._measuring is not None else None
        if best is None or self._patience is None:
            return False
        since = sum(number > best[0] for number, _ in self.history)
        return since >= self._patience

    @property
    def why_ended(self) -> str:
        """Why the training ended early."""
        best, patience = self.best, self._patience
        assert best is not None and self._measuring is not None
        return (
            f"ends after {self.history[-1][0]:.0f} of {self._steps} steps, because "
            f"{patience} measurements in a row were not better than "
            f"{self._measuring.metric.name} {best[1]:.6g} of step {best[0]:.0f}"
        )

    def saved(self, of_data: Any) -> dict[str, Any]:
        """Returns what a checkpoint holds beside the state."""
        return {"measured": self.history, "data": of_data}

    def result(self, state: TrainState) -> TrainState:
        """Returns the state to evaluate: the best one, if there is a choice."""
        if self._measuring is None or not self.history:
            return state
        with checkpoints.open_checkpoints(self._where, read_only=True) as manager:
            return checkpoints.restore_latest(manager, state)[0]


def _require_no_bad(
    state: TrainState, manager: CheckpointManager, title: str, rate: float
) -> None:
    """Raises a `DivergedError` if the training has diverged."""
    number = int(state.first_bad)
    if number:
        raise diverged(number, title=title, saved=manager.latest_step(), rate=rate)


def stop_if_asked(stop: Stop) -> None:
    """Raises a `KeyboardInterrupt` if the training was asked to stop."""
    if stop():
        raise KeyboardInterrupt


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
