"""Writes a hardware-ready checkpoint."""

import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors

from hwtrain.checkpoint.contents import Contents
from hwtrain.checkpoint.errors import HardwareCheckpointError
from hwtrain.checkpoint.manifest import sync
from hwtrain.checkpoint.progress import Report
from hwtrain.plan import Plan


def export(
    path: str | os.PathLike[str],
    variables: Any,
    plan: Plan,
    *,
    chip_seed: int | None = None,
    chip_seeds: Iterable[int] = (),
    report: Report | None = None,
) -> Path:
    r"""Writes a model as a checkpoint that a chip can be programmed from.

    .. math:: g^\pm = g_\text{min} + \max(\pm k w, 0), \qquad w = W / s

    The directory is complete or not there: it is written beside `path` under a hidden
    name and then renamed. `docs/checkpoint.md` describes the format.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from hwtrain.plan import AnalogWeight, Plan
    >>> from hwtrain.hardware import Hardware, SinglePairConductanceConverter
    >>> weight = AnalogWeight(
    ...     path="dense/kernel", kind="dense", layer="Dense", shape=(1, 2), rows=(0,),
    ...     columns=(1,), rule="", ranged=False,
    ...     hardware=Hardware(converter=SinglePairConductanceConverter(g_max=25.0)))
    >>> params = {"dense": {"kernel": jnp.array([[0.5, -1.0]])}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = export(f"{folder}/chip", params, Plan((weight,)))
    ...     sorted(str(file.relative_to(path)) for file in path.rglob("*.*"))
    ['manifest.json', 'tensors/0000.safetensors']

    Args:
      path: where the checkpoint shall be; must not exist.
      variables: nominal values: collections as Linen has them, or the tree of
        parameters alone, or an `nnx.State` or its pure dict.
      plan: the plan of the model.
      chip_seed: seed of a chip whose frozen mismatch is drawn and stored beside the
        nominal values. `None` for none.
      chip_seeds: more of them.
      report: is called with the number of layers that are written, and of all, such as
        that of `show_progress`. `None` for none.

    Returns:
      `path`.

    Raises:
      HardwareCheckpointError: (a `ValueError`) if something lies at `path`, the plan
        does not fit the parameters, a weight is not finite, a chip has nothing frozen,
        or the disk is full. Nothing is left behind.
    """
    seeds = [*chip_seeds] if chip_seed is None else [chip_seed, *chip_seeds]
    destination = Path(path)
    check_free(destination)
    partial = destination.with_name(
        f".{destination.name}.{secrets.token_hex(4)}.partial"
    )
    contents = Contents(variables, plan, seeds)
    try:
        partial.mkdir(parents=True)
        contents.write(partial, report)
        if os.path.lexists(destination):
            raise FileExistsError(f"{destination} appeared meanwhile")
        partial.rename(destination)
        sync(destination.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise HardwareCheckpointError(
            f"{destination} could not be written: {error}. Nothing was left behind; "
            "check free space and permissions, and export again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def check_free(path: Path) -> None:
    """Raises if something lies where a checkpoint shall be written."""
    if os.path.lexists(path):
        raise HardwareCheckpointError(
            f"{path} exists and is never overwritten; choose another path, or "
            "remove it first"
        )
