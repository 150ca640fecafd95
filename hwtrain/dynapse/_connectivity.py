"""What a DynapSE2-like chip can connect."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a chip; the defaults are those of a DynapSE2.

    Attributes:
      neurons_per_core: neurons of a core, which share their biases.
      cores_per_chip: cores of a chip.
      synapses_per_neuron: synapses of a neuron.
      destinations_per_neuron: chips that the spikes of a neuron go to; one entry of its
        routing memory reaches all cores of a chip.
      tags: tags on the bus: every source of spikes has one.
    """

    neurons_per_core: int = 256
    cores_per_chip: int = 4
    synapses_per_neuron: int = 64
    destinations_per_neuron: int = 4
    tags: int = 2048

    # From JSON: no field that is not there, and no text or truth value for a number.
    __pydantic_config__ = {"strict": True, "extra": "forbid"}

    def __post_init__(self):
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            if not 1 <= number < 2**31:
                raise ValueError(
                    f"{field.name} is a number from 1 to {2**31 - 1}, got {number}"
                )


DYNAPSE2 = Limits()
"""The limits of a DynapSE2."""


def fill_cores(neurons: int, limits: Limits = DYNAPSE2) -> np.ndarray:
    """Returns the core of each neuron, one core filled after the other.

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
    """Raises where a network asks for more than the chip has, and lists where.

    Args:
      weights_in: `[inputs, neurons]`; zero for no synapse.
      weights_rec: `[neurons (from), neurons (to)]`; zero for no synapse.
      cores: `[neurons]` the core of each neuron.
      limits: the limits of the chip.
      names: of the neurons, for the message; `None` for their numbers.

    Raises:
      ValueError: with every offender: cores with too many neurons, neurons with too
        many synapses or destinations, too many sources of spikes.
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
        raise ValueError(
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
