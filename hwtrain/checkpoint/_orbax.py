"""The hardware-ready checkpoint as one item of an Orbax `CheckpointManager`."""

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

    Orbax gives the item a directory of its own and commits a step as a whole, so that
    a step killed while it is written is no step.
    """

    async def async_save(
        self, directory: epath.Path, args: "HardwareSave"
    ) -> list[future.Future]:
        """Copies the model to the host, and returns what writes it."""
        contents = args.contents()
        contents.copy_to_host()

        async def commit() -> None:
            _write(contents, Path(directory))

        return [future.CommitFutureAwaitingContractedSignals(commit(), name="hardware")]

    def save(self, directory: epath.Path, args: "HardwareSave") -> None:
        """Writes the item and waits."""
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
      variables: nominal values, as `export` takes them.
      plan: the plan of the model.
      chip_seeds: seeds of frozen chips to draw and store.

    Raises:
      HardwareCheckpointError: as `export`: on construction, but for what concerns the
        values. That is raised by `save`, or by an asynchronous manager's
        `wait_until_finished`.
    """

    variables: Any
    plan: Plan
    chip_seeds: Sequence[int] = ()

    def __post_init__(self):
        # Here, because an error in the handler would leave the threads of the other
        # items waiting for a directory that Orbax never makes.
        self.contents()

    def contents(self) -> Contents:
        """Returns what the item will hold."""
        return Contents(self.variables, self.plan, self.chip_seeds)


@ocp.args.register_with_handler(HardwareCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class HardwareRestore(ocp.args.CheckpointArgs):
    """Restores a `HardwareCheckpoint`, verified; it needs no target.

    Its conductances and chips are read from the step's directory when asked for, which
    must not have been deleted by then.
    """
