"""Converts hardware-ready checkpoints to the files of other programs.

`docs/deployment.md` lists the files of each target, their units, and what is lost.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from hwtrain._parts.registry import named, register
from hwtrain.checkpoint._reader import HardwareCheckpoint
from hwtrain.checkpoint.adapters._aihwkit import to_aihwkit as to_aihwkit
from hwtrain.checkpoint.adapters._crosssim import to_crosssim as to_crosssim
from hwtrain.checkpoint.adapters._fusion_csv import to_fusion_csv as to_fusion_csv
from hwtrain.checkpoint.adapters._nir import from_nir as from_nir
from hwtrain.checkpoint.adapters._nir import to_nir as to_nir
from hwtrain.checkpoint.adapters._npz import to_npz as to_npz


class Adapter(Protocol):
    """Writes a checkpoint for one target. It never overwrites anything."""

    def __call__(
        self, checkpoint: HardwareCheckpoint, out: Path, *, chip: int | None = None
    ) -> None:
        """Writes a checkpoint.

        Args:
          checkpoint: from `hwtrain.load`.
          out: the file or directory to write; must not exist.
          chip: the seed of a frozen chip; `None` for the nominal model.

        Raises:
          HardwareCheckpointError: (a `ValueError`) if the target cannot express the
            checkpoint, or it cannot be written. Nothing is left behind.
        """
        ...


ADAPTERS: Mapping[str, Adapter] = {
    "aihwkit": to_aihwkit,
    "crosssim": to_crosssim,
    "fusion-csv": to_fusion_csv,
    "nir": to_nir,
    "npz": to_npz,
}
"""The built-in adapters, by the name of their target."""

for _name, _adapter in ADAPTERS.items():
    register("adapter", _name)(_adapter)


def adapter(name: str) -> Adapter:
    """Returns the adapter of a target, as named in `hwtrain convert --to`.

    Args:
      name: a built-in target, or one registered as an `"adapter"`.

    Raises:
      ValueError: if the name is not registered.
    """
    return named("adapter", name)
