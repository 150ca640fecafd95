"""Exports during training, for loops that only take a callback."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwtrain._arrays.processes import exchanged, together
from hwtrain._arrays.shared import is_shared
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._contents import Contents
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._manifest import sha256
from hwtrain.checkpoint._reader import load
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
        there = path.exists()
        if is_shared(variables):
            there = exchanged(there)[0]
        if there:
            self._check_same(path, variables)
            return path
        return export(path, variables, self.plan, chip_seeds=self.chip_seeds)

    def _check_same(self, path: Path, variables: Any) -> None:
        """Raises unless an existing export equals the one that would be written now."""
        with together(is_shared(variables), HardwareCheckpointError):
            found = load(path)
        now = Contents(variables, self.plan, self.chip_seeds)
        stored = {leaf.keys: leaf for leaf in found.manifest.leaves}
        same = (found.plan, list(found.chip_seeds)) == (now.plan, now.seeds)
        same = same and stored.keys() == {leaf.keys for leaf in now.leaves}
        for leaf in now.leaves if same else ():
            entry = stored[leaf.keys]
            if entry.kind == "tensor" == leaf.kind:
                tensor = found.manifest.files[entry.file or ""][entry.tensor or ""]
                same = same and tensor.sha256 == sha256(leaf.array().tobytes())
        if not same:
            raise HardwareCheckpointError(
                f"{path} holds an export of another model, plan or chips; give this "
                "run a directory of its own"
            )
