"""Histograms of a model's conductances, of a run or of a checkpoint."""

from collections.abc import Iterator

import numpy as np

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint._crossbars import Crossbars
from hwtrain.cli._options import Model
from hwtrain.evaluate._histograms import Histogram


def histograms_of(
    model: Model, chip: int | None = None, *, bins: int
) -> dict[str, Histogram]:
    """Returns a histogram of the conductances of each weight that has any, by path.

    Args:
      model: the model.
      chip: the seed of a chip of its checkpoint; `None` for the targets.
      bins: number of bins.

    Raises:
      ValueError: for a chip of a run, which has none.
    """
    found = {}
    if chip is not None and model.checkpoint is None:
        raise InputError(
            f"--chip {chip}: a run has no chips; export them first: hwtrain export RUN "
            f"OUT --chip {chip}"
        )
    for weight in model.plan.weights:
        converter = weight.hardware.converter
        if converter is not None:
            found[weight.path] = Histogram.of(
                _conductances(model, weight, chip),
                g_min=converter.g_min,
                g_max=converter.g_max,
                bins=bins,
            )
    return found


def _conductances(
    model: Model, weight: AnalogWeight, chip: int | None
) -> Iterator[np.ndarray]:
    """Yields the conductances of a weight's devices, tile by tile, in µS."""
    if model.checkpoint is not None:
        grid = model.checkpoint.conductances(weight.path, chip)
        tiles = [tile for row in grid for tile in row]
    else:
        params = paths.leaves(model.variables["params"])
        kernel, scale = params[weight.path], weight.stored_scale(params)
        crossbars = Crossbars(
            weight, np.asarray(kernel), None if scale is None else np.asarray(scale)
        )
        tiles = [tile for _, tile in crossbars.tiles()]
    for tile in tiles:
        for name, target in tile.conductances.items():
            device = tile.programmed.get(name)
            yield target if device is None else np.asarray(device.g_prog)
