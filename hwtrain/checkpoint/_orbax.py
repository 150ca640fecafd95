"""Hardware-ready checkpoints as items of an Orbax `CheckpointManager`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from hwtrain._arrays.processes import together
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._contents import Contents
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._placing import spans_processes
from hwtrain.checkpoint._reader import HardwareCheckpoint, load
from hwtrain.checkpoint._together import finish_shares, share_of
from hwtrain.checkpoint._variables import all_share


class HardwareCheckpointHandler(ocp.AsyncCheckpointHandler):
    """Writes and reads the item; `HardwareSave` and `HardwareRestore` select it.

    Orbax gives the item its own directory and commits a step as a whole, so that a step
    killed during the write does not count.

    In several processes, a save first sends each layer to the process that writes it:
    this takes collective operations, which would wait for each other without end if a
    thread in the background did them during the next step. Each process then holds its
    share of the layers, and writes it in the background without the others. The first
    process writes the manifest when Orbax finalises the step, which is when all are
    done.
    """

    def __init__(self) -> None:
        self._unfinished: dict[Path, Contents] = {}

    async def async_save(
        self, directory: epath.Path, args: "HardwareSave"
    ) -> list[future.Future]:
        """Copies the model to the host, and returns the futures that write it."""
        write = self._started(Path(directory), args)

        async def commit() -> None:
            write()

        return [future.CommitFutureAwaitingContractedSignals(commit(), name="hardware")]

    def save(self, directory: epath.Path, args: "HardwareSave") -> None:
        """Writes the item and waits for it."""
        self._started(Path(directory), args)()

    def finalize(self, directory: epath.Path) -> None:
        """Writes the manifest of what several processes wrote."""
        contents = self._unfinished.pop(Path(directory), None)
        if contents is not None:
            finish_shares(Path(directory), contents)

    def restore(
        self, directory: epath.Path, args: "HardwareRestore | None" = None
    ) -> HardwareCheckpoint:
        """Reads and verifies the item."""
        sharding = args.sharding if args else None
        # Orbax lets all processes wait for each other after this.
        with together(spans_processes(sharding), HardwareCheckpointError):
            return load(Path(directory), sharding=sharding)

    def _started(self, directory: Path, args: "HardwareSave") -> Callable[[], None]:
        """Copies what this process writes to the host; returns what writes it."""
        with together(all_share(args.variables), HardwareCheckpointError):
            contents = args.contents()
        self._unfinished.clear()  # of a save that failed
        if contents.shared:
            self._unfinished[directory] = contents
            return share_of(contents, directory)
        if jax.process_index() != 0:
            return lambda: None
        items = [item.on_host() for item in contents.items()]
        return lambda: contents.write(directory, items)


@ocp.args.register_with_handler(HardwareCheckpointHandler, for_save=True)
@dataclasses.dataclass
class HardwareSave(ocp.args.CheckpointArgs):
    """Saves a model as a hardware-ready checkpoint, beside the training state.

    In several processes that share the arrays, all of them make it. Each takes its
    share of the layers to its host at `save`, and writes it. What is wrong with a share
    is raised on all.

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
        with together(all_share(self.variables), HardwareCheckpointError):
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

    >>> device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> args = ocp.args.Composite(hardware=HardwareRestore(device))

    Attributes:
      sharding: where the nominal values are put, as for `load`. `None` for the default
        device.
    """

    sharding: Any = None
