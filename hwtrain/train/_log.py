"""The log of a training: its numbers over the updates, as files or for a hook."""

import contextlib
import csv
import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hwtrain._arrays import paths
from hwtrain._arrays.random import fold_in
from hwtrain._flax.strength import noise_strength
from hwtrain._parts.source import resolve
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._disk import RESUME, complete, writing
from hwtrain.periphery.input_range import PROBE, RANGE
from hwtrain.train._batches import Data
from hwtrain.train._config import LogParameter, TrainingParameter
from hwtrain.train._entries import EntryError, named
from hwtrain.train._functional import Functional, Params
from hwtrain.train._loop import TrainState
from hwtrain.train._task import Values

LOG_FOLDER = "log"
_STEP = "step"

Hook = Callable[[str, int, int, Mapping[str, float]], Any]
"""`(model, seed, step, values)`."""


class Logged(NamedTuple):
    """What is logged of a model's trainings.

    Attributes:
      parameter: the configuration.
      measure: `(state, key) -> values`, by name.
      hook: a function of the user's that is told every row; `None` for none.
    """

    parameter: LogParameter
    measure: Callable[[TrainState, jax.Array], dict[str, jax.Array]]
    hook: Hook | None = None


def logged(
    training: TrainingParameter,
    model: Functional,
    loss: Values,
    data: Data,
    folder: Path,
    *,
    plan: Plan | None = None,
    strength: Callable[[jax.Array], Any] | None = None,
) -> Logged | None:
    """Returns what is logged of a model's trainings; `None` if nothing is.

    It is measured on one batch, the first of the calibration, beside the updates, which
    are the same with and without a log.

    Args:
      training: the training configuration.
      model: the model.
      loss: `(outputs, batch) -> [B]`.
      data: the batches.
      folder: the folder that relative paths refer to.
      plan: the plan of an analog model; `None` for a plain one.
      strength: the strength of the noise, as for `make_step`.

    Raises:
      EntryError: (a `ValueError`) for a hook that there is not, or no TensorBoard.
    """
    parameter = training.log
    if parameter is None:
        return None
    if parameter.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise EntryError(
            "training.log.tensorboard",
            "expected tensorboardX, which is not installed: pip install 'hwtrain[log]'",
        )
    hook = None
    if parameter.hook is not None:
        with named("training.log.hook"):
            hook = resolve(parameter.hook, folder)
    batch = next(iter(data.calibration()))
    ranged = [w for w in plan.weights if w.ranged] if plan is not None else []

    @jax.jit
    def measured(state: TrainState, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        def mean_loss(params: Params) -> jax.Array:
            step_key = fold_in(key, state.step)
            outputs, _ = model.apply(params, state.model_state, batch, step_key)
            return loss(outputs, batch).mean()

        scaled = contextlib.nullcontext()
        if strength is not None:
            scaled = noise_strength(strength(state.step))
        with scaled:
            value, gradients = jax.value_and_grad(mean_loss)(state.params)
        found = {"loss": value}
        values, slopes = paths.leaves(state.params), paths.leaves(gradients)
        for weight in ranged:
            layer = weight.layer_path or weight.path
            if weight.leaf(PROBE) not in slopes:
                continue  # a range that is taken from each input is not learned
            probe = slopes.pop(weight.leaf(PROBE))
            sums = probe.reshape(-1, probe.shape[-1]).sum(axis=0)
            slopes.pop(weight.leaf(RANGE), None)
            found[f"{layer}/input_range"] = values[weight.leaf(RANGE)].mean()
            found[f"{layer}/clipped_share"] = 1 - sums[1] / jnp.maximum(
                sums[0], jnp.finfo(sums.dtype).tiny
            )
        found["gradient_norm"] = optax.tree.norm(slopes)
        return found

    return Logged(parameter, lambda state, key: measured(state, batch, key), hook)


@contextlib.contextmanager
def open_log(
    what: Logged, out: Path, model: str, seed: int, done: int
) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Yields a function `(step, values)` that logs a row.

    A log that is continued loses the rows after the last checkpoint, which are then
    written again.

    Args:
      what: what is logged.
      out: the run's folder.
      model: the model's name.
      seed: the training seed.
      done: number of updates done before.
    """
    place = out / LOG_FOLDER / model.replace(" ", "-")
    writers: list[Callable[[int, Mapping[str, float]], None]] = []
    with contextlib.ExitStack() as stack:
        with writing(place, RESUME):
            place.mkdir(parents=True, exist_ok=True)
        writers.append(_Table(place / f"seed_{seed}.csv", done).write)
        if what.parameter.tensorboard:
            from tensorboardX import SummaryWriter

            events = SummaryWriter(
                str(place / f"seed_{seed}"), purge_step=done + 1 if done else None
            )
            stack.callback(events.close)

            def to_tensorboard(step: int, values: Mapping[str, float]) -> None:
                for name, value in values.items():
                    events.add_scalar(name, value, step)

            writers.append(to_tensorboard)
        if what.hook is not None:
            hook = what.hook

            def to_hook(step: int, values: Mapping[str, float]) -> None:
                with named("training.log.hook", str(what.parameter.hook)):
                    hook(model, seed, step, values)

            writers.append(to_hook)

        def write(step: int, values: Mapping[str, Any]) -> None:
            numbers = {name: float(value) for name, value in values.items()}
            for writer in writers:
                writer(step, numbers)

        yield write


class _Table:
    """A CSV file with a row for each step; a killed run leaves no broken file."""

    def __init__(self, path: Path, done: int):
        self._path = path
        rows = [row for row in read_log(path) if row[_STEP] <= done] if done else []
        self._rows = rows

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._rows.append({_STEP: step, **values})
        text = io.StringIO()
        table = csv.DictWriter(text, list(self._rows[0]), lineterminator="\n")
        table.writeheader()
        for row in self._rows:
            numbers = {name: f"{value:.6g}" for name, value in row.items()}
            table.writerow(numbers | {_STEP: f"{row[_STEP]:.0f}"})
        with complete(self._path, RESUME) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")


def read_log(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a log, without those that cannot be read.

    Args:
      path: the CSV file; without one, there are no rows.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for row in csv.DictReader(lines):
        with contextlib.suppress(TypeError, ValueError):
            rows.append({name: float(value) for name, value in row.items()})
    return rows
