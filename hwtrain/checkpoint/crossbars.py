"""What lies on the crossbars of one analog weight: the tiles and their conductances."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain.checkpoint.errors import HardwareCheckpointError
from hwtrain.crossbar import on_crossbar
from hwtrain.hardware import SinglePairConductanceConverter
from hwtrain.mismatch import apply_mismatch, chip_key
from hwtrain.physics import conductance
from hwtrain.plan import AnalogWeight, Plan

# Float32 rounding of g_max, generously; anything beyond is not rounding.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """One crossbar of a weight.

    Attributes:
      g_pos: `[*stack, rows, columns]` positive conductances, in µS.
      g_neg: `[*stack, rows, columns]` negative conductances, in µS.
      scale_ratio: `[*stack, 1, columns or 1]`, in µS per unit of crossbar weight.
      mapping_scale: `[*stack, 1, columns or 1]`, the nominal weight of a crossbar
        weight of one.
    """

    g_pos: np.ndarray
    g_neg: np.ndarray
    scale_ratio: np.ndarray
    mapping_scale: np.ndarray

    def weights(self) -> np.ndarray:
        r"""Returns the weights that the conductances stand for.

        .. math:: W = s \, (g^+ - g^-) / k

        Returns:
          `[*stack, rows, columns]`, in the unit of the nominal weights.
        """
        return (self.g_pos - self.g_neg) / self.scale_ratio * self.mapping_scale


class Crossbars:
    """The nominal weights of one array on their crossbars, and those of its chips.

    Everything is computed in float32 on the CPU, whatever the model's dtype and device.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      scale: its stored mapping scale, if it has one.

    Raises:
      HardwareCheckpointError: if the array is not what the plan says, or not finite.
    """

    def __init__(
        self, weight: AnalogWeight, kernel: np.ndarray, scale: np.ndarray | None
    ):
        _check_kernel(weight, kernel)
        self.weight = weight
        # Without its names, so that layers of one shape share a compilation.
        self._geometry = dataclasses.replace(weight, path="", layer="", rule="")
        with _cpu():
            self._kernel = jnp.asarray(kernel, jnp.float32)
            self._scale = self._mapping_scale(scale)
            self._w = np.asarray(
                _on_crossbar(self._geometry, self._kernel, self._scale)
            )

    def tiles(self) -> Iterator[tuple[str, Tile]]:
        """Yields the name, such as `tile/0/1`, and the target of each tile.

        Raises:
          HardwareCheckpointError: if a target lies outside [g_min, g_max].
        """
        converter = self._converter
        for name, row, rows, columns in self._grid():
            with _cpu():
                pair, k = _convert(converter, self._w[..., rows, columns])
            where = f"{self.weight.path}, {name}"
            # Rounding may put the largest weight one ulp above g_max.
            g_pos, g_neg = (
                np.clip(
                    check_targets(where, np.asarray(g), converter),
                    np.float32(converter.g_min),
                    np.float32(converter.g_max),
                )
                for g in pair
            )
            tile = Tile(
                g_pos=g_pos,
                g_neg=g_neg,
                scale_ratio=np.asarray(k),
                mapping_scale=self._tile_of_scale(row, columns),
            )
            yield name, tile

    def chip(self, seed: int) -> tuple[np.ndarray, Iterator[tuple[str, np.ndarray]]]:
        """Returns a chip's weights, and the conductances of its devices by name.

        Args:
          seed: the chip's seed.

        Returns:
          The array as the chip has it, float32, shaped as stored; and for each tile
          `tile/0/1/g_pos` and `tile/0/1/g_neg`, in µS, not clamped: a device with
          mismatch may exceed g_max.
        """
        with _cpu():
            # Not a Python integer: JAX would take it for a signed one.
            kernel = _chip_kernel(
                self.weight, self._kernel, self._scale, np.uint32(seed)
            )
            w = np.asarray(_on_crossbar(self._geometry, kernel, self._scale))
        return np.asarray(kernel), self._chip_conductances(w)

    def _chip_conductances(self, w: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        if self.weight.hardware.converter is None:
            return
        for name, _, rows, columns in self._grid():
            with _cpu():
                tile = (..., rows, columns)
                g_pos, g_neg = _chip_pair(self._converter, self._w[tile], w[tile])
            yield f"{name}/g_pos", np.asarray(g_pos)
            yield f"{name}/g_neg", np.asarray(g_neg)

    @property
    def _converter(self) -> SinglePairConductanceConverter:
        converter = self.weight.hardware.converter
        if converter is None:
            raise HardwareCheckpointError(f"{self.weight.path} has no converter")
        if not isinstance(converter, SinglePairConductanceConverter):
            raise HardwareCheckpointError(
                f"{self.weight.path}: the checkpoint holds conductance pairs; its "
                f"converter is {converter.type!r}. Use SinglePairConductanceConverter"
            )
        return converter

    def _mapping_scale(self, stored: np.ndarray | None) -> jax.Array:
        """Returns the nominal mapping scale, `[*stack, row tiles, columns or 1]`."""
        weight = self.weight
        shape = (*weight.stack, weight.tiles[0], 1)
        if stored is None:
            derived = weight.derived_scale(weight.to_matrix(self._kernel))
            return jnp.ones(shape, jnp.float32) if derived is None else derived
        full = (*shape[:-1], sum(weight.column_sizes))
        if stored.shape not in (shape, full):
            raise HardwareCheckpointError(
                f"{weight.leaf('mapping_scale')} should have the shape {shape} or "
                f"{full}, it has {stored.shape}"
            )
        return jnp.asarray(stored, jnp.float32)

    def _tile_of_scale(self, row: int, columns: slice) -> np.ndarray:
        scale = np.asarray(self._scale)[..., row : row + 1, :]
        return scale if scale.shape[-1] == 1 else scale[..., columns]

    def _grid(self) -> Iterator[tuple[str, int, slice, slice]]:
        for row, rows in enumerate(tile_slices(self.weight.row_sizes)):
            for column, columns in enumerate(tile_slices(self.weight.column_sizes)):
                yield f"tile/{row}/{column}", row, rows, columns


def join(weight: AnalogWeight, tiles: tuple[tuple[np.ndarray, ...], ...]) -> np.ndarray:
    """Returns an array in its stored shape from the weights of its tiles.

    Args:
      weight: the plan of the array.
      tiles: for each row tile and column tile, `[*stack, rows, columns]`.
    """
    rows = [np.concatenate(row, axis=-1) for row in tiles]
    with _cpu():
        return np.asarray(weight.from_matrix(jnp.asarray(np.concatenate(rows, -2))))


def check_targets(
    where: str, g: np.ndarray, converter: SinglePairConductanceConverter
) -> np.ndarray:
    """Returns target conductances; an error where one is out of the device's reach.

    Args:
      where: the tensor, for the message.
      g: conductances, in µS.
      converter: says g_min and g_max.
    """
    slack = _ROUNDING * converter.g_max
    low, high = converter.g_min - slack, converter.g_max + slack
    if g.size and not (low <= g.min() and g.max() <= high):
        raise HardwareCheckpointError(
            f"{where}: conductances must lie in [{converter.g_min}, {converter.g_max}] "
            f"µS, they go from {g.min()} to {g.max()} µS. Export the model again from "
            "finite weights"
        )
    return g


def _check_kernel(weight: AnalogWeight, kernel: np.ndarray) -> None:
    if kernel.shape != weight.shape:
        raise HardwareCheckpointError(
            f"{weight.path}: the plan says shape {weight.shape}, the parameter has "
            f"{kernel.shape}; make the plan from the model whose parameters these are"
        )
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise HardwareCheckpointError(
            f"{weight.path}: an analog weight must be a real floating-point array, it "
            f"is {kernel.dtype}"
        )
    infinite = ~np.isfinite(kernel.astype(np.float32))
    if infinite.any():
        first = tuple(int(index) for index in np.argwhere(infinite)[0])
        raise HardwareCheckpointError(
            f"{weight.path}: {int(infinite.sum())} of {infinite.size} weights are NaN "
            f"or infinite, the first at {first}; export an earlier checkpoint"
        )


def tile_slices(sizes: tuple[int, ...]) -> list[slice]:
    """Returns where each tile lies along a cut axis.

    >>> tile_slices((4, 3))
    [slice(0, 4, None), slice(4, 7, None)]
    """
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends)]


def _cpu():
    return jax.default_device(jax.local_devices(backend="cpu")[0])


@functools.partial(jax.jit, static_argnums=0)
def _on_crossbar(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array
) -> jax.Array:
    return weight.to_matrix(on_crossbar(weight, kernel, scale)[0])


@functools.partial(jax.jit, static_argnums=0)
def _chip_kernel(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array, seed: jax.Array
) -> jax.Array:
    # The scale goes in as a leaf: of a derived one, the nominal kernel's.
    params = {weight.path: kernel, weight.leaf("mapping_scale"): scale}
    return apply_mismatch(params, Plan((weight,)), chip_key(seed))[weight.path]


@functools.partial(jax.jit, static_argnums=0)
def _convert(
    converter: SinglePairConductanceConverter, w: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Converts a tile of every layer of a stack: each is a crossbar of its own."""
    *stack, rows, columns = w.shape
    convert = jax.vmap(converter.convert_to_conductances)
    pair, params = convert(w.reshape(-1, rows, columns))
    k = params["scale_ratio"]
    return [g.reshape(w.shape) for g in pair], k.reshape(*stack, 1, -1)


@functools.partial(jax.jit, static_argnums=0)
def _chip_pair(
    converter: SinglePairConductanceConverter, w: jax.Array, w_chip: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Converts a chip's tile by the scale of the nominal one."""
    _, k = _convert(converter, w)
    return conductance.to_pair(w_chip, k, g_min=converter.g_min)
