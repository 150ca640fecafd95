"""The contents of a hardware-ready checkpoint, and its manifest."""

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from pydantic import ValidationError

from hwtrain._arrays import paths
from hwtrain._arrays.shared import is_shared
from hwtrain._plan.plan import Plan
from hwtrain._plan.stale_leaves import check_fit
from hwtrain._version import __version__
from hwtrain.checkpoint import _manifest as manifests
from hwtrain.checkpoint._description import Graph, Measurement
from hwtrain.checkpoint._entries import (
    LARGEST_SEED,
    ChipEntry,
    LayerEntry,
    LeafEntry,
)
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._items import Item, Tensors, Writer, items_of
from hwtrain.checkpoint._layout import chip_folder, file_name, own_units
from hwtrain.checkpoint._named import others
from hwtrain.checkpoint._of_nnx import CONSTANTS
from hwtrain.checkpoint._progress import Report
from hwtrain.checkpoint._read_back import Conductances, check_conductances
from hwtrain.checkpoint._variables import Leaf, flatten
from hwtrain.checkpoint._words import RULES, UNITS

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
        self.shared = is_shared([leaf.value for leaf in self.leaves])
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
        if self.seeds and not any(w.differs for w in plan.weights):
            on_chip = ", ".join(self.plan) or "none, the model is digital"
            raise HardwareCheckpointError(
                f"chip {self.seeds[0]} would be the nominal model: no weight of the "
                f"plan ({on_chip}) has a frozen mismatch, stuck devices, a noise model "
                "or frozen spreads around it. Give its Hardware a "
                "mismatch=MismatchParameter(...), stuck=StuckParameter(...), a "
                "noise_model or such a stage in forward, put what stays digital on "
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

    def items(self) -> list[Item]:
        """Returns what each file holds."""
        return items_of(self.plan, self.leaves)

    def write(
        self,
        directory: Path,
        items: Iterable[Item] | None = None,
        report: Report | None = None,
    ) -> None:
        """Writes the checkpoint into an empty directory, the manifest last.

        Args:
          directory: the directory.
          items: all items, on the host; by default one is copied there at a time.
          report: called with the number of written layers and the total.

        Raises:
          HardwareCheckpointError: if a reader would not accept the result.
        """
        writer, tensors = self.writer(directory), {}
        layers = len(self.plan)
        items = (item.on_host() for item in self.items()) if items is None else items
        for done, item in enumerate(items, 1):
            tensors |= writer.write(item)
            if report is not None and done <= layers:
                report(done, layers)
        self.finish(directory, tensors)

    def writer(self, directory: Path) -> Writer:
        """Makes the folders of the files, and returns what writes these."""
        for folder in ["tensors", *map(chip_folder, self._chips)]:
            (directory / folder).mkdir(parents=True, exist_ok=True)
        return Writer(
            directory=directory,
            units=own_units(self.plan),
            seeds=self.seeds,
            measured=self.measured,
        )

    def finish(self, directory: Path, tensors: Tensors) -> None:
        """Writes the manifest; it is on disk on return, after all files.

        Args:
          directory: the directory.
          tensors: the entries of all tensors.

        Raises:
          HardwareCheckpointError: if a reader would not accept the manifest.
        """
        try:
            manifest = self._manifest(tensors)
        except ValidationError as error:
            raise HardwareCheckpointError(
                f"the plan and the variables cannot be written: "
                f"{manifests.problems(error)}. Make the plan from the model whose "
                "variables these are"
            ) from error
        for folder in sorted(path for path in directory.rglob("*") if path.is_dir()):
            manifests.sync(folder)
        manifests.write(directory, manifest)

    @property
    def _chips(self) -> list[int]:
        return sorted([*self.seeds, *self.measured])

    def _manifest(self, tensors: Tensors) -> manifests.Manifest:
        items = self.items()
        layers = [item for item in items if item.weight is not None]
        files = {leaf.tensor: item.file for item in items for leaf in item.leaves}
        return manifests.Manifest(
            libraries={
                "hwtrain": __version__,
                **{name: importlib.metadata.version(name) for name in _LIBRARIES},
            },
            units=UNITS,
            rules=RULES,
            prefix=self.plan.prefix,
            state=self.plan.state,
            layers=tuple(_layer_entry(item) for item in layers),
            digital=self.plan.digital,
            others=tuple(others(self.plan, self.leaves)) or None,
            outputs=self.plan.outputs or None,
            leaves=tuple(
                _leaf_entry(leaf, files.get(leaf.tensor)) for leaf in self.leaves
            ),
            chips=tuple(
                ChipEntry(
                    seed=seed,
                    measured=seed in self.measured,
                    files={
                        item.weight.path: file_name(chip_folder(seed), item.number)
                        for item in layers
                        if item.weight is not None
                    },
                )
                for seed in self._chips
            ),
            graph=self.graph,
            accuracy=self.accuracy,
            # In the order of the items, whichever process wrote them.
            files=dict(sorted(tensors.items())),
        )


def _layer_entry(item: Item) -> LayerEntry:
    weight: Any = item.weight
    kernel, *beside = item.leaves
    return LayerEntry(
        weight=weight,
        stack=weight.stack,
        row_sizes=weight.row_sizes,
        column_sizes=weight.column_sizes,
        dtype=kernel.dtype.name,
        file=item.file,
        nominal=kernel.tensor,
        beside={leaf.path.rpartition("/")[2]: leaf.tensor for leaf in beside},
    )


def _leaf_entry(leaf: Leaf, file: str | None) -> LeafEntry:
    entry: dict[str, Any] = {"keys": leaf.keys, "kind": leaf.kind}
    if leaf.kind != "empty":
        entry |= {"dtype": leaf.dtype.name, "shape": leaf.shape}
    if leaf.kind == "tensor":
        entry |= {"file": file, "tensor": leaf.tensor, "key_impl": leaf.key_impl}
    return LeafEntry(**entry)


def _checked_seed(seed: Any) -> int:
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed <= LARGEST_SEED:
        raise HardwareCheckpointError(
            f"a chip seed is a whole number from 0 to {LARGEST_SEED}; got {seed!r}"
        )
    return int(seed)
