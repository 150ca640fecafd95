"""The parameters of a Flax model, and its hardware, from a trained model."""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain._errors import InputError
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.rules import Rule
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint.importers._modules import Module, Tile, Trained
from hwtrain.checkpoint.importers._pairing import flattened, pairs
from hwtrain.checkpoint.importers._places import Entry, Place, entries, places
from hwtrain.checkpoint.importers._records import Data, hardware_of, shortened, together
from hwtrain.periphery.input_range import RANGE
from hwtrain.weights.clip import CLIP_BOUND
from hwtrain.weights.mapping import MAPPING_SCALE, OUTPUT_SCALE, largest_stored

_EQUAL = 1e-6
"""Relative difference of scales that are equal up to rounding."""

_FIELDS = dataclasses.fields(Tile)

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The Flax model that gets the parameters.

    Attributes:
      shapes: of its variables by path without a collection, in the order in which the
        model makes them.
      collections: the collection of each path, such as `params`.
      plan: its plan with the hardware that is given to `analogize`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    collections: Mapping[str, str]
    plan: Callable[[Any], Plan]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """What of a trained model became of it.

    Attributes:
      hardware: tables `hardware` and `rules`, as a configuration has them.
      plain: the plain model's arrays by path; learned scales are part of the weights.
      analog: the arrays of the hardware-aware model by path, with its leaves.
      names: paths of the model by names of the file.
      lost: what hwtrain does not have, or has in another way.
    """

    hardware: Data
    plain: Arrays
    analog: Arrays
    names: Mapping[str, str]
    lost: tuple[str, ...]


def parameters(
    trained: Trained, target: Target, names: Mapping[str, str] | None = None
) -> Imported:
    """Returns the parameters and the hardware of a Flax model.

    Args:
      trained: from `read_aihwkit` or `read_lightning`.
      target: the Flax model.
      names: modules of the model by modules of the file; those that it leaves out are
        paired by order among those of equal sizes.

    Raises:
      ValueError: if the modules cannot be paired, or a layer has other tiles.
    """
    for module in trained.modules:
        _check_finite(f"{trained.source}: {module.name}", module)
    shapes, ideal = target.shapes, target.plan(Hardware())
    made = pairs(entries(trained.modules), places(shapes, ideal), names or {})
    lost = list(trained.lost)
    layers: dict[str, Data] = {}
    bounds: list[Data] = []
    plain: Arrays = {}
    leaves: dict[str, Arrays] = {}
    for entry, place in made:
        if entry.module.hardware is not None and not entry.array:
            assert place.weight is not None
            hardware, kernel, found = _layer(entry.module, place.weight, lost, bounds)
            layers[place.name], leaves[place.arrays["kernel"]] = hardware, found
            plain[place.arrays["kernel"]] = kernel
        for role, array in _digital(entry, place).items():
            path = place.arrays[role]
            if array.size != math.prod(shapes[path]):
                raise InputError(
                    f"{trained.source}: {entry.name}: expected a {role} of "
                    f"{math.prod(shapes[path])} numbers, as {path} of the model has, "
                    f"got one of the shape {array.shape}"
                )
            plain[path] = array.reshape(shapes[path])
    # The same for all, so that layers of equal hardware keep equal hardware.
    largest = _rounded_up(max([1.0, *(clip["fixed_value"] for clip in bounds)]))
    for clip in bounds:
        clip["fixed_value"] = largest
    layers = {name: shortened(data) for name, data in layers.items()}
    hardware, rules = _tables(layers, made)
    given = _assigned(hardware, rules)
    planned = target.plan(given)
    analog = {f"{target.collections[x]}/{x}": array for x, array in plain.items()}
    folded = dict(analog)
    for path, found in leaves.items():
        weight = planned[path]
        for name, value in found.items():
            analog[f"params/{weight.leaf(name)}"] = value
        folded[f"params/{path}"] = _function(weight, plain[path], found)
    for name in flattened(made):
        lost.append(
            f"{name}: the order of its inputs, if they are a flattened image: PyTorch "
            "has channels first, so the model must transpose to [batch, channels, "
            "height, width] before it flattens"
        )
    return Imported(
        hardware={"hardware": hardware, **({"rules": rules} if rules else {})},
        plain=folded,
        analog=analog,
        names={entry.name: place.name for entry, place in made},
        lost=together(lost),
    )


def _check_finite(where: str, module: Module) -> None:
    """Raises for NaN and infinity in the arrays of a module, by the array's name."""
    found = list(module.arrays.items())
    for tile in itertools.chain(*module.tiles):
        found += [(field.name, getattr(tile, field.name)) for field in _FIELDS]
    for name, array in found:
        if array is not None and not np.isfinite(array).all():
            raise InputError(
                f"{where}: {name}: expected finite numbers, got NaN or infinity"
            )


def _digital(entry: Entry, place: Place) -> Arrays:
    arrays = entry.module.arrays
    if "array" in place.arrays:
        return {"array": arrays[entry.array or "scale"]}
    if "embedding" in place.arrays:
        return {"embedding": arrays["weight"]}
    if place.weight is None:
        return {role: arrays[role] for role in place.arrays}
    found = {role: arrays[role] for role in place.arrays if role in arrays}
    if not entry.module.tiles:
        matrix = arrays["weight"].reshape(arrays["weight"].shape[0], -1)
        found["kernel"] = _kernel(place.weight, matrix)
    return found


def _kernel(weight: AnalogWeight, matrix: np.ndarray) -> np.ndarray:
    """Returns a stored array from a matrix `[out, in]` of PyTorch."""
    groups = weight.groups
    if groups > 1:
        # Outputs of one group follow each other.
        matrix = matrix.reshape(groups, -1, matrix.shape[1])
    array = jnp.asarray(np.swapaxes(matrix, -1, -2), jnp.float32)
    return np.asarray(weight.from_matrix(array))


def _layer(
    module: Module, weight: AnalogWeight, lost: list[str], bounds: list[Data]
) -> tuple[Data, np.ndarray, Arrays]:
    """Returns a layer's hardware, its kernel, and the leaves beside it by name."""
    assert module.hardware is not None
    data: Data = {name: dict(part) for name, part in module.hardware.items()}
    tiles = module.tiles
    planned = _on(module.name, weight, data)
    sizes = [row[0].weight.shape[1] for row in tiles]
    widths = [tile.weight.shape[0] for tile in tiles[0]]
    if [*planned.row_sizes] != sizes or [*planned.column_sizes] != widths:
        raise InputError(
            f"{module.name}: expected tiles with {planned.row_sizes} inputs and "
            f"{planned.column_sizes} outputs by its mapping, got {tuple(sizes)} and "
            f"{tuple(widths)}"
        )
    crossbar = np.block([[tile.weight for tile in row] for row in _columns(tiles)]).T
    found: Arrays = {}
    logical = crossbar
    if tiles[0][0].scale is not None:
        scale = _spread(tiles, "scale", widths)
        if not (scale > 0).all():
            raise InputError(
                f"{module.name}: expected mapping scales above 0, got {scale.min():g}"
            )
        logical = np.repeat(scale, sizes, axis=0) * crossbar
        stored = _keep_scale(module.name, weight, data, scale, crossbar, lost, bounds)
        if stored is not None:
            found[MAPPING_SCALE.name] = stored
    if tiles[0][0].input_range is not None:
        ranges = [[tile.input_range for tile in row] for row in tiles]
        found[RANGE.name] = np.asarray(ranges, np.float32)
    if tiles[0][0].bound is not None:
        found[CLIP_BOUND.name] = _spread(tiles, "bound", widths)
    if tiles[0][0].output_scale is not None:
        found[OUTPUT_SCALE.name] = _output_scale(module.name, data, tiles, widths, lost)
    return data, _kernel(weight, logical.T), found


def _columns(tiles: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Returns tiles by column tile and row tile, as a matrix `[out, in]` has them."""
    return [list(column) for column in zip(*tiles)]


def _spread(tiles: Any, name: str, widths: Sequence[int]) -> np.ndarray:
    """Returns a quantity of tiles for each column, `[row tiles, columns]`."""
    rows = [
        np.concatenate(
            [
                np.broadcast_to(getattr(tile, name), width)
                for tile, width in zip(row, widths)
            ]
        )
        for row in tiles
    ]
    return np.stack(rows).astype(np.float32)


def _on(name: str, weight: AnalogWeight, data: Data) -> AnalogWeight:
    return dataclasses.replace(weight, hardware=hardware_of(data, f"{name}: "))


def _keep_scale(
    name: str,
    weight: AnalogWeight,
    data: Data,
    scale: np.ndarray,
    crossbar: np.ndarray,
    lost: list[str],
    bounds: list[Data],
) -> np.ndarray | None:
    """Returns the mapping scales to store; `None` if they follow from the weights.

    hwtrain stores a scale only beside a remap or an absolute clip. Without one, a bound
    is added to the hardware that clips none of the weights.

    Args:
      name: the layer.
      weight: its plan.
      data: its hardware, which is changed.
      scale: `[row tiles, columns]`.
      crossbar: `[rows, columns]`, weights in units of the crossbar.
      lost: where the change is listed.
      bounds: where an added bound is listed.
    """
    planned, mapping = _on(name, weight, data), data["mapping"]
    logical = jnp.asarray(np.repeat(scale, planned.row_sizes, axis=0) * crossbar)
    derived = planned.derived_scale(logical)
    derived = 1.0 if derived is None else np.asarray(planned.of_columns(derived))
    hardware = planned.hardware
    if not hardware.stores_scale and np.allclose(scale, derived, rtol=_EQUAL, atol=0):
        return None
    one = np.allclose(scale, 1, rtol=_EQUAL, atol=0)
    if not mapping["weight_scaling_omega"] and not hardware.remaps and not one:
        mapping["weight_scaling_omega"] = 1.0
        lost.append(f"{name}: mapping.weight_scaling_omega=0, which has scales of 1")
    largest = float(abs(crossbar).max())
    limit = largest_stored(_on(name, weight, data))
    if not hardware.stores_scale or (limit is not None and largest > limit):
        before = data.get("clip")
        data["clip"] = {"type": "fixed_value", "fixed_value": max(1.0, largest)}
        bounds.append(data["clip"])
        added = "a fixed bound above all weights is added"
        if before is not None:
            fields = ", ".join(f"{x}={value}" for x, value in before.items())
            added = f"({fields}), whose place a fixed bound above all weights takes"
        lost.append(
            f"{name}: clip: {added}, because hwtrain keeps the mapping scales of the "
            "file beside a fixed bound only"
        )
    ends = np.cumsum(planned.column_sizes)
    of_tiles = scale[:, ends - 1]
    if (np.asarray(planned.of_columns(jnp.asarray(of_tiles))) != scale).any():
        remap = data.get("remap", {"type": "none"})["type"]
        if (
            remap != "channelwise_symmetric"
            and "weight_scaling_columnwise" not in mapping
        ):
            mapping["weight_scaling_columnwise"] = True
            lost.append(f"{name}: mapping.weight_scaling_columnwise=False, as it began")
            if not mapping["weight_scaling_omega"]:
                mapping["weight_scaling_omega"] = 1.0
                lost.append(f"{name}: mapping.weight_scaling_omega=0, as it began")
    wanted = _on(name, weight, data).initial_scale(logical).shape
    return scale if wanted == scale.shape else of_tiles


def _rounded_up(value: float) -> float:
    """Returns a number of three digits that is not smaller.

    >>> _rounded_up(1.2341)
    1.24
    """
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / step * (1 - 1e-9)) * step:.6g}")


def _output_scale(
    name: str, data: Data, tiles: Any, widths: Sequence[int], lost: list[str]
) -> np.ndarray:
    found = _spread(tiles, "output_scale", widths)
    mapping = data["mapping"]
    if mapping.get("out_scaling_columnwise"):
        return found
    if (found == found[:, :1]).all():
        return found[:, :1]
    mapping["out_scaling_columnwise"] = True
    lost.append(
        f"{name}: mapping.out_scaling_columnwise=False: hwtrain has one output scale "
        "for each row of tiles, aihwkit one for each tile, so each column has its own"
    )
    return found


def _tables(
    layers: Mapping[str, Data], made: Sequence[tuple[Entry, Place]]
) -> tuple[Data, list[Data]]:
    """Returns the hardware of most layers, and rules for the others."""
    texts = [json.dumps(data, sort_keys=True) for data in layers.values()]
    if not texts:
        raise InputError(
            "expected analog layers, got none of the model's: all of the file's are "
            "digital"
        )
    common = max(texts, key=texts.count)
    base = next(x for x, text in zip(layers.values(), texts) if text == common)
    rules: list[Data] = []
    for (name, data), text in zip(layers.items(), texts):
        if text != common:
            rules.append({"pattern": re.escape(name), "hardware": data})
    for _, place in made:
        if place.weight is not None and place.name not in layers:
            rules.append({"pattern": re.escape(place.name), "digital": True})
    return base, rules


def _assigned(hardware: Data, rules: Sequence[Data]) -> Any:
    """Returns tables of a configuration as `analogize` takes them."""
    base = hardware_of(hardware)
    found = [
        Rule(
            rule["pattern"],
            None if rule.get("digital") else hardware_of(rule["hardware"]),
        )
        for rule in rules
    ]
    return (*found, base) if found else base


def _function(weight: AnalogWeight, kernel: np.ndarray, leaves: Arrays) -> np.ndarray:
    """Returns the kernel of the plain model, with learned scales and bounds in it."""
    array = jnp.asarray(kernel)
    if CLIP_BOUND.name in leaves:
        bound = weight.spread(jnp.asarray(leaves[CLIP_BOUND.name]))
        array = jnp.clip(array, -bound, bound)
    if OUTPUT_SCALE.name in leaves:
        array = array * weight.spread(jnp.asarray(leaves[OUTPUT_SCALE.name]))
    return np.asarray(array)
