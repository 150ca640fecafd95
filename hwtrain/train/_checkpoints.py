"""Orbax checkpoints of a training run."""

import contextlib
import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._parts.source import reason
from hwtrain.checkpoint._disk import RESUME, writing
from hwtrain.train._functional import ModelState, Params
from hwtrain.train._loop import TrainState


class DamagedCheckpointError(InputError):
    """A run's checkpoint cannot be used; the message says how to continue."""


_STATE, _BESIDE = "state", "beside"
"""Names of the items of a checkpoint."""


class _Saved(NamedTuple):
    """The saved part of a state, which never holds NaN or infinity."""

    step: Any
    params: Params
    model_state: ModelState
    opt_state: optax.OptState
    average: Params | None


@contextmanager
def open_checkpoints(
    folder: Path, *, keep: int = 2, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints of one training run; on exit, waits until all are saved.

    Args:
      folder: their folder; created if it does not exist, unless `read_only`.
      keep: how many of the newest checkpoints are kept.
      read_only: write nothing, so that the run may continue meanwhile.

    Raises:
      OSError: if a checkpoint cannot be written, naming the folder and the free space.
    """
    # Orbax's own read_only warns about every option that it changes.
    options = (
        ocp.CheckpointManagerOptions(create=False)
        if read_only
        else ocp.CheckpointManagerOptions(max_to_keep=keep)
    )
    with no_reports_of_threads():
        if not read_only:
            # After a full disk, unfinished checkpoints still take up space.
            for unfinished in folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(unfinished, ignore_errors=True)
        with writing(folder, RESUME):
            manager = ocp.CheckpointManager(folder.absolute(), options=options)
        try:
            yield manager
        except BaseException:
            # Report the first error, not the ones that it causes on closing.
            with contextlib.suppress(Exception):
                manager.close()
            raise
        with writing(folder, RESUME):
            manager.close()


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    beside: dict[str, Any] | None = None,
    *,
    replace: bool = False,
) -> None:
    """Saves the state under its step, in the background.

    Args:
      manager: from `open_checkpoints`.
      state: the state.
      beside: data to save with it, as JSON holds them.
      replace: replace a checkpoint of the same step, that of a run that was killed.

    Raises:
      OSError: if this checkpoint or the previous one cannot be written.
    """
    # The next update reuses the state's buffers while Orbax is still writing.
    copy, step = _copy(_saved(state)), int(state.step)
    items: dict[str, Any] = {
        _STATE: ocp.args.StandardSave(copy),
        _BESIDE: ocp.args.JsonSave(beside or {}),
    }
    with writing(Path(manager.directory), RESUME):
        if replace and step in manager.all_steps():
            manager.delete(step)
        manager.save(step, args=ocp.args.Composite(**items))


def _saved(state: TrainState) -> _Saved:
    return _Saved(
        state.step, state.params, state.model_state, state.opt_state, state.average
    )


@jax.jit
def _copy(state: _Saved) -> _Saved:
    return jax.tree.map(jnp.copy, state)


@contextmanager
def no_reports_of_threads() -> Iterator[None]:
    """Keeps threads of Orbax and TensorStore from printing tracebacks.

    The error itself is raised where the thread is waited for.
    """
    usual = sys.unraisablehook

    def in_main_thread(error: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            usual(error)

    def keep(record: logging.LogRecord) -> bool:
        return not record.exc_info

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    sys.unraisablehook = in_main_thread
    try:
        yield
    finally:
        sys.unraisablehook = usual
        logger.removeFilter(keep)


def restore_latest(
    manager: ocp.CheckpointManager, state: TrainState
) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns the newest saved state and what was saved beside it.

    If there is none, `state` itself and `None`.

    Args:
      manager: from `open_checkpoints`.
      state: a state of the same structure, shapes and dtypes as the saved ones.

    Raises:
      DamagedCheckpointError: (a `ValueError`) if it cannot be read, or holds a
        parameter that is NaN or infinite.
    """
    step = manager.latest_step()
    if step is None:
        return state, None
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved(state))
    folder = manager.directory / str(step)
    earlier = [other for other in manager.all_steps() if other < step]
    start = f"from step {max(earlier)}" if earlier else "anew"
    way_out = f"delete this folder to continue {start} with --resume"
    try:
        args: dict[str, Any] = {
            _STATE: ocp.args.StandardRestore(target),
            _BESIDE: ocp.args.JsonRestore(),
        }
        found = manager.restore(step, args=ocp.args.Composite(**args))
        restored: Any = found[_STATE]
    # Orbax and TensorStore raise errors of many types, including KeyError.
    except Exception as error:
        raise DamagedCheckpointError(
            f"{folder}: expected the checkpoint of step {step}, got a damaged one or "
            f"one of another model ({reason(error)}); {way_out}"
        ) from error
    try:
        paths.require_finite(restored.params)
    except ValueError as error:
        raise DamagedCheckpointError(f"{folder}: {error}; {way_out}") from error
    none = jnp.zeros((), jnp.int32)
    return TrainState(*restored, first_bad=none), found[_BESIDE]
