"""Orbax checkpoints of a training run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from hwtrain.training.loop import TrainState
from hwtrain.training.source import reason


class DamagedCheckpointError(ValueError):
    """A checkpoint of a run cannot be read; the message says how to go on."""


@contextmanager
def open_checkpoints(
    folder: Path, *, keep: int = 2, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints of one training run; on leaving, waits until all is saved.

    Args:
      folder: where they lie; made if it does not exist and is not only read.
      keep: number of checkpoints kept, the newest ones.
      read_only: whether nothing is written, so that the run may go on meanwhile.
    """
    # Not Orbax's own read_only, which warns of every option that it changes.
    options = (
        ocp.CheckpointManagerOptions(create=False)
        if read_only
        else ocp.CheckpointManagerOptions(max_to_keep=keep)
    )
    manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        yield manager
    finally:
        manager.close()


def save(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Saves the state under its step, in the background."""
    # The next update takes the state's buffers, while Orbax is still writing.
    copy = _copy(state)
    manager.save(int(state.step), args=ocp.args.StandardSave(copy))


@jax.jit
def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def restore_latest(manager: ocp.CheckpointManager, state: TrainState) -> TrainState:
    """Returns the newest saved state, or `state` itself if none was saved.

    Args:
      manager: from `open_checkpoints`.
      state: a state of the structure, shapes and dtypes that were saved.

    Raises:
      DamagedCheckpointError: (a `ValueError`) if it cannot be read.
    """
    step = manager.latest_step()
    if step is None:
        return state
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    try:
        restored: Any = manager.restore(step, args=ocp.args.StandardRestore(target))
    # Orbax and TensorStore raise errors of many types, KeyError among them.
    except Exception as error:
        folder = manager.directory / str(step)
        earlier = [other for other in manager.all_steps() if other < step]
        start = f"from step {max(earlier)}" if earlier else "anew"
        raise DamagedCheckpointError(
            f"{folder}: expected the checkpoint of step {step}, got a damaged one or "
            f"one of another model ({reason(error)}); delete this folder to continue "
            f"{start} with --resume"
        ) from error
    return restored
