"""Hardware-ready checkpoints as items of an Orbax `CheckpointManager`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._contents import Contents
from hwtrain.checkpoint._reader import HardwareCheckpoint, load


class HardwareCheckpointHandler(ocp.AsyncCheckpointHandler):
    """Writes and reads the item; `HardwareSave` and `HardwareRestore` select it.

    Orbax gives the item its own directory and commits a step as a whole, so that a step
    killed during the write does not count.
    """

    async def async_save(
        self, directory: epath.Path, args: "HardwareSave"
    ) -> list[future.Future]:
        """Copies the model to the host, and returns the futures that write it."""
        contents = args.contents()
        contents.copy_to_host()

        async def commit() -> None:
            _write(contents, Path(directory))

        return [future.CommitFutureAwaitingContractedSignals(commit(), name="hardware")]

    def save(self, directory: epath.Path, args: "HardwareSave") -> None:
        """Writes the item and waits for it."""
        _write(args.contents(), Path(directory))

    def restore(
        self, directory: epath.Path, args: "HardwareRestore | None" = None
    ) -> HardwareCheckpoint:
        """Reads and verifies the item."""
        return load(Path(directory))


def _write(contents: Contents, directory: Path) -> None:
    if jax.process_index() == 0:
        contents.write(directory)


@ocp.args.register_with_handler(HardwareCheckpointHandler, for_save=True)
@dataclasses.dataclass
class HardwareSave(ocp.args.CheckpointArgs):
    """Saves a model as a hardware-ready checkpoint, beside the training state.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> params = {"norm": {"scale": jnp.ones(2)}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ocp.CheckpointManager(folder) as manager:
    ...         args = ocp.args.Composite(
    ...             state=ocp.args.StandardSave(params),
    ...             hardware=HardwareSave({"params": params}, Plan(())))
    ...         saved = manager.save(0, args=args)
    ...         manager.wait_until_finished()
    ...         args = ocp.args.Composite(hardware=HardwareRestore())
    ...         checkpoint = manager.restore(0, args=args)["hardware"]
    >>> checkpoint.params
    {'norm': {'scale': Array([1., 1.], dtype=float32)}}

    Attributes:
      variables: nominal values, as for `export`.
      plan: the plan of the model.
      chip_seeds: seeds of frozen chips to draw and store.

    Raises:
      HardwareCheckpointError: as for `export`. Errors in values are raised by `save`,
        or by an asynchronous manager's `wait_until_finished`; all others on
        construction.
    """

    variables: Any
    plan: Plan
    chip_seeds: Sequence[int] = ()

    def __post_init__(self):
        # Checked here, because an error in the handler would leave the threads of the
        # other items waiting for a directory that Orbax never creates.
        self.contents()

    def contents(self) -> Contents:
        """Returns the contents of the item."""
        return Contents(self.variables, self.plan, self.chip_seeds)


@ocp.args.register_with_handler(HardwareCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class HardwareRestore(ocp.args.CheckpointArgs):
    """Restores and verifies a `HardwareCheckpoint`; it needs no target.

    Its conductances and chips are read from the step's directory on demand, which must
    still exist then.
    """
