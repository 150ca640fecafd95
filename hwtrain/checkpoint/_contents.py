"""The contents of a hardware-ready checkpoint, and how they are written to files."""

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import ValidationError

from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.stale_leaves import check_fit
from hwtrain._plan.weight import AnalogWeight
from hwtrain._version import __version__
from hwtrain.checkpoint import _manifest as manifests
from hwtrain.checkpoint import _tensors as tensors
from hwtrain.checkpoint._crossbars import Crossbars, check_kernel
from hwtrain.checkpoint._description import Graph, Measurement
from hwtrain.checkpoint._entries import (
    LARGEST_SEED,
    ChipEntry,
    LayerEntry,
    LeafEntry,
    TensorEntry,
)
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._layout import (
    chip_folder,
    chip_unit,
    file_name,
    nominal_unit,
    own_units,
    scale_unit,
)
from hwtrain.checkpoint._named import others
from hwtrain.checkpoint._of_nnx import CONSTANTS
from hwtrain.checkpoint._progress import Report
from hwtrain.checkpoint._read_back import Conductances, check_conductances
from hwtrain.checkpoint._values import check_numbers, check_parameter, check_values
from hwtrain.checkpoint._variables import Leaf, flatten
from hwtrain.checkpoint._words import RULES, UNITS
from hwtrain.chips._clip_bounds import clipped
from hwtrain.weights.mapping import MAPPING_SCALE

_LIBRARIES = ("jax", "jaxlib", "numpy", "safetensors")


class Contents:
    """The contents of a checkpoint, checked as far as possible without the values.

    Args:
      variables: as for `export`.
      plan: the plan of the model.
      chip_seeds: seeds of the frozen chips, in any order.
      measured: by the chip's number, the conductances measured on it.
      graph: the connections of the layers; `None` if unknown.
      accuracy: measurements of the model.

    Raises:
      HardwareCheckpointError: if the plan or the seeds do not fit.
    """

    def __init__(
        self,
        variables: Any,
        plan: Plan,
        chip_seeds: Iterable[int] = (),
        *,
        measured: Mapping[int, Conductances] | None = None,
        graph: Graph | None = None,
        accuracy: Iterable[Measurement] = (),
    ):
        self.plan, self.graph, self.accuracy = plan, graph, tuple(accuracy)
        self.leaves = flatten(variables, plan.zeros)
        self._with_example = (
            "export(path, model, example=(x,))"
            if isinstance(variables, nnx.Module)
            else "export(path, variables, plan, analog=analog, example=(x,))"
        )
        self.seeds = sorted({_checked_seed(seed) for seed in chip_seeds})
        self.measured = {
            _checked_seed(seed): check_conductances(f"chip {seed}", arrays, plan)
            for seed, arrays in (measured or {}).items()
        }
        both = sorted(set(self.seeds) & self.measured.keys())
        if both:
            raise HardwareCheckpointError(
                f"chip {both[0]} is both drawn (chip_seeds) and measured; leave one out"
            )
        self._check_leaves()
        if self.seeds and not any(w.hardware.frozen for w in plan.weights):
            on_chip = ", ".join(self.plan) or "none, the model is digital"
            raise HardwareCheckpointError(
                f"chip {self.seeds[0]} would be the nominal model: no weight of the "
                f"plan ({on_chip}) has a frozen mismatch, stuck devices or a noise "
                "model. Give its Hardware a mismatch=MismatchParameter(...), "
                "stuck=StuckParameter(...) or a noise_model, put what stays digital on "
                "such hardware by Rule(params=..., rows=..., columns=...), or leave "
                "the chip seed out"
            )

    def _check_leaves(self) -> None:
        """Raises unless the variables contain everything that the plan names."""
        plan, params = self.plan, self._params
        self._check_nominal()
        pending = [weight for weight in plan.weights if weight.pending]
        if pending:
            raise HardwareCheckpointError(
                f"{pending[0].path}: its {pending[0].layer} does not multiply by this "
                f"array itself: {pending[0].derived}. A chip holds the derived "
                f"weights, which a call shows: write {self._with_example}"
            )
        missing = [path for path in plan if path not in params]
        missing += [entry.path for entry in plan.digital if entry.path not in params]
        if missing:
            raise HardwareCheckpointError(
                f"the plan names {', '.join(missing)}, which the parameters do not "
                f"have; they have {', '.join(params) or 'nothing'}. Make the "
                "plan from the model whose parameters these are"
            )
        names = {paths.join(leaf.keys) for leaf in self.leaves}
        names |= {leaf.path for leaf in self.leaves}
        lacking = [path for path in plan.state if path not in names]
        if lacking:
            raise HardwareCheckpointError(
                f"the variables have no {', '.join(lacking)}: the model of the plan "
                "cannot be evaluated without them. Export all of its variables, such "
                f"as {{'params': ..., {paths.split(lacking[0])[0]!r}: ...}} of Linen "
                "or nnx.state(model), or make the plan from variables without them"
            )
        values = {x.keys[1:]: x.value for x in params.values() if x.kind != "empty"}
        shapes = {
            keys: jax.ShapeDtypeStruct(np.shape(value), np.float32)
            for keys, value in values.items()
        }
        try:
            plan.check_leaves(paths.unflatten(shapes))
            check_fit(plan, paths.unflatten(values))
        except ValueError as error:
            raise HardwareCheckpointError(str(error)) from error

    def _check_nominal(self) -> None:
        """Raises if the weights are a chip's; these are stored beside nominal ones."""
        # In an NNX model, leaves of a chip beside its weights may be plain arrays.
        held = [x.keys for x in self.leaves if x.keys[0] in ("params", CONSTANTS)]
        trees = paths.unflatten({keys: 0 for keys in held if keys[1:]})
        found = [x for t in trees.values() for x in self.plan.leaves_of_chip(t)]
        if found:
            raise HardwareCheckpointError(
                f"export takes nominal weights, but these are a chip's: {found[0]} is "
                "stored beside them. Export checkpoint.variables; what was tuned on "
                "the chip and stays digital goes into them first, as "
                "docs/checkpoint.md shows at 'Chip in the loop'"
            )

    @property
    def _params(self) -> dict[str, Leaf]:
        return {leaf.path: leaf for leaf in self.leaves if leaf.keys[0] == "params"}

    def copy_to_host(self) -> None:
        """Copies all values, so that later training steps cannot change them."""
        self.leaves = [
            leaf
            if leaf.kind == "empty"
            else dataclasses.replace(leaf, value=np.array(leaf.array()))
            for leaf in self.leaves
        ]

    def write(self, directory: Path, report: Report | None = None) -> None:
        """Writes the checkpoint into an empty directory, the manifest last.

        One layer is in memory at a time.

        Args:
          directory: the directory.
          report: called with the number of written layers and the total.

        Raises:
          HardwareCheckpointError: if a reader would not accept the result.
        """
        try:
            self._write(directory, report)
        except ValidationError as error:
            raise HardwareCheckpointError(
                f"the plan and the variables cannot be written: "
                f"{manifests.problems(error)}. Make the plan from the model whose "
                "variables these are"
            ) from error

    def _write(self, directory: Path, report: Report | None) -> None:
        chips = sorted([*self.seeds, *self.measured])
        for folder in ["tensors", *map(chip_folder, chips)]:
            (directory / folder).mkdir(parents=True)
        files = _Files(directory, own_units(self.plan))
        layers = []
        for number, weight in enumerate(self.plan.weights):
            layers.append(self._write_layer(files, number, weight))
            if report is not None:
                report(number + 1, len(self.plan))
        modules: dict[tuple[str | int, ...], list[Leaf]] = {}
        for leaf in self.leaves:
            if leaf.tensor not in files.leaves:
                modules.setdefault(leaf.keys[:-1], []).append(leaf)
        number = len(layers)
        for module in modules.values():
            file = file_name("tensors", number)
            files.write(file, module)
            number += file in files.tensors
        manifest = manifests.Manifest(
            libraries={
                "hwtrain": __version__,
                **{name: importlib.metadata.version(name) for name in _LIBRARIES},
            },
            units=UNITS,
            rules=RULES,
            prefix=self.plan.prefix,
            state=self.plan.state,
            layers=tuple(layers),
            digital=self.plan.digital,
            others=tuple(others(self.plan, self.leaves)) or None,
            leaves=tuple(files.leaves[leaf.tensor] for leaf in self.leaves),
            chips=tuple(
                ChipEntry(
                    seed=seed,
                    measured=seed in self.measured,
                    files={
                        layer.weight.path: file_name(chip_folder(seed), number)
                        for number, layer in enumerate(layers)
                    },
                )
                for seed in chips
            ),
            graph=self.graph,
            accuracy=self.accuracy,
            files=files.tensors,
        )
        for folder in sorted(path for path in directory.rglob("*") if path.is_dir()):
            manifests.sync(folder)
        manifests.write(directory, manifest)

    def _write_layer(
        self, files: "_Files", number: int, weight: AnalogWeight
    ) -> LayerEntry:
        params = self._params
        check_values("", weight, _beside(weight, params))
        kernel = _within_bound(weight, params)
        scale = weight.stored_scale(params)
        bound = weight.stored_bound(params)
        crossbars = Crossbars(
            weight,
            kernel.array(),
            scale.array() if scale else None,
            bound.array() if bound else None,
        )
        content = {}
        if weight.hardware.converter is not None:
            for name, tile in crossbars.tiles():
                for device, g in tile.conductances.items():
                    content[f"{name}/{device}"] = (g, UNITS["conductance"])
                scales = {**tile.params, MAPPING_SCALE.name: tile.mapping_scale}
                for quantity, array in scales.items():
                    unit = scale_unit(weight.hardware.converter, quantity)
                    content[f"{name}/{quantity}"] = (array, unit)
        # A layer may hold two analog weights; its other leaves go to the first one.
        beside = [
            leaf
            for path, leaf in params.items()
            if path.rpartition("/")[0] == weight.layer_path
            and path not in self.plan
            and leaf.kind == "tensor"
            and leaf.tensor not in files.leaves
        ]
        file = file_name("tensors", number)
        files.write(file, [kernel, *beside], content)
        for seed in [*self.seeds, *self.measured]:
            chip_kernel, conductances = (
                crossbars.measured(self.measured[seed])
                if seed in self.measured
                else crossbars.chip(seed)
            )
            chip = {"kernel": (chip_kernel, chip_unit("kernel"))}
            for name, array in conductances:
                chip[name] = (array, chip_unit(name))
            files.write(file_name(chip_folder(seed), number), [], chip)
        return LayerEntry(
            weight=weight,
            stack=weight.stack,
            row_sizes=weight.row_sizes,
            column_sizes=weight.column_sizes,
            dtype=files.tensors[file][kernel.tensor].dtype,
            file=file,
            nominal=kernel.tensor,
            beside={leaf.path.rpartition("/")[2]: leaf.tensor for leaf in beside},
        )


def _beside(weight: AnalogWeight, params: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Returns the values of the leaves that a weight's hardware needs."""
    names = map(weight.leaf, weight.leaves())
    return {name: params[name].array() for name in names if name in params}


def _within_bound(weight: AnalogWeight, params: dict[str, Leaf]) -> Leaf:
    """Returns a weight's leaf as stored in hardware: clipped if its bound is learned.

    Only training needs the weights beyond a learned bound.
    """
    kernel, bound = params[weight.path], weight.stored_bound(params)
    if bound is None:
        return kernel
    array = kernel.array()
    check_kernel(weight, array)
    value = clipped(weight, jnp.asarray(array), jnp.asarray(bound.array()))
    return dataclasses.replace(kernel, value=np.asarray(value))


@dataclasses.dataclass
class _Files:
    """The files written so far, and their contents.

    Attributes:
      directory: the directory of the files.
      units: the units of the leaves of users' parts, by path.
      tensors: the tensor entries of each file.
      leaves: the entry of each leaf stored so far, by its tensor's name.
    """

    directory: Path
    units: Mapping[str, str]
    tensors: dict[str, dict[str, TensorEntry]] = dataclasses.field(default_factory=dict)
    leaves: dict[str, LeafEntry] = dataclasses.field(default_factory=dict)

    def write(
        self,
        file: str,
        leaves: list[Leaf],
        content: Mapping[str, tuple[np.ndarray, str]] | None = None,
    ) -> None:
        """Writes leaves and further tensors to one file."""
        content = dict(content or {})
        for leaf in leaves:
            entry: dict[str, Any] = {"keys": leaf.keys, "kind": leaf.kind}
            if leaf.kind != "empty":
                array = leaf.array()
                entry |= {"dtype": array.dtype.name, "shape": array.shape}
                if leaf.kind == "tensor":
                    where = paths.join(leaf.keys)
                    check_numbers(where, array)
                    check_parameter(where, leaf.keys, array)
                    content[leaf.tensor] = (array, nominal_unit(leaf.path, self.units))
                    entry |= {"file": file, "tensor": leaf.tensor}
                    entry["key_impl"] = leaf.key_impl
            self.leaves[leaf.tensor] = LeafEntry(**entry)
        if content:
            self.tensors[file] = tensors.write(self.directory / file, content)


def _checked_seed(seed: Any) -> int:
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed <= LARGEST_SEED:
        raise HardwareCheckpointError(
            f"a chip seed is a whole number from 0 to {LARGEST_SEED}; got {seed!r}"
        )
    return int(seed)
