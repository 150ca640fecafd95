"""Reads a hardware-ready checkpoint."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from hwtrain._arrays import paths
from hwtrain._arrays.shared import is_shared, placed, placed_beside
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import _manifest as manifests
from hwtrain.checkpoint import _tensors as tensors
from hwtrain.checkpoint._crossbars import check_kernel
from hwtrain.checkpoint._earlier import nominal_scale
from hwtrain.checkpoint._entries import DTYPES, ChipEntry, LayerEntry, LeafEntry
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._files import check_listed, path_of
from hwtrain.checkpoint._manifest import FILE_NAME, Manifest
from hwtrain.checkpoint._of_nnx import filled
from hwtrain.checkpoint._placing import Placing, placing_of
from hwtrain.checkpoint._reads import check_read, kernel_at
from hwtrain.checkpoint._same_hardware import check_hardware
from hwtrain.checkpoint._tiles import Tile, check_targets, join
from hwtrain.checkpoint._values import check_numbers, check_parameter, check_values
from hwtrain.checkpoint._variables import as_leaf
from hwtrain.chips import chip_key
from hwtrain.chips._clip_bounds import with_open_bounds
from hwtrain.chips._conductances import converter_of
from hwtrain.chips._mismatched import with_chip_leaves
from hwtrain.chips._programming import compensated, own_values, programmed_fields
from hwtrain.devices._programmed import Programmed
from hwtrain.weights.mapping import MAPPING_SCALE


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HardwareCheckpoint:
    """A hardware-ready checkpoint, read and verified.

    The nominal values are in memory; conductances and chips are read from the directory
    on demand, and verified again.

    Attributes:
      directory: its directory.
      manifest: its manifest.
      plan: the plan that was exported.
      variables: the nominal values of every collection, in nested dicts. Probes, which
        carry no information, are zeros.
    """

    directory: Path
    manifest: Manifest = dataclasses.field(repr=False)
    plan: Plan = dataclasses.field(repr=False)
    variables: dict[str, Any] = dataclasses.field(repr=False)

    @property
    def params(self) -> dict[str, Any]:
        """The nominal parameters."""
        return self.variables["params"]

    @property
    def chip_seeds(self) -> tuple[int, ...]:
        """The seeds of the frozen chips."""
        return tuple(chip.seed for chip in self.manifest.chips)

    def chip(
        self,
        seed: int,
        *,
        t_s: ArrayLike | None = None,
        key: jax.Array | None = None,
    ) -> dict[str, Any]:
        """Returns the parameters of one frozen chip.

        For evaluation only: `export` takes the nominal `variables`. Weights with a
        noise model follow from the programmed conductances in the chip's files, with
        drift and its compensation.

        Args:
          seed: the chip's seed.
          t_s: time since programming, in seconds. `None`: zero, just after it.
          key: key of the read noise; `None` reads without noise.

        Returns:
          A tree like `params` with the same dtypes, plus the leaves of the chip's
          periphery that `hwtrain.apply_mismatch` names.

        Raises:
          HardwareCheckpointError: if the chip is not in the checkpoint, or damaged; or
            for a time or a key if the checkpoint has no noise model, or the chip was
            measured.
        """
        chip, factors = self.chip_and_factors(seed, t_s=t_s, key=key)
        return compensated(chip, self.plan, factors)

    def chip_and_factors(
        self,
        seed: int,
        *,
        t_s: ArrayLike | None = None,
        key: jax.Array | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns a chip's parameters, and the factors of its drift compensation.

        A factor is digital and multiplies what comes from an ADC. For who writes the
        weights that crossbars hold: these are the kernels of the result divided by it.

        Args:
          seed: the chip's seed.
          t_s: time since programming, in seconds. `None`: zero, just after it.
          key: key of the read noise; `None` reads without noise.

        Returns:
          What `chip` returns, whose kernels include the factors, with mapping scales
          that do not; and the factors, without a unit, by path of the weight, `[*stack,
          row tiles, columns or column tiles]`, `None` without a compensation.

        Raises:
          HardwareCheckpointError: as `chip` does.
        """
        entry = self._chip(seed)
        check_read(self.manifest, entry, t_s, key)
        now = 0.0 if t_s is None else t_s
        params = paths.leaves(self.params)
        kernels, scales, factors = {}, {}, {}
        for layer in self.manifest.layers:
            weight = layer.weight
            nominal = self._on_host(layer, params)
            path, read = weight.path, self._read(entry.files[weight.path])
            kernels[path] = read["kernel"]
            scale = nominal_scale(self.manifest.version, weight, nominal)
            if scale is not None and weight.hardware.derives_chip_scale:
                put = placed_beside(params[path], scale)
                scales[weight.leaf(MAPPING_SCALE)] = as_leaf(put)
            if weight.hardware.programs and not entry.measured:
                tiles = self.conductances(path, seed)
                bound = weight.stored_bound(nominal)
                kernels[path], factors[path] = kernel_at(
                    weight,
                    nominal[path],
                    scale,
                    tiles,
                    now,
                    key,
                    seed,
                    bound,
                    own_values(weight, nominal),
                )

        def chip_value(path: str, leaf: Any) -> Any:
            if path not in kernels:
                return leaf
            kernel = kernels[path].astype(leaf.dtype)
            if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
                return placed(kernel, leaf.sharding)
            return as_leaf(kernel)

        chip = with_open_bounds(paths.map_leaves(chip_value, self.params), self.plan)
        chip = paths.insert(chip, scales)
        chip = with_chip_leaves(chip, self.plan, self.params, chip_key(seed))
        return chip, factors

    def into(
        self,
        model: Any,
        *,
        chip: int | None = None,
        t_s: ArrayLike | None = None,
        key: jax.Array | None = None,
    ) -> Any:
        """Returns a copy of an NNX model with the values of the checkpoint.

        Args:
          model: the analog module, built like the exported one; its rng streams and its
            mode are kept.
          chip: the seed of a frozen chip whose parameters it gets; `None` for the
            nominal ones.
          t_s: time of the read of the chip; see `chip`.
          key: key of the read of the chip; see `chip`.

        Raises:
          HardwareCheckpointError: if the model has other variables, or is not an NNX
            model; or for a chip, if the model has other hardware.
        """
        derived = {weight.path for weight in self.plan.weights if weight.derived}
        params = self.params
        if chip is not None:
            own = getattr(model, "analog_plan", None)
            if own is not None:
                check_hardware(
                    self.plan, own, "take into(model), and population or apply_mismatch"
                )
            params = self.chip(chip, t_s=t_s, key=key)
        elif derived:  # the model computes them from stored parameters
            params = paths.drop(params, lambda path: path not in derived)
        variables = {**self.variables, "params": params}
        of_chip = {*self.plan.leaves_of_chip(params), *derived}
        return filled(model, variables, of_chip)

    def conductances(
        self, path: str, chip_seed: int | None = None
    ) -> tuple[tuple[Tile, ...], ...]:
        """Returns the crossbars of a weight: for each row tile, its column tiles.

        Args:
          path: the weight's path in the plan.
          chip_seed: a frozen chip; `None` for the nominal targets.

        Raises:
          HardwareCheckpointError: if the weight, its converter or the chip is not in
            the checkpoint, or a file is damaged.
        """
        layer = self._layer(path)
        if layer.weight.hardware.converter is None:
            raise HardwareCheckpointError(
                f"{path} has no conductances: its hardware had no converter. Export it "
                "with Hardware(converter=SinglePairConductanceConverter(...))"
            )
        nominal = self._read(layer.file)
        chip, fields = nominal, ()
        if chip_seed is not None:
            entry = self._chip(chip_seed)
            chip = self._read(entry.files[path])
            fields = () if entry.measured else programmed_fields(layer.weight.hardware)
        rows, columns = layer.weight.tiles
        return tuple(
            tuple(
                _tile(layer, nominal, chip, fields, f"tile/{row}/{column}")
                for column in range(columns)
            )
            for row in range(rows)
        )

    def reconstruct(self, path: str, chip_seed: int | None = None) -> np.ndarray:
        """Returns a weight, shaped as stored, computed only from its conductances.

        Args:
          path: the weight's path in the plan.
          chip_seed: a frozen chip; `None` for the nominal targets.
        """
        grid = self.conductances(path, chip_seed)
        tiles = tuple(tuple(tile.weights() for tile in row) for row in grid)
        return join(self._layer(path).weight, tiles)

    def _on_host(
        self, layer: LayerEntry, params: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Returns the nominal values that a layer's weights depend on."""
        weight = layer.weight
        needed = {weight.path, *map(weight.leaf, weight.leaves())} & params.keys()
        if not is_shared([params[path] for path in needed]):
            return params
        # This process holds only a part of them; the files have all.
        of: dict[str, dict[str, str]] = {}
        for leaf in self.manifest.leaves:
            if leaf.keys[0] == "params" and leaf.path in needed and leaf.file:
                of.setdefault(leaf.file, {})[leaf.path] = leaf.tensor or ""
        found = {}
        for file, tensors_of in of.items():
            content = self._read(file)
            found |= {path: content[name] for path, name in tensors_of.items()}
        return found

    def _layer(self, path: str) -> LayerEntry:
        for layer in self.manifest.layers:
            if layer.weight.path == path:
                return layer
        raise HardwareCheckpointError(
            f"{self.directory} has no analog weight {path!r}; it has "
            f"{', '.join(self.plan) or 'none'}"
        )

    def _chip(self, seed: int) -> ChipEntry:
        for chip in self.manifest.chips:
            if chip.seed == seed:
                return chip
        held = ", ".join(map(str, self.chip_seeds)) or "none"
        raise HardwareCheckpointError(
            f"{self.directory} holds no chip {seed}; it holds {held}; draw it with "
            f"export(path, checkpoint.variables, checkpoint.plan, chip_seed={seed})"
        )

    def _read(self, file: str) -> dict[str, np.ndarray]:
        return tensors.read(self.directory, file, self.manifest.files[file])


def load(path: str | os.PathLike[str], *, sharding: Any = None) -> HardwareCheckpoint:
    """Reads a checkpoint that `export` wrote, and verifies all of it.

    Every hash is checked, every target conductance is in range, and the directory holds
    no file that the manifest does not list. Nothing in it is executed.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from hwtrain.checkpoint import export
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     params = {"norm": {"scale": jnp.ones(2)}}
    ...     checkpoint = load(export(f"{folder}/model", params, Plan(())))
    >>> checkpoint.params
    {'norm': {'scale': Array([1., 1.], dtype=float32)}}

    Args:
      path: the directory.
      sharding: where the nominal values are put: a `jax.sharding.Sharding` for all
        leaves, or a tree like the variables, or only like the parameters if there are
        no others, of shardings or of arrays or shapes that have one. An NNX model or
        its state also serves. Any mesh will do, whichever the export had. In several
        processes each reads and verifies the files, one at a time, and keeps its own
        part. `None` for the default device.

    Raises:
      HardwareCheckpointError: (a `ValueError`) if it is not a checkpoint, or damaged;
        or if `sharding` does not fit its leaves.
    """
    directory = path_of(path, "load takes the directory that export wrote")
    manifest = manifests.read(directory)
    check_listed(directory, {FILE_NAME, *manifest.files})
    placing = placing_of(sharding, manifest)
    leaves: dict[str | None, list[LeafEntry]] = {}
    for leaf in manifest.leaves:
        leaves.setdefault(leaf.file, []).append(leaf)
    layers = {layer.file: layer for layer in manifest.layers}
    values = {leaf.keys: _without_value(leaf, placing) for leaf in manifest.leaves}
    for file, entries in manifest.files.items():
        content = tensors.read(directory, file, entries)
        for leaf in leaves.get(file, ()):
            array = content[leaf.tensor or ""]
            check_numbers(f"{directory / file}, {leaf.tensor}", array)
            values[leaf.keys] = placing.put(leaf, array)
        if file in layers:
            held = {x.path: content[x.tensor or ""] for x in leaves.get(file, ())}
            _check_layer(f"{directory / file}, ", layers[file].weight, held)
        for leaf in leaves.get(file, ()):
            where = f"{directory / file}, {leaf.tensor}"
            check_parameter(where, leaf.keys, content[leaf.tensor or ""])
        for tensor, array in content.items():
            where = f"{directory / file}, {tensor}"
            _check_conductances(where, tensor, array, layers.get(file))
    return HardwareCheckpoint(
        directory=directory,
        manifest=manifest,
        plan=manifest.plan,
        variables=paths.unflatten(values),
    )


def _check_layer(
    where: str, weight: AnalogWeight, nominal: Mapping[str, np.ndarray]
) -> None:
    """Checks the nominal weights of a layer and the leaves that its hardware added."""
    check_kernel(weight, nominal[weight.path], where)
    check_values(where, weight, nominal)


def _without_value(leaf: LeafEntry, placing: Placing) -> Any:
    """Returns a value that is not stored: an empty mapping, or the zeros of a probe."""
    if leaf.kind == "zeros":
        zeros = np.zeros(leaf.shape or (), DTYPES[leaf.dtype or ""])
        return placing.put(leaf, zeros)
    return {}


def _tile(
    layer: LayerEntry,
    nominal: Mapping[str, np.ndarray],
    chip: Mapping[str, np.ndarray],
    fields: tuple[str, ...],
    name: str,
) -> Tile:
    converter = converter_of(layer.weight)
    programmed = {}
    if fields:
        for g in converter.devices:
            arrays: dict[str, Any] = {
                field: chip[f"{name}/{g}/{field}"] for field in fields
            }
            arrays["g_target"] = chip[f"{name}/{g}"]
            programmed[g] = Programmed(**arrays)
    return Tile(
        programmed=programmed,
        converter=converter,
        conductances={g: chip[f"{name}/{g}"] for g in converter.devices},
        params={scale: nominal[f"{name}/{scale}"] for scale in converter.scales},
        mapping_scale=nominal[f"{name}/mapping_scale"],
    )


def _check_conductances(
    where: str, tensor: str, array: np.ndarray, layer: LayerEntry | None
) -> None:
    """Checks that values are possible; a hash cannot, if another program wrote them.

    Args:
      where: the tensor, for the message.
      tensor: its name.
      array: its values.
      layer: the layer whose targets the file holds; `None` for a chip or digital file.
    """
    if not tensor.startswith("tile/"):
        return
    converter: Any = layer.weight.hardware.converter if layer else None
    if converter and tensor.rpartition("/")[2] in converter.devices:
        check_targets(where, array, converter)
    elif not np.isfinite(array).all():
        raise HardwareCheckpointError(
            f"{where}: holds NaN or infinite numbers; export the model again"
        )
