"""The arrays of a checkpoint in NumPy, as the adapters write them."""

import dataclasses
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import TypeAdapter

from hwtrain._arrays import paths
from hwtrain._parts.fields import without_none
from hwtrain._plan.outputs import StoredOutput
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._reader import HardwareCheckpoint
from hwtrain.checkpoint._tiles import Place, Tile, grid
from hwtrain.periphery.input_range import RANGE
from hwtrain.weights.mapping import OUTPUT_SCALE


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """An analog weight of a checkpoint or of its chip, with the leaves beside it.

    Attributes:
      weight: its plan.
      kernel: its weights, float32, shaped as stored, in the unit of the model.
      bias: the digital bias as stored, or `None`.
      input_range: the input range `[*stack, row tiles, column tiles]`, or `None`.
      mapping_scale: the weight for a crossbar weight of one, `[*stack, row tiles,
        columns or 1]`: all digital factors behind the ADC.
      crossbars: its tiles with their places; none without a converter.
    """

    weight: AnalogWeight
    kernel: np.ndarray
    bias: np.ndarray | None
    input_range: np.ndarray | None
    mapping_scale: np.ndarray
    crossbars: tuple[tuple[Place, Tile], ...]

    @property
    def matrix(self) -> np.ndarray:
        """The weights as `[*stack, rows, columns]`: rows are inputs."""
        return np.asarray(self.weight.to_matrix(jnp.asarray(self.kernel)))

    def bias_of(self, index: tuple[int, ...]) -> np.ndarray | None:
        """Returns the bias of one matrix of the stack, `[columns]`."""
        if self.bias is None:
            return None
        if self.weight.groups == 1:
            return self.bias[index].ravel()
        *layer, group = index
        return self.bias[tuple(layer)].reshape(self.weight.groups, -1)[group]

    def range_of(self, index: tuple[int, ...], place: Place) -> float | None:
        """Returns the input range of a tile."""
        if self.input_range is None:
            return None
        return float(self.input_range[index][place.row, place.column])


def digital_of(checkpoint: HardwareCheckpoint) -> dict[str, list[str]]:
    """Returns what `layers` leaves out of a model, in a line for each module.

    These are the digital parameters, such as those of norms, other than the biases of
    analog layers; those of users' parts; and other variables that the model needs.

    Returns:
      Lines by the module's path; by its own path for an array of the whole model.
    """
    plan = checkpoint.plan
    held = {path for weight in plan.weights for path in (weight.path, weight.stored)}
    for weight in plan.weights:
        held |= weight.owned - {*map(weight.leaf, weight.own_leaves)}
    held |= {*_biases(checkpoint).values()}
    found: dict[str, list[str]] = {}
    for path in paths.leaves(checkpoint.params):
        if path not in held:
            module, _, name = path.rpartition("/")
            found.setdefault(module or path, []).append(name)
    for path in plan.state:
        collection, _, inner = path.partition("/")
        module, _, name = inner.rpartition("/")
        found.setdefault(module or path, []).append(f"{name} ({collection})")
    return {
        module: [f"digital: {', '.join(names)}; they are in checkpoint.variables alone"]
        for module, names in sorted(found.items())
    }


def _biases(checkpoint: HardwareCheckpoint) -> dict[str, str]:
    """Returns the paths of digital biases by the weights that they are written with."""
    found, nominal, seen = {}, paths.leaves(checkpoint.params), set()
    for weight in checkpoint.plan.weights:
        # A layer may hold two analog weights; its other leaves go to the first one.
        if weight.kind != "raw" and weight.layer_path not in seen:
            seen.add(weight.layer_path)
            if weight.leaf("bias") in nominal:
                found[weight.path] = weight.leaf("bias")
    return found


def layers(checkpoint: HardwareCheckpoint, chip: int | None = None) -> Iterator[Layer]:
    """Yields the analog weights of a checkpoint, one in memory at a time.

    Learned output scales, and the factors of a chip's drift compensation, are part of
    the kernels and of the mapping scales.

    Args:
      checkpoint: the checkpoint.
      chip: the seed of a frozen chip; `None` for the nominal model.
    """
    nominal = paths.leaves(checkpoint.params)
    kernels, factors = nominal, {}
    if chip is not None:
        found, factors = checkpoint.chip_and_factors(chip)
        kernels = paths.leaves(found)
    biases = _biases(checkpoint)
    for weight in checkpoint.plan.weights:
        bias, input_range = nominal.get(biases.get(weight.path, "")), None
        if weight.ranged:
            input_range = in_numpy(nominal[weight.leaf(RANGE)])
            _check_range(weight, input_range)
        crossbars: tuple[tuple[Place, Tile], ...] = ()
        if weight.hardware.converter is not None:
            tiles = checkpoint.conductances(weight.path, chip)
            crossbars = tuple((p, tiles[p.row][p.column]) for p in grid(weight))
        layer = Layer(
            weight=weight,
            kernel=in_numpy(kernels[weight.path]),
            bias=None if bias is None else in_numpy(bias),
            input_range=input_range,
            mapping_scale=_mapping_scale(weight, nominal),
            crossbars=crossbars,
        )
        if factors.get(weight.path) is not None:  # the chip's kernel includes it
            layer = _scaled(layer, of_columns(weight, factors[weight.path]))
        if weight.hardware.scales_outputs:
            scale = in_numpy(nominal[weight.leaf(OUTPUT_SCALE)])
            spread = np.asarray(weight.spread(jnp.asarray(scale)))
            layer = dataclasses.replace(layer, kernel=layer.kernel * spread)
            layer = _scaled(layer, scale)
        yield layer


def of_columns(weight: AnalogWeight, factor: Any) -> np.ndarray:
    """Returns a factor of tiles as `[*stack, row tiles, columns or 1]`."""
    return np.asarray(weight.of_columns(jnp.asarray(factor)), np.float32)


def scaled_tile(place: Place, tile: Tile, factor: np.ndarray) -> Tile:
    """Returns a tile whose mapping scale includes a factor behind its ADC.

    Args:
      place: its place.
      tile: the tile.
      factor: `[*stack, row tiles, columns or 1]`.
    """
    part = factor[..., place.row : place.row + 1, :]
    part = part if part.shape[-1] == 1 else part[..., place.columns]
    return dataclasses.replace(tile, mapping_scale=tile.mapping_scale * part)


def _scaled(layer: Layer, factor: np.ndarray) -> Layer:
    """Includes a factor `[*stack, row tiles, columns or 1]` in the mapping scales."""
    tiles = ((p, scaled_tile(p, tile, factor)) for p, tile in layer.crossbars)
    return dataclasses.replace(
        layer,
        mapping_scale=layer.mapping_scale * factor,
        crossbars=tuple(tiles),
    )


def _check_range(weight: AnalogWeight, input_range: np.ndarray) -> None:
    shape = (*weight.stack, *weight.tiles)
    if input_range.shape != shape:
        raise HardwareCheckpointError(
            f"{weight.leaf(RANGE)} should have the shape {shape}, got "
            f"{input_range.shape}; adopt() gives a plain model the ranges of its plan"
        )


def _mapping_scale(weight: AnalogWeight, nominal: Mapping[str, Any]) -> np.ndarray:
    scale = weight.stored_scale(nominal)
    if scale is None:
        kernel = jnp.asarray(nominal[weight.path], jnp.float32)
        bound = weight.stored_bound(nominal)
        scale = weight.derived_scale(weight.to_matrix(kernel), bound)
    if scale is None:
        return np.ones((*weight.stack, weight.tiles[0], 1), np.float32)
    return np.asarray(weight.of_columns(jnp.asarray(scale)), np.float32)


def devices(tile: Tile) -> dict[str, np.ndarray]:
    """Returns the conductances of a tile's devices by name, in µS.

    These are the conductances after programming for a chip with a noise model, and the
    targets otherwise.
    """
    return {
        name: np.asarray(tile.programmed[name].g_prog) if tile.programmed else g
        for name, g in tile.conductances.items()
    }


def name_of(weight: AnalogWeight) -> str:
    """Returns the name of an analog weight's layer in other programs."""
    return weight.stored.removesuffix("/kernel")


def stack_index(weight: AnalogWeight) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yields the index and the name of each matrix of a weight; `()` for a single one.

    Each layer of a stack, and each position and group of a convolution, is a matrix.
    """
    for index in np.ndindex(*weight.stack):
        yield index, "/".join([name_of(weight), *map(str, index)])


def plan_of(weight: AnalogWeight) -> dict[str, Any]:
    """Returns a weight's plan, including its hardware, as JSON data."""
    return without_none(_PLAN.dump_python(weight, mode="json"))


def outputs_of(checkpoint: HardwareCheckpoint) -> list[dict[str, Any]]:
    """Returns the modules whose results digital units store in few bits, as data."""
    return [
        without_none(_OUTPUT.dump_python(output, mode="json"))
        for output in checkpoint.plan.outputs
    ]


_PLAN = TypeAdapter(AnalogWeight)
_OUTPUT = TypeAdapter(StoredOutput)


def as_json(content: Any) -> str:
    """Returns nested mappings and lists, which may hold NumPy numbers, as JSON."""
    return (
        json.dumps(
            content,
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
            default=lambda array: array.tolist(),
        )
        + "\n"
    )


def in_numpy(value: Any) -> np.ndarray:
    """Returns an array that NumPy alone can read; for a PRNG key, its key data.

    Floating-point numbers below 32 bits become float32, without loss.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


def save_npz(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes an `.npz` file deterministically, with one array in memory at a time.

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
