"""Exports during training, for loops that only take a callback."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwtrain._arrays.processes import exchanged, together
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._contents import Contents
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._manifest import sha256
from hwtrain.checkpoint._reader import load
from hwtrain.checkpoint._together import require_equal
from hwtrain.checkpoint._variables import all_share
from hwtrain.checkpoint._writer import export


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportHook:
    """Exports a model every `every` steps: call it with the step and the variables.

    In a loop with a `CheckpointManager`, use `HardwareSave` instead. In several
    processes that share the arrays, all of them call it.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> variables = {"params": {"norm": {"scale": jnp.ones(2)}}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hook = ExportHook(directory=folder, plan=Plan(()), every=10)
    ...     exports = [hook(step, variables) for step in range(21)]
    >>> [path.name for path in exports if path]
    ['00000000', '00000010', '00000020']

    Attributes:
      directory: parent directory of the exports, which are named after their steps.
      plan: the plan of the model.
      every: number of steps between exports.
      chip_seeds: seeds of frozen chips to draw and store.
    """

    directory: str | os.PathLike[str]
    plan: Plan
    every: int = 1
    chip_seeds: Sequence[int] = ()

    def __post_init__(self):
        if self.every < 1:
            raise HardwareCheckpointError(
                f"every must be at least 1 step, got {self.every}"
            )

    def __call__(self, step: int, variables: Any) -> Path | None:
        """Exports at every `every`-th step.

        If a run is resumed from an earlier step, an existing export of the step is kept
        if it is of the same model.

        Args:
          step: number of the step.
          variables: nominal values, as for `export`.

        Returns:
          The export's directory; `None` between exports.

        Raises:
          HardwareCheckpointError: as for `export`, or if the export of another model
            exists.
        """
        if step % self.every:
            return None
        path = Path(self.directory) / f"{step:08d}"
        shared = all_share(variables)
        with together(shared, HardwareCheckpointError):
            there = path.exists()
        if shared:
            there = exchanged(there)[0]
        if there:
            self._check_same(path, variables, shared)
            return path
        return export(path, variables, self.plan, chip_seeds=self.chip_seeds)

    def _check_same(self, path: Path, variables: Any, shared: bool) -> None:
        """Raises unless an existing export equals the one that would be written now."""
        other = HardwareCheckpointError(
            f"{path} holds an export of another model, plan or chips; give this run a "
            "directory of its own"
        )
        with together(shared, HardwareCheckpointError):
            found = load(path)
            now = Contents(variables, self.plan, self.chip_seeds)
            stored = {leaf.keys: leaf for leaf in found.manifest.leaves}
            kinds = {keys: leaf.kind for keys, leaf in stored.items()}
            if (found.plan, list(found.chip_seeds)) != (now.plan, now.seeds):
                raise other
            if kinds != {leaf.keys: leaf.kind for leaf in now.leaves}:
                raise other
        if shared:
            require_equal(now, str(path))
        for leaf in now.leaves:
            if leaf.kind != "tensor":
                continue
            entry = stored[leaf.keys]
            tensor = found.manifest.files[entry.file or ""][entry.tensor or ""]
            with together(shared, HardwareCheckpointError):
                if tensor.sha256 != sha256(leaf.array().tobytes()):
                    raise other
