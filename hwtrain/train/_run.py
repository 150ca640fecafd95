"""Reopens the run in a folder: its models, data and trained parameters."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from hwtrain import evaluate
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train._comparison import accuracy, batches
from hwtrain.train._config import Config
from hwtrain.train._entries import EntryError
from hwtrain.train._folder import CONFIG_FILE, moved, read_run
from hwtrain.train._functional import Params
from hwtrain.train._loop import init_state
from hwtrain.train._preparation import Preparation, prepare
from hwtrain.train._reading import located
from hwtrain.train._report import HARDWARE_AWARE


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

    def trained(self, seed: int) -> tuple[int, Params]:
        """Returns the newest checkpoint of the hardware-aware model.

        Args:
          seed: the training seed.

        Returns:
          The number of updates done, and the parameters.

        Raises:
          ValueError: if the run has no such seed, or has not saved a checkpoint yet.
        """
        if seed not in self.config.training.seeds:
            raise ValueError(
                f"{self.folder}: the training seeds of this run are "
                f"{', '.join(map(str, self.config.training.seeds))}, got {seed}"
            )
        where = self.folder / HARDWARE_AWARE / f"seed_{seed}"
        start = init_state(self.ready.aware.init(seed), self.ready.aware_optimizer)
        step = 0
        if where.is_dir():
            with checkpoints.open_checkpoints(where, read_only=True) as manager:
                start = checkpoints.restore_latest(manager, start)
                step = int(start.step)
        if not step:
            raise ValueError(
                f"{where}: expected a checkpoint of the hardware-aware model, got "
                "none; let the run go on until it has saved one: hwtrain train "
                "CONFIG --resume"
            )
        return step, start.params

    def on_chips(self, params: Params) -> tuple[Any, Any]:
        """Returns the hardware-aware model in `chip_mode`, and its variables."""
        ready = self.ready
        return ready.frontend.on_chip(ready.factory, self.config.hardware, params)

    def test_batches(self) -> list[Any]:
        """Returns the test set in batches for `evaluate.population`."""
        return list(batches(self.ready.test, self.config.evaluation.batch_size))

    def population(
        self,
        params: Params,
        *,
        chips: int | Sequence[int],
        times_s: Sequence[float] | None = None,
    ) -> evaluate.Population:
        """Returns the accuracy in % on the test set for chips with their own mismatch.

        Args:
          params: parameters of the hardware-aware model.
          chips: number of chips, or their seeds.
          times_s: seconds since programming; `None` for just after it.
        """
        analog, variables = self.on_chips(params)
        return evaluate.population(
            analog,
            variables,
            self.test_batches(),
            accuracy,
            chips=chips,
            times_s=times_s,
            key=jax.random.key(self.config.evaluation.seed),
        )

    def sensitivity(
        self, params: Params, *, chips: int | Sequence[int], t_s: float | None = None
    ) -> evaluate.Sensitivity:
        """Returns the accuracy in % with one layer, or all but one, from a chip.

        Args:
          params: parameters of the hardware-aware model.
          chips: number of chips, or their seeds.
          t_s: seconds since programming; `None` for just after it.
        """
        analog, variables = self.on_chips(params)
        return evaluate.sensitivity(
            analog,
            variables,
            self.test_batches(),
            accuracy,
            chips=chips,
            t_s=t_s,
            key=jax.random.key(self.config.evaluation.seed),
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
        ready = prepare(config, source)
    except EntryError as error:
        place = located(error, folder / CONFIG_FILE)
        raise ValueError(f"{place}{moved(error, folder)}") from error
    return Run(folder=folder, config=config, ready=ready)
