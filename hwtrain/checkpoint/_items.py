"""The files of a checkpoint, one at a time: what each holds, and how it is written."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors

from hwtrain._arrays import paths
from hwtrain._arrays.shared import gathered
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import _tensors as tensors
from hwtrain.checkpoint._crossbars import Crossbars, check_kernel
from hwtrain.checkpoint._entries import TensorEntry
from hwtrain.checkpoint._layout import (
    chip_folder,
    chip_unit,
    file_name,
    nominal_unit,
    scale_unit,
)
from hwtrain.checkpoint._read_back import Conductances
from hwtrain.checkpoint._values import check_numbers, check_parameter, check_values
from hwtrain.checkpoint._variables import Leaf
from hwtrain.checkpoint._words import UNITS
from hwtrain.chips._clip_bounds import clipped
from hwtrain.weights.mapping import MAPPING_SCALE

Tensors = dict[str, dict[str, TensorEntry]]
"""The entries of tensors, by file and name."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """The leaves of one layer or module, and the file that they are written to.

    Attributes:
      number: the number of the file.
      leaves: the leaves that it holds, the weight of a layer first.
      further: other leaves that the values of a layer depend on.
      weight: the plan of a layer's weight; `None` for a digital module.
    """

    number: int
    leaves: tuple[Leaf, ...]
    further: tuple[Leaf, ...] = ()
    weight: AnalogWeight | None = None

    @property
    def file(self) -> str:
        """The name of the file."""
        return file_name("tensors", self.number)

    @property
    def bytes(self) -> int:
        """The size of its leaves in bytes."""
        return sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize
            for leaf in (*self.leaves, *self.further)
        )

    def require_values(self) -> None:
        """Raises if a leaf is only a shape."""
        for leaf in (*self.leaves, *self.further):
            leaf.require_value()

    def on_host(self, reader: int | None = None) -> "Item":
        """Returns the item with its values on the host.

        Args:
          reader: the process that gets them; the others, which call it too if an array
            is shared, get the item as it is.
        """
        self.require_values()
        leaves = (*self.leaves, *self.further)
        arrays = gathered([leaf.value for leaf in leaves], reader)
        if not arrays:
            return self
        held = [dataclasses.replace(x, value=a) for x, a in zip(leaves, arrays)]
        count = len(self.leaves)
        return dataclasses.replace(
            self, leaves=tuple(held[:count]), further=tuple(held[count:])
        )

    def check(self) -> None:
        """Raises for values on the host that a checkpoint cannot hold.

        Raises:
          HardwareCheckpointError: naming the leaf.
        """
        if self.weight is not None:
            held = {x.path: x.array() for x in (*self.leaves, *self.further)}
            check_values("", self.weight, held)
            check_kernel(self.weight, held[self.weight.path])
        for leaf in self.leaves:
            where, array = paths.join(leaf.keys), leaf.array()
            check_numbers(where, array)
            check_parameter(where, leaf.keys, array)


def items_of(plan: Plan, leaves: Sequence[Leaf]) -> list[Item]:
    """Returns what each file holds: layers in the plan's order, then modules.

    Args:
      plan: the plan.
      leaves: all leaves of the variables, sorted.
    """
    params = {leaf.path: leaf for leaf in leaves if leaf.keys[0] == "params"}
    beside: dict[str, list[Leaf]] = {}
    for path, leaf in params.items():
        if path not in plan and leaf.kind == "tensor":
            beside.setdefault(path.rpartition("/")[0], []).append(leaf)
    items, stored = [], set()
    for number, weight in enumerate(plan.weights):
        # A layer may hold two analog weights; its other leaves go to the first one.
        of_layer = beside.get(weight.layer_path, [])
        held = [x for x in of_layer if x.tensor not in stored]
        held = [params[weight.path], *held]
        names = {leaf.tensor for leaf in held}
        stored |= names
        needed = (params.get(weight.leaf(spec)) for spec in weight.leaves())
        further = [x for x in needed if x and not x.probe and x.tensor not in names]
        items.append(
            Item(
                number=number,
                leaves=tuple(held),
                further=tuple(further),
                weight=weight,
            )
        )
    modules: dict[tuple[str | int, ...], list[Leaf]] = {}
    for leaf in leaves:
        if leaf.kind == "tensor" and leaf.tensor not in stored:
            modules.setdefault(leaf.keys[:-1], []).append(leaf)
    for number, module in enumerate(modules.values(), len(items)):
        items.append(Item(number=number, leaves=tuple(module)))
    return items


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes items into the directory of a checkpoint.

    Attributes:
      directory: the directory.
      units: the units of the leaves of users' parts, by path; from `own_units`.
      seeds: the seeds of the drawn chips.
      measured: the conductances of the measured ones, by number.
    """

    directory: Path
    units: Mapping[str, str]
    seeds: Sequence[int] = ()
    measured: Mapping[int, Conductances] = dataclasses.field(default_factory=dict)

    def write(self, item: Item) -> Tensors:
        """Writes the files of an item on the host; they are on disk on return.

        Returns:
          The entries of their tensors.

        Raises:
          HardwareCheckpointError: if a reader would not accept a value.
          OSError: if a file cannot be written.
        """
        try:
            return dict(self._files(item))
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error

    def _files(self, item: Item) -> Iterator[tuple[str, dict[str, TensorEntry]]]:
        weight, leaves = item.weight, list(item.leaves)
        if weight is None:
            yield item.file, self._file(item.file, leaves)
            return
        params = {leaf.path: leaf for leaf in (*item.leaves, *item.further)}
        check_values("", weight, {path: leaf.array() for path, leaf in params.items()})
        leaves[0] = kernel = _within_bound(weight, params)
        scale = weight.stored_scale(params)
        bound = weight.stored_bound(params)
        crossbars = Crossbars(
            weight,
            kernel.array(),
            scale.array() if scale else None,
            bound.array() if bound else None,
        )
        content = dict(_targets(weight, crossbars))
        yield item.file, self._file(item.file, leaves, content)
        content.clear()
        for seed in [*self.seeds, *self.measured]:
            chip_kernel, conductances = (
                crossbars.measured(self.measured[seed])
                if seed in self.measured
                else crossbars.chip(seed)
            )
            chip = {"kernel": (chip_kernel, chip_unit("kernel"))}
            for name, array in conductances:
                chip[name] = (array, chip_unit(name))
            file = file_name(chip_folder(seed), item.number)
            yield file, self._file(file, (), chip)

    def _file(
        self,
        file: str,
        leaves: Iterable[Leaf],
        content: Mapping[str, tuple[np.ndarray, str]] | None = None,
    ) -> dict[str, TensorEntry]:
        """Writes leaves and further tensors to one file."""
        content = dict(content or {})
        for leaf in leaves:
            where, array = paths.join(leaf.keys), leaf.array()
            check_numbers(where, array)
            check_parameter(where, leaf.keys, array)
            content[leaf.tensor] = (array, nominal_unit(leaf.path, self.units))
        return tensors.write(self.directory / file, content)


def _targets(
    weight: AnalogWeight, crossbars: Crossbars
) -> Iterator[tuple[str, tuple[np.ndarray, str]]]:
    """Yields the nominal tensors of a layer's tiles with their units, by name."""
    converter = weight.hardware.converter
    if converter is None:
        return
    for name, tile in crossbars.tiles():
        for device, g in tile.conductances.items():
            yield f"{name}/{device}", (g, UNITS["conductance"])
        scales = {**tile.params, MAPPING_SCALE.name: tile.mapping_scale}
        for quantity, array in scales.items():
            yield f"{name}/{quantity}", (array, scale_unit(converter, quantity))


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
