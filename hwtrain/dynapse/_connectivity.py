"""Limits on the connections of a DynapSE2-like chip."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from hwtrain._errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a chip; the defaults are those of a DynapSE2.

    Attributes:
      neurons_per_core: neurons in a core, which share their biases.
      cores_per_chip: cores on a chip.
      synapses_per_neuron: synapses of a neuron.
      destinations_per_neuron: chips that a neuron's spikes can reach; one entry of its
        routing memory reaches all cores of a chip.
      tags: tags on the bus; each source of spikes has one.
    """

    neurons_per_core: int = 256
    cores_per_chip: int = 4
    synapses_per_neuron: int = 64
    destinations_per_neuron: int = 4
    tags: int = 2048

    # Read from JSON: reject unknown fields, and text or booleans in place of numbers.
    __pydantic_config__ = {"strict": True, "extra": "forbid"}

    def __post_init__(self):
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            if not 1 <= number < 2**31:
                raise InputError(
                    f"{field.name} is a number from 1 to {2**31 - 1}, got {number}"
                )


DYNAPSE2 = Limits()
"""The limits of a DynapSE2."""


def fill_cores(neurons: int, limits: Limits = DYNAPSE2) -> np.ndarray:
    """Returns the core of each neuron, filling one core after the other.

    >>> fill_cores(5, Limits(neurons_per_core=2))
    array([0, 0, 1, 1, 2])
    """
    return np.arange(neurons) // limits.neurons_per_core


def check_connectivity(
    weights_in: np.ndarray,
    weights_rec: np.ndarray,
    cores: np.ndarray,
    limits: Limits = DYNAPSE2,
    names: Sequence[str] | None = None,
) -> None:
    """Raises if a network exceeds the chip's limits, listing every violation.

    Args:
      weights_in: `[inputs, neurons]`; zero for no synapse.
      weights_rec: `[neurons (from), neurons (to)]`; zero for no synapse.
      cores: `[neurons]` the core of each neuron.
      limits: the limits of the chip.
      names: the neurons' names for the message; `None` for their numbers.

    Raises:
      ValueError: listing cores with too many neurons, neurons with too many synapses
        or destinations, and too many sources of spikes.
    """
    problems = []
    numbers, sizes = np.unique(cores, return_counts=True)
    problems += _over(sizes, numbers, limits.neurons_per_core, "core", "neurons")
    synapses = (weights_in != 0).sum(axis=0) + (weights_rec != 0).sum(axis=0)
    neurons = np.arange(len(cores)) if names is None else np.array(names)
    limit = limits.synapses_per_neuron
    problems += _over(synapses, neurons, limit, "neuron", "synapses")
    chips = cores // limits.cores_per_chip
    reached = [np.unique(chips[row != 0]).size for row in weights_rec]
    limit = limits.destinations_per_neuron
    problems += _over(np.array(reached), neurons, limit, "neuron", "destinations")
    sources = (weights_in != 0).any(axis=1).sum() + (weights_rec != 0).any(axis=1).sum()
    if sources > limits.tags:
        problems.append(
            f"{sources} inputs and neurons send spikes, there are {limits.tags} tags"
        )
    if problems:
        raise InputError(
            "the network does not fit the chip: " + "; ".join(problems) + ". Prune its "
            "weights, spread its neurons over more cores, or give the Limits of "
            "another chip"
        )


def _over(
    counts: np.ndarray, numbers: np.ndarray, limit: int, where: str, what: str
) -> list[str]:
    found = [f"{number} ({n})" for number, n in zip(numbers, counts) if n > limit]
    if not found:
        return []
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return [f"more than {limit} {what}: {where} {', '.join(found[:10])}{more}"]
