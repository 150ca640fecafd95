"""What the adapters write: the arrays of a checkpoint, in NumPy."""

import dataclasses
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain import paths
from hwtrain.checkpoint.reader import HardwareCheckpoint
from hwtrain.checkpoint.tiles import Place, Tile, grid
from hwtrain.plan import AnalogWeight


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """An analog weight of a checkpoint and what lies beside it, of one chip.

    Attributes:
      weight: its plan.
      kernel: its weights, float32, shaped as stored, in the unit of the model.
      bias: the digital bias, or `None`.
      input_range: range of each row tile's inputs `[*stack, row tiles]`, or `None`.
      crossbars: its tiles by their place; none without a converter.
    """

    weight: AnalogWeight
    kernel: np.ndarray
    bias: np.ndarray | None
    input_range: np.ndarray | None
    crossbars: tuple[tuple[Place, Tile], ...]

    @property
    def matrix(self) -> np.ndarray:
        """The weights as `[*stack, rows, columns]`: rows are inputs."""
        return np.asarray(self.weight.to_matrix(jnp.asarray(self.kernel)))


def layers(checkpoint: HardwareCheckpoint, chip: int | None = None) -> Iterator[Layer]:
    """Yields the analog weights of a checkpoint, one in memory at a time.

    Args:
      checkpoint: the checkpoint.
      chip: the seed of a frozen chip; `None` for the nominal model.
    """
    nominal = paths.leaves(checkpoint.params)
    kernels = nominal if chip is None else paths.leaves(checkpoint.chip(chip))
    for weight in checkpoint.plan.weights:

        def beside(name: str, weight: AnalogWeight = weight) -> np.ndarray | None:
            value = nominal.get(weight.leaf(name))
            return None if value is None else in_numpy(value)

        crossbars: tuple[tuple[Place, Tile], ...] = ()
        if weight.hardware.converter is not None:
            tiles = checkpoint.conductances(weight.path, chip)
            crossbars = tuple((p, tiles[p.row][p.column]) for p in grid(weight))
        yield Layer(
            weight=weight,
            kernel=in_numpy(kernels[weight.path]),
            bias=beside("bias"),
            input_range=beside("input_range") if weight.ranged else None,
            crossbars=crossbars,
        )


def devices(tile: Tile) -> dict[str, np.ndarray]:
    """Returns the conductances of a tile's devices by name, in µS.

    Those after programming, if the tile is that of a chip with a noise model; otherwise
    the targets.
    """
    return {
        name: np.asarray(tile.programmed[name].g_prog) if tile.programmed else g
        for name, g in tile.conductances.items()
    }


def in_numpy(value: Any) -> np.ndarray:
    """Returns an array that NumPy alone can read: of a PRNG key, the key data.

    Floating-point numbers of less than 32 bits become float32, without loss.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


def save_npz(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes an `.npz` file, one array in memory at a time, equal input to equal bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_npz(Path(folder, "a.npz"), [("w/0", np.ones(2, np.float32))])
    ...     print(np.load(f"{folder}/a.npz")["w/0"])
    [1. 1.]

    Args:
      path: the file.
      arrays: names and arrays.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
