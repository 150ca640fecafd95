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
from hwtrain._parts.source import reason
from hwtrain.checkpoint._disk import RESUME, writing
from hwtrain.train._functional import Params
from hwtrain.train._loop import TrainState


class DamagedCheckpointError(ValueError):
    """A checkpoint of a run cannot be used; the message says how to go on."""


class _Saved(NamedTuple):
    """What is saved of a state, which is always one without NaN and infinities."""

    step: Any
    params: Params
    opt_state: optax.OptState


@contextmanager
def open_checkpoints(
    folder: Path, *, keep: int = 2, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints of one training run; on leaving, waits until all is saved.

    Args:
      folder: where they lie; made if it does not exist and is not only read.
      keep: number of checkpoints kept, the newest ones.
      read_only: whether nothing is written, so that the run may go on meanwhile.

    Raises:
      OSError: if one cannot be written, naming the folder and the free space.
    """
    # Not Orbax's own read_only, which warns of every option that it changes.
    options = (
        ocp.CheckpointManagerOptions(create=False)
        if read_only
        else ocp.CheckpointManagerOptions(max_to_keep=keep)
    )
    with _no_reports_of_threads():
        if not read_only:
            # Where a disk was full, they keep the space that is needed.
            for unfinished in folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(unfinished, ignore_errors=True)
        with writing(folder, RESUME):
            manager = ocp.CheckpointManager(folder.absolute(), options=options)
        try:
            yield manager
        except BaseException:
            # What went wrong first is told, not what goes wrong because of it.
            with contextlib.suppress(Exception):
                manager.close()
            raise
        with writing(folder, RESUME):
            manager.close()


def save(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Saves the state under its step, in the background.

    Raises:
      OSError: if this one or the one before cannot be written.
    """
    # The next update takes the state's buffers, while Orbax is still writing.
    copy = _copy(_saved(state))
    with writing(Path(manager.directory), RESUME):
        manager.save(int(state.step), args=ocp.args.StandardSave(copy))


def _saved(state: TrainState) -> _Saved:
    return _Saved(state.step, state.params, state.opt_state)


@jax.jit
def _copy(state: _Saved) -> _Saved:
    return jax.tree.map(jnp.copy, state)


@contextmanager
def _no_reports_of_threads() -> Iterator[None]:
    """Keeps the threads of Orbax and TensorStore from printing tracebacks.

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


def restore_latest(manager: ocp.CheckpointManager, state: TrainState) -> TrainState:
    """Returns the newest saved state, or `state` itself if none was saved.

    Args:
      manager: from `open_checkpoints`.
      state: a state of the structure, shapes and dtypes that were saved.

    Raises:
      DamagedCheckpointError: (a `ValueError`) if it cannot be read, or holds a
        parameter that is NaN or infinite.
    """
    step = manager.latest_step()
    if step is None:
        return state
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved(state))
    folder = manager.directory / str(step)
    earlier = [other for other in manager.all_steps() if other < step]
    start = f"from step {max(earlier)}" if earlier else "anew"
    way_out = f"delete this folder to continue {start} with --resume"
    try:
        restored: Any = manager.restore(step, args=ocp.args.StandardRestore(target))
    # Orbax and TensorStore raise errors of many types, KeyError among them.
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
    return TrainState(restored.step, restored.params, restored.opt_state, none)
