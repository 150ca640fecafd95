"""Layers of DynapSim on a chip: their deployment, and what the chip makes of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

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
    """Returns layers of DynapSim neurons as codes for a DynapSE2-like chip.

    Currents become bias codes, weights masks; capacitances and constants are those of
    the silicon. Every layer gets cores of its own, because the neurons of a core share
    their biases; what the chip can connect is checked over all layers.

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
      layers: by name, in the order in which spikes pass through them, the parameters of
        each DynapSim, nominal: equal for the neurons of a core; and the kernel before
        it, `[inputs, neurons]`, without a bias. The inputs of all but the first layer
        are the neurons of the layer before.
      layout: the nominal quantities of all of them.
      table: as `deploy` takes it.
      chips: by seed, the layers of frozen chips, with their mismatch: stored as the
        chips', because codes cannot hold them.
      cores: `[neurons of all layers]` the core of each; `None` fills one after the
        other, and begins a new one with each layer.
      limits: the limits of the chip.
      seed: of the search for base currents.

    Raises:
      ValueError: as `deploy`; if a kernel does not fit the layers that it connects, or
        layers have different quantities; or if nominal capacitances or constants are
        not those of the layout: no code changes them.
    """
    sizes = _sizes(layers)
    quantities = _merged(layers, layout)
    weights = {name: quantities.pop(name) for name in WEIGHTS}
    biases = {name: value for name, value in quantities.items() if _is_bias(name)}
    for name in quantities.keys() - biases.keys():
        if not np.allclose(quantities[name], getattr(layout, name), rtol=1e-5, atol=0):
            raise ValueError(
                f"{name} was trained, or is that of one chip, but no code can change "
                "it: it is fixed in silicon. Export nominal parameters and give a "
                "chip's as chips={seed: layers}"
            )
    found: dict[int, Mapping[str, ArrayLike]] = {}
    for chip, its in (chips or {}).items():
        if _sizes(its) != sizes:
            raise ValueError(
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
    r"""Returns the layers as the chip has them, to simulate or to train them.

    .. math:: I = I_\text{achieved} \frac{I_\text{chip}}{I_\text{wanted}}

    and likewise for weights.

    Args:
      deployment: what `deploy_layers` returned, or was read back.
      layout: the nominal quantities of the DynapSim.
      chip: the seed of a frozen chip; `None` for the achieved values alone, and the
        capacitances and constants of the layout.

    Returns:
      What `deploy_layers` took: of each layer the leaves `log_*` and, if its neurons
      are connected, `w_rec`; and the kernel before it. A leaf that the deployment says
      nothing of is missing: `{**params, **deployed}`.

    Raises:
      ValueError: if the deployment has no such chip.
    """
    if chip is not None and chip not in deployment.chips:
        held = ", ".join(map(str, deployment.chips)) or "none"
        raise ValueError(f"the deployment holds no chip {chip}; it holds {held}")
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
        # A weight of zero has no synapse that could deviate.
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
    """Returns the number of neurons of each layer, whose kernels fit together."""
    sizes: dict[str, int] = {}
    for name, (_, kernel) in layers.items():
        shape = np.shape(kernel)
        before = list(sizes)[-1] if sizes else None
        rows = sizes[before] if before is not None else None
        if len(shape) != 2 or rows not in (None, shape[0]):
            where = "inputs" if before is None else f"{rows}, as {before!r} has neurons"
            raise ValueError(
                f"the kernel before the layer {name!r} should be [{where}; neurons], "
                f"that of a Dense(use_bias=False); got the shape {shape}"
            )
        sizes[name] = shape[1]
    if not sizes:
        raise ValueError("there are no layers to deploy")
    return sizes


def _slices(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Returns where the neurons of each layer lie."""
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends)}


def _merged(layers: Layers, layout: Layout) -> dict[str, np.ndarray]:
    """Returns all layers as one: quantities in SI units, and its two matrices."""
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
            raise ValueError(
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
    """Returns the core of each neuron; every layer begins a new one."""
    cores: list[np.ndarray] = []
    for size in sizes:
        start = cores[-1][-1] + 1 if cores else 0
        cores.append(start + fill_cores(size, limits))
    return np.concatenate(cores)


def _is_bias(name: str) -> bool:
    """Whether a chip is told this quantity; the others are silicon."""
    return name.startswith("I") and name not in ("Io", "Iscale")
