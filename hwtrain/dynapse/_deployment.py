"""A network of DynapSim neurons as the codes of a DynapSE2-like chip."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from hwtrain._errors import InputError
from hwtrain.dynapse._biases import BiasCode, checked_table, nearest_code
from hwtrain.dynapse._connectivity import (
    DYNAPSE2,
    Limits,
    check_connectivity,
    fill_cores,
)
from hwtrain.dynapse._weight_codes import BASES, encode

Currents = Mapping[str, ArrayLike]
Tables = ArrayLike | Mapping[str, ArrayLike]
WEIGHTS = ("weights_in", "weights_rec")
"""Names of the two weight matrices of a deployment."""

_BASES = tuple(f"Iw_{number}" for number in range(BASES))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Synapses:
    """The synapses from one kind of source, as stored on the chip.

    Attributes:
      wanted: `[sources, neurons]` trained weights, dimensionless.
      mask: `[sources, neurons]` uint8: bit b switches base current b of the neuron's
        core on.
      sign: `[sources, neurons]` int8: 1 for the excitatory dendrite, -1 for the
        inhibitory one, 0 for no synapse.
      achieved: `[sources, neurons]` realised weights, dimensionless.
    """

    wanted: np.ndarray
    mask: np.ndarray
    sign: np.ndarray
    achieved: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """`[sources, neurons]` achieved minus wanted weights."""
        return self.achieved - self.wanted

    @property
    def lost(self) -> int:
        """Number of nonzero weights without a synapse."""
        return int(((self.wanted != 0) & (self.mask == 0)).sum())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Deployment:
    """A network as codes of a chip, with the values that the codes realise.

    Attributes:
      cores: `[neurons]` the core of each neuron.
      iscale: current of a weight of one, in A.
      biases: for each core the code of each bias, including the four base currents
        `Iw_0` to `Iw_3`.
      weights_in: the synapses from the inputs.
      weights_rec: the synapses from neurons.
      chips: by seed, the currents (and other constants) of each neuron of a frozen
        chip, `[neurons]` by name, and its `weights_in` and `weights_rec` if they
        deviate. Codes cannot express these: all neurons of a core share a bias.
      limits: the limits of the chip.
      layers: name and size of each layer of neurons, in order.
    """

    cores: np.ndarray
    iscale: float
    biases: Mapping[int, Mapping[str, BiasCode]]
    weights_in: Synapses
    weights_rec: Synapses
    chips: Mapping[int, Mapping[str, np.ndarray]]
    limits: Limits
    layers: Mapping[str, int]

    @property
    def currents(self) -> dict[str, np.ndarray]:
        """The achieved currents by name, `[neurons]`, in A, to simulate the chip."""
        names = next(iter(self.biases.values()))
        return {
            name: np.array([self.biases[core][name].achieved for core in self.cores])
            for name in names
        }


def deploy(
    weights_in: ArrayLike,
    weights_rec: ArrayLike | None,
    currents: Currents,
    *,
    iscale: float = 1e-8,
    table: Tables,
    cores: ArrayLike | None = None,
    chips: Mapping[int, Currents] | None = None,
    limits: Limits = DYNAPSE2,
    layers: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Deployment:
    r"""Returns a network as bias codes and weight masks, with the achieved values.

    .. math:: w_{ij} \approx \mathrm{sign}_{ij} \sum_b m_{ijb} I_b / I_\text{scale}

    >>> from hwtrain.dynapse._biases import computed_table
    >>> found = deploy(
    ...     [[1.0, -0.4], [0.6, 0.0]], None, {"Itau_mem": 5e-12, "Ispkthr": 1e-7},
    ...     table=computed_table())
    >>> print(found.weights_in.achieved.round(2))
    [[ 1.  -0.4]
     [ 0.6  0. ]]
    >>> print(found.currents["Ispkthr"])
    [1.00343137e-07 1.00343137e-07]

    Args:
      weights_in: `[inputs, neurons]`, dimensionless; zero for no synapse.
      weights_rec: `[neurons (from), neurons (to)]`, or `None` for none.
      currents: nominal current of each bias by name, in A: one number, or `[neurons]`
        with equal numbers in every core.
      iscale: current of a weight of one, in A.
      table: `[coarse, fine]` currents of the bias generator, in A, or a table for each
        bias by name. `computed_table()` is an idealised one.
      cores: `[neurons]` the core of each neuron; `None` fills one core after the other.
      chips: by seed, the currents (and other constants) of each neuron of a frozen
        chip, by name; its weights as `weights_in` and `weights_rec`.
      limits: the limits of the chip.
      layers: name and size of each layer of neurons, for messages and for reading back;
        `None` for one layer, `neurons`.
      seed: seed of the search for base currents.

    Raises:
      ValueError: if the network does not fit the chip, if the neurons of a core have
        different nominal currents, or if a current is outside the table.
    """
    inputs = np.asarray(weights_in, np.float64)
    neurons = inputs.shape[-1]
    rec = np.zeros((neurons, neurons)) if weights_rec is None else weights_rec
    rec = np.asarray(rec, np.float64)
    where = fill_cores(neurons, limits) if cores is None else np.asarray(cores)
    _check_shapes(inputs, rec, where, iscale)
    layers = {"neurons": neurons} if layers is None else dict(layers)
    check_connectivity(inputs, rec, where, limits, names=_names(layers))
    nominal = {name: _of_neurons(name, c, neurons) for name, c in currents.items()}
    tables = _tables_of(table, [*nominal, *_BASES])
    both = np.concatenate([inputs, rec])
    mask = np.zeros(both.shape, np.uint8)
    sign, achieved = np.zeros(both.shape, np.int8), np.zeros(both.shape)
    biases: dict[int, dict[str, BiasCode]] = {}
    for core in map(int, np.unique(where)):
        here = where == core
        biases[core] = {
            name: nearest_code(tables[name], _one_current(name, c[here], core), name)
            for name, c in nominal.items()
        }
        found = encode(both[:, here] * iscale, seed=seed, table=tables[_BASES[0]])
        for name, base in zip(_BASES, found.bases):
            biases[core][name] = nearest_code(tables[name], float(base), name)
        mask[:, here], sign[:, here] = found.mask, found.sign
        achieved[:, here] = found.achieved / iscale
    parts = [
        Synapses(wanted=both[p], mask=mask[p], sign=sign[p], achieved=achieved[p])
        for p in (slice(len(inputs)), slice(len(inputs), None))
    ]
    return Deployment(
        cores=where,
        iscale=float(iscale),
        biases=biases,
        weights_in=parts[0],
        weights_rec=parts[1],
        chips={
            int(seed): _of_chip(seed, chip, dict(zip(WEIGHTS, (inputs, rec))))
            for seed, chip in (chips or {}).items()
        },
        limits=limits,
        layers=layers,
    )


def _names(layers: Mapping[str, int]) -> list[str]:
    """Returns the name of each neuron: its number, or its layer and number."""
    if len(layers) == 1:
        return [str(number) for size in layers.values() for number in range(size)]
    return [
        f"{name}/{number}" for name, size in layers.items() for number in range(size)
    ]


def _of_chip(
    seed: int, chip: Currents, nominal: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the values of a frozen chip that differ from the nominal ones."""
    found = {}
    for name, value in chip.items():
        if name not in nominal:
            found[name] = _of_neurons(name, value, nominal["weights_in"].shape[-1])
            continue
        weights = np.asarray(value, np.float64)
        if weights.shape != nominal[name].shape:
            raise InputError(
                f"{name} of chip {seed} should have the shape "
                f"{list(nominal[name].shape)}, got {weights.shape}"
            )
        if (weights[nominal[name] == 0] != 0).any():
            raise InputError(
                f"{name} of chip {seed} has weights where the network has no synapse: "
                "mismatch cannot create one"
            )
        if (weights != nominal[name]).any():
            found[name] = weights
    return found


def _tables_of(table: Tables, names: list[str]) -> dict[str, np.ndarray]:
    """Returns the table of each bias."""
    if not isinstance(table, Mapping):
        return dict.fromkeys(names, checked_table(table))
    missing = [name for name in names if name not in table]
    if missing:
        raise InputError(
            f"there is no table for {', '.join(missing)}; there are tables for "
            f"{', '.join(table)}"
        )
    tables = {name: checked_table(table[name]) for name in names}
    if not all(np.array_equal(tables[_BASES[0]], tables[name]) for name in _BASES):
        raise InputError(
            "the base currents Iw_0 to Iw_3 must have one table in common: give the "
            "same table four times"
        )
    return tables


def _check_shapes(
    inputs: np.ndarray, rec: np.ndarray, cores: np.ndarray, iscale: float
) -> None:
    neurons = inputs.shape[-1]
    wanted = {
        "weights_in": (inputs.ndim == 2, inputs.shape, "[inputs, neurons]"),
        "weights_rec": (rec.shape == (neurons, neurons), rec.shape, f"[{neurons}] * 2"),
        "cores": (
            cores.shape == (neurons,) and np.issubdtype(cores.dtype, np.integer),
            cores.shape,
            f"[{neurons}] whole numbers",
        ),
    }
    for name, (right, shape, expected) in wanted.items():
        if not right:
            raise InputError(f"{name} should be {expected}, it has the shape {shape}")
    if not 0 < iscale < np.inf:
        raise InputError(f"iscale must be a positive current in A, got {iscale}")


def _of_neurons(name: str, current: ArrayLike, neurons: int) -> np.ndarray:
    array = np.asarray(current, np.float64)
    if array.shape not in ((), (neurons,)):
        raise InputError(
            f"{name} should be one current or [{neurons}], it has the shape "
            f"{array.shape}"
        )
    return np.broadcast_to(array, (neurons,))


def _one_current(name: str, currents: np.ndarray, core: int) -> float:
    # Equal values may differ by rounding if float32 computed them in different ways.
    if not np.allclose(currents, currents[0], rtol=1e-6, atol=0):
        raise InputError(
            f"the {len(currents)} neurons of core {core} have {name} from "
            f"{currents.min():.4g} to {currents.max():.4g} A, but a core has one bias "
            "for all. Give the nominal currents; a chip's mismatch goes into chips=, "
            "and neurons that were trained apart go to cores of their own"
        )
    return float(currents[0])
