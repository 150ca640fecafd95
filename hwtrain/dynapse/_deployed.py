"""Deploys DynapSim layers on a chip, and reads back the deployed layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hwtrain._errors import InputError
from hwtrain.dynapse._connectivity import DYNAPSE2, Limits, fill_cores
from hwtrain.dynapse._deployment import WEIGHTS, Deployment, Tables, deploy
from hwtrain.dynapse._layout import Layout, currents, logarithms
from hwtrain.dynapse._weight_codes import BASES

Layers = Mapping[str, tuple[Mapping[str, Any], ArrayLike]]


def deploy_layers(
    layers: Layers,
    *,
    layout: Layout,
    table: Tables,
    chips: Mapping[int, Layers] | None = None,
    cores: ArrayLike | None = None,
    limits: Limits = DYNAPSE2,
    seed: int = 0,
) -> Deployment:
    """Returns DynapSim layers as codes for a DynapSE2-like chip.

    Currents become bias codes and weights become masks; capacitances and constants are
    fixed in silicon. Each layer gets its own cores, because the neurons of a core share
    their biases. The chip's limits are checked for all layers together.

    >>> from hwtrain.dynapse._biases import computed_table
    >>> import jax.numpy as jnp
    >>> first = {"log_Itau_mem": jnp.zeros(2), "w_rec": jnp.array([[0, 0.5], [0, 0]])}
    >>> second = {"log_Itau_mem": jnp.ones(1)}
    >>> deployment = deploy_layers(
    ...     {"first": (first, [[1.0, 0.0]]), "second": (second, [[0.7], [-0.2]])},
    ...     layout=Layout(), table=computed_table())
    >>> print(deployment.cores)
    [0 0 1]
    >>> params, kernel = deployed_layers(deployment, layout=Layout())["second"]
    >>> print(kernel.round(2))
    [[ 0.7]
     [-0.2]]

    Args:
      layers: by name, in the order in which spikes pass through them: the nominal
        parameters of each DynapSim, equal for the neurons of a core, and the kernel
        before it, `[inputs, neurons]`, without a bias. The inputs of all but the first
        layer are the neurons of the previous layer.
      layout: the nominal quantities of all layers.
      table: as for `deploy`.
      chips: by seed, the layers of frozen chips with their mismatch. They are stored as
        values of each chip, because codes cannot express mismatch.
      cores: `[neurons of all layers]` the core of each neuron; `None` fills one core
        after the other, and starts a new one for each layer.
      limits: the limits of the chip.
      seed: seed of the search for base currents.

    Raises:
      ValueError: as for `deploy`; if a kernel does not fit the layers that it connects,
        if layers have different quantities, or if nominal capacitances or constants
        differ from the layout, because no code changes them.
        not those of the layout: no code changes them.
    """
    sizes = _sizes(layers)
    quantities = _merged(layers, layout)
    weights = {name: quantities.pop(name) for name in WEIGHTS}
    biases = {name: value for name, value in quantities.items() if _is_bias(name)}
    for name in quantities.keys() - biases.keys():
        if not np.allclose(quantities[name], getattr(layout, name), rtol=1e-5, atol=0):
            raise InputError(
                f"{name} was trained, or is that of one chip, but no code can change "
                "it: it is fixed in silicon. Export nominal parameters and give a "
                "chip's as chips={seed: layers}"
            )
    found: dict[int, Mapping[str, ArrayLike]] = {}
    for chip, its in (chips or {}).items():
        if _sizes(its) != sizes:
            raise InputError(
                f"chip {chip} has the layers {_sizes(its)}, the network has {sizes}"
            )
        found[chip] = _merged(its, layout)
    if cores is None:
        cores = _cores_of(list(sizes.values()), limits)
    return deploy(
        weights["weights_in"],
        weights["weights_rec"],
        biases,
        iscale=layout.Iscale,
        table=table,
        cores=cores,
        chips=found,
        limits=limits,
        layers=sizes,
        seed=seed,
    )


def deployed_layers(
    deployment: Deployment, *, layout: Layout, chip: int | None = None
) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    r"""Returns the layers as realised on the chip, for simulation or training.

    .. math:: I = I_\text{achieved} \frac{I_\text{chip}}{I_\text{wanted}}

    and likewise for weights.

    Args:
      deployment: from `deploy_layers`, or read back.
      layout: the nominal quantities of the DynapSim.
      chip: the seed of a frozen chip; `None` for the achieved values alone, with the
        capacitances and constants of the layout.

    Returns:
      The layers as `deploy_layers` takes them: for each, the leaves `log_*` and, if its
      neurons are connected, `w_rec`; and the kernel before it. Leaves that are not in
      the deployment are missing: write `{**params, **deployed}`.

    Raises:
      ValueError: if the deployment has no such chip.
    """
    if chip is not None and chip not in deployment.chips:
        held = ", ".join(map(str, deployment.chips)) or "none"
        raise InputError(f"the deployment holds no chip {chip}; it holds {held}")
    bases = {f"Iw_{number}" for number in range(BASES)}
    achieved = {n: i for n, i in deployment.currents.items() if n not in bases}
    where = deployment.cores
    wanted = {
        name: np.array([deployment.biases[core][name].wanted for core in where])
        for name in achieved
    }
    for name in WEIGHTS:
        achieved[name] = getattr(deployment, name).achieved
        wanted[name] = getattr(deployment, name).wanted
    quantities = dict(achieved)
    for name, value in deployment.chips[chip].items() if chip is not None else ():
        nominal = wanted[name] if name in wanted else getattr(layout, name)
        # A weight of zero has no synapse, so it cannot deviate.
        ratio = np.divide(value, nominal, out=np.ones_like(value), where=nominal != 0)
        quantities[name] = quantities.get(name, nominal) * ratio
    inputs, rec = (quantities.pop(name) for name in WEIGHTS)
    layers, before = {}, None
    for name, here in _slices(deployment.layers).items():
        kernel = inputs[:, here] if before is None else rec[before, here]
        params: dict[str, Any] = {n: value[here] for n, value in quantities.items()}
        if deployment.weights_rec.wanted[here, here].any():
            params["w_rec"] = rec[here, here].astype(np.float32)
        layers[name] = logarithms(params, layout), kernel.astype(np.float32)
        before = here
    return layers


def _sizes(layers: Layers) -> dict[str, int]:
    """Returns the number of neurons of each layer, after checking the kernels."""
    sizes: dict[str, int] = {}
    for name, (_, kernel) in layers.items():
        shape = np.shape(kernel)
        before = list(sizes)[-1] if sizes else None
        rows = sizes[before] if before is not None else None
        if len(shape) != 2 or rows not in (None, shape[0]):
            where = "inputs" if before is None else f"{rows}, as {before!r} has neurons"
            raise InputError(
                f"the kernel before the layer {name!r} should be [{where}; neurons], "
                f"that of a Dense(use_bias=False); got the shape {shape}"
            )
        sizes[name] = shape[1]
    if not sizes:
        raise InputError("there are no layers to deploy")
    return sizes


def _slices(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Returns the slice of each layer's neurons."""
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends)}


def _merged(layers: Layers, layout: Layout) -> dict[str, np.ndarray]:
    """Returns all layers merged: quantities in SI units, and two weight matrices."""
    sizes = _sizes(layers)
    total, before = sum(sizes.values()), None
    first = np.asarray(next(iter(layers.values()))[1])
    inputs, rec = np.zeros((len(first), total)), np.zeros((total, total))
    parts: dict[str, list[np.ndarray]] = {}
    for name, here in _slices(sizes).items():
        params, kernel = layers[name]
        if before is None:
            inputs[:, here] = kernel
        else:
            rec[before, here] = kernel
        found = {n: np.asarray(v) for n, v in currents(params, layout).items()}
        if "w_rec" in found:
            rec[here, here] = found.pop("w_rec")
        if before is not None and found.keys() != parts.keys():
            raise InputError(
                f"the layer {name!r} and the one before differ in their quantities: "
                f"{sorted(found.keys() ^ parts.keys())}. Either all layers are "
                "reference=True or none is"
            )
        for quantity, value in found.items():
            part = np.broadcast_to(value, sizes[name])
            parts.setdefault(quantity, []).append(part)
        before = here
    merged = {name: np.concatenate(values) for name, values in parts.items()}
    return merged | {"weights_in": inputs, "weights_rec": rec}


def _cores_of(sizes: list[int], limits: Limits) -> np.ndarray:
    """Returns the core of each neuron; each layer starts a new core."""
    cores: list[np.ndarray] = []
    for size in sizes:
        start = cores[-1][-1] + 1 if cores else 0
        cores.append(start + fill_cores(size, limits))
    return np.concatenate(cores)


def _is_bias(name: str) -> bool:
    """Whether a quantity is a bias of the chip; the others are fixed in silicon."""
    return name.startswith("I") and name not in ("Io", "Iscale")
