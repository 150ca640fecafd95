"""A crossbar of a checkpoint, and its place in its weight."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.devices import ConductanceConverter
from hwtrain.devices._programmed import Programmed

# Bound on float32 rounding of g_max, with a margin.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """One crossbar of a weight.

    Attributes:
      converter: the converter from weights to conductances.
      conductances: the conductances `[*stack, rows, columns]` of each of the
        converter's devices, by name, in µS.
      params: the parameters of the conversion by name, such as `scale_ratio`,
        `[*stack, 1, columns or 1]`.
      mapping_scale: `[*stack, 1, columns or 1]`, the nominal weight of a crossbar
        weight of one.
      programmed: for a chip with a noise model, each device after programming, by name;
        `conductances` then holds the targets.
    """

    converter: ConductanceConverter
    conductances: Mapping[str, np.ndarray]
    params: Mapping[str, np.ndarray]
    mapping_scale: np.ndarray
    programmed: Mapping[str, Programmed] = dataclasses.field(default_factory=dict)

    @property
    def g_pos(self) -> np.ndarray:
        """The positive conductances of a single pair, in µS."""
        return self._device("g_pos")

    @property
    def g_neg(self) -> np.ndarray:
        """The negative conductances of a single pair, in µS."""
        return self._device("g_neg")

    @property
    def scale_ratio(self) -> np.ndarray:
        """The conductance of a crossbar weight of one, in µS."""
        return self.params["scale_ratio"]

    def weights(self) -> np.ndarray:
        r"""Returns the weights that the (target) conductances represent.

        .. math:: W = s\, w(g)

        with the converter's :math:`w(g)`, such as :math:`(g^+ - g^-) / k`.

        Returns:
          `[*stack, rows, columns]`, in the unit of the nominal weights.
        """
        devices = [jnp.asarray(self._device(name)) for name in self.converter.devices]
        params = {name: self.params[name] for name in self.converter.scales}
        w = self.converter.convert_back_to_weights(devices, params)
        return np.asarray(w) * self.mapping_scale

    def _device(self, name: str) -> np.ndarray:
        if name not in self.conductances:
            raise HardwareCheckpointError(
                f"this tile has no {name!r}: its converter is {self.converter.type!r}, "
                f"with {', '.join(self.conductances)}; see conductances"
            )
        return self.conductances[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a tile in its weight.

    Attributes:
      row: number of the row tile.
      column: number of the column tile.
      rows: its rows in the matrix.
      columns: its columns in the matrix.
    """

    row: int
    column: int
    rows: slice
    columns: slice

    @property
    def name(self) -> str:
        """Its name in the files, such as `tile/0/1`."""
        return f"tile/{self.row}/{self.column}"

    @property
    def elements(self) -> tuple[object, ...]:
        """The index of its elements in the matrix."""
        return (..., self.rows, self.columns)

    def of(self, param: np.ndarray) -> np.ndarray:
        """Returns the tile's part of a parameter of all tiles, without padding."""
        width = self.columns.stop - self.columns.start
        return np.ascontiguousarray(param[..., self.row, self.column, :, :width])


def grid(weight: AnalogWeight) -> list[Place]:
    """Returns the places of a weight's tiles, row by row."""
    return [
        Place(row=row, column=column, rows=rows, columns=columns)
        for row, rows in enumerate(tile_slices(weight.row_sizes))
        for column, columns in enumerate(tile_slices(weight.column_sizes))
    ]


def join(weight: AnalogWeight, tiles: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Returns an array in its stored shape from the weights of its tiles.

    Args:
      weight: the plan of the array.
      tiles: for each row tile and column tile, `[*stack, rows, columns]`.
    """
    rows = [np.concatenate(row, axis=-1) for row in tiles]
    with on_cpu():
        return np.asarray(weight.from_matrix(jnp.asarray(np.concatenate(rows, -2))))


def check_targets(
    where: str, g: np.ndarray, converter: ConductanceConverter
) -> np.ndarray:
    """Returns target conductances; raises if one is out of the device's range.

    Args:
      where: the tensor, for the message.
      g: conductances, in µS.
      converter: defines g_min and g_max.
    """
    slack = _ROUNDING * converter.g_max
    low, high = converter.g_min - slack, converter.g_max + slack
    if g.size and not (low <= float(g.min()) and float(g.max()) <= high):
        raise HardwareCheckpointError(
            f"{where}: conductances must lie in [{converter.g_min}, {converter.g_max}] "
            f"µS, got values from {g.min()} to {g.max()} µS. Export the model again "
            "from finite weights"
        )
    return g


def tile_slices(sizes: tuple[int, ...]) -> list[slice]:
    """Returns the slice of each tile along a tiled axis.

    >>> tile_slices((4, 3))
    [slice(0, 4, None), slice(4, 7, None)]
    """
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends)]


def on_cpu():
    """Computes on the CPU, so that checkpoints are the same on every machine."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])
