"""The crossbars of one analog weight: its tiles and their conductances."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays.random import draw_key
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._tiles import Place, Tile, grid, join, on_cpu
from hwtrain.chips import _conductances as conductances
from hwtrain.chips import chip_key
from hwtrain.chips._crossbar import on_crossbar, written
from hwtrain.chips._mismatched import deviated
from hwtrain.chips._programming import PROGRAMMED, Keys, keys_of_chip, program_weight
from hwtrain.devices import ConductanceConverter
from hwtrain.devices._conversion import Params
from hwtrain.weights.mapping import MAPPING_SCALE


class Crossbars:
    """The nominal weights of one array on their crossbars, and those of its chips.

    Everything is computed in float32 on the CPU, whatever the model's dtype and device.

    Args:
      weight: the plan of the array.
      kernel: the stored array, nominal.
      scale: its stored mapping scale, if it has one.
      bound: its learned clip bound, if it has one; the array lies within it.

    Raises:
      HardwareCheckpointError: if the array does not match the plan, or is not finite.
    """

    def __init__(
        self,
        weight: AnalogWeight,
        kernel: np.ndarray,
        scale: np.ndarray | None,
        bound: np.ndarray | None = None,
    ):
        check_kernel(weight, kernel)
        self.weight = weight
        self._geometry = weight.nameless  # layers of one shape share a compilation
        with on_cpu():
            self._kernel = jnp.asarray(kernel, jnp.float32)
            self._bound = bound
            self._scale = self._mapping_scale(scale)
            self._given = None if scale is None else self._scale
            self._written = _written(self._geometry, self._kernel, self._scale, bound)
            self._w = np.asarray(
                _on_crossbar(self._geometry, self._written, self._scale)
            )

    @property
    def written(self) -> np.ndarray:
        """The array that is written to a chip, float32."""
        return np.asarray(self._written)

    def tiles(self) -> Iterator[tuple[str, Tile]]:
        """Yields the name, such as `tile/0/1`, and the target of each tile."""
        converter = self._converter
        with on_cpu():
            # Converted as a whole, because JAX would compile a cut for each tile shape.
            found, params = jax.tree.map(np.asarray, _targets(self._geometry, self._w))
        for place in grid(self.weight):
            yield (
                place.name,
                Tile(
                    converter=converter,
                    conductances={
                        name: np.ascontiguousarray(g[place.elements])
                        for name, g in zip(converter.devices, found)
                    },
                    params={name: place.of(params[name]) for name in converter.scales},
                    mapping_scale=self._tile_of_scale(place),
                ),
            )

    def chip(self, seed: int) -> tuple[np.ndarray, Iterator[tuple[str, np.ndarray]]]:
        """Returns a chip's weights, and the conductances of its devices by name.

        Args:
          seed: the chip's seed.

        Returns:
          The array on the chip, float32, shaped as stored; and for each tile and device
          its target conductances, such as `tile/0/1/g_pos`, in µS, not clipped: a
          device with mismatch may exceed g_max. With a noise model, also the programmed
          conductances and draws: `tile/0/1/g_pos/g_prog`, `.../nu`.
        """
        with on_cpu():
            # A Python integer would become a signed one in JAX.
            key = draw_key(chip_key(np.uint32(seed)), self.weight.path, "mismatch")
            kernel = _chip_kernel(
                self._geometry, self._kernel, self._given, key, self._written
            )
        return np.asarray(kernel), self._chip_conductances(kernel, seed)

    def measured(
        self, conductances: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, Iterator[tuple[str, np.ndarray]]]:
        """Returns measurements of a chip in the format of `chip`.

        Args:
          conductances: of the whole chip, by name, checked; see `read_conductances`.
        """
        if self.weight.hardware.converter is None:
            return np.asarray(self._written), iter(())
        rows, columns = self.weight.tiles
        weights = [[np.empty(0)] * columns for _ in range(rows)]
        arrays = {}
        for place, (name, nominal) in zip(grid(self.weight), self.tiles()):
            devices = {
                device: conductances[f"{self.weight.path}/{name}/{device}"]
                for device in nominal.conductances
            }
            arrays |= {f"{name}/{device}": g for device, g in devices.items()}
            tile = dataclasses.replace(nominal, conductances=devices)
            weights[place.row][place.column] = tile.weights()
        return join(self.weight, weights), iter(arrays.items())

    def _chip_conductances(
        self, kernel: jax.Array, seed: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        if self.weight.hardware.converter is None:
            return
        with on_cpu():
            if not self.weight.hardware.programs:
                found = _by_scale(self._geometry, self._w, kernel, self._scale)
                quantities = [{"": g} for g in found]
            else:
                keys = keys_of_chip(self.weight, chip_key(np.uint32(seed)))
                quantities = _programmed(
                    self._geometry, self._kernel, self._scale, keys, self._bound
                )
        quantities = jax.tree.map(np.asarray, quantities)
        for place in grid(self.weight):
            for name, device in zip(self._converter.devices, quantities):
                for quantity, matrix in device.items():
                    tensor = f"{place.name}/{name}/{quantity}".rstrip("/")
                    yield tensor, np.ascontiguousarray(matrix[place.elements])

    @property
    def _converter(self) -> ConductanceConverter:
        return conductances.converter_of(self.weight)

    def _mapping_scale(self, stored: np.ndarray | None) -> jax.Array:
        """Returns the nominal scale, `[*stack, row tiles, columns or column tiles]`."""
        weight = self.weight
        shape = (*weight.stack, *weight.tiles)
        if stored is None:
            matrix = weight.to_matrix(self._kernel)
            bound = None if self._bound is None else jnp.asarray(self._bound)
            derived = weight.derived_scale(matrix, bound)
            return jnp.ones(shape, jnp.float32) if derived is None else derived
        # In format 1.1, all column tiles shared one scale.
        shapes = (shape, (*shape[:-1], sum(weight.column_sizes)), (*shape[:-1], 1))
        if stored.shape not in shapes:
            raise HardwareCheckpointError(
                f"{weight.leaf(MAPPING_SCALE)} should have the shape {shape} or "
                f"{shapes[1]}, got {stored.shape}"
            )
        return jnp.asarray(stored, jnp.float32)

    def _tile_of_scale(self, place: Place) -> np.ndarray:
        scale = np.asarray(self._scale)[..., place.row : place.row + 1, :]
        if scale.shape[-1] == 1:
            return scale
        if scale.shape[-1] == self.weight.tiles[1]:
            return scale[..., place.column : place.column + 1]
        return scale[..., place.columns]


def check_kernel(weight: AnalogWeight, kernel: np.ndarray, where: str = "") -> None:
    """Raises unless an array matches the plan and is finite.

    Args:
      weight: the plan of the array.
      kernel: the stored array.
      where: prefix of its path in the message.
    """
    if kernel.shape != weight.shape:
        raise HardwareCheckpointError(
            f"{where}{weight.path}: the plan says shape {weight.shape}, the parameter "
            f"has {kernel.shape}; make the plan from the model whose parameters these "
            "are"
        )
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise HardwareCheckpointError(
            f"{where}{weight.path}: an analog weight must be a real floating-point "
            f"array, got {kernel.dtype}"
        )
    infinite = ~np.isfinite(kernel.astype(np.float32))
    if infinite.any():
        first = tuple(int(index) for index in np.argwhere(infinite)[0])
        raise HardwareCheckpointError(
            f"{where}{weight.path}: {int(infinite.sum())} of {infinite.size} weights "
            f"are NaN or infinite, the first at {first}; export an earlier checkpoint"
        )


@functools.partial(jax.jit, static_argnums=0)
def _on_crossbar(
    weight: AnalogWeight, kernel: jax.Array, scale: jax.Array
) -> jax.Array:
    return weight.to_matrix(on_crossbar(weight, kernel, scale)[0])


_written = jax.jit(written, static_argnums=0)

_chip_kernel = jax.jit(deviated, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _targets(weight: AnalogWeight, w: jax.Array) -> tuple[list[jax.Array], Params]:
    return conductances.targets(weight, w)


@functools.partial(jax.jit, static_argnums=0)
def _by_scale(
    weight: AnalogWeight, w: jax.Array, kernel: jax.Array, scale: jax.Array
) -> list[jax.Array]:
    _, params = conductances.targets(weight, w)
    chip = weight.to_matrix(on_crossbar(weight, kernel, scale)[0])
    return conductances.by_scale(weight, chip, params)


@functools.partial(jax.jit, static_argnums=0)
def _programmed(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: jax.Array,
    keys: Keys,
    bound: jax.Array | None,
) -> list[dict[str, jax.Array]]:
    """Returns the matrices of each device: its target, `""`, and its draws by name."""
    found = program_weight(weight, kernel, scale, keys, bound)
    names = {"g_target": "", **{name: name for name in PROGRAMMED}}
    return [
        {
            names[name]: weight.to_matrix(array)
            for name, array in vars(device).items()
            if name in names and array is not None
        }
        for device in found.devices
    ]
