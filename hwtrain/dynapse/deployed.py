"""A DynapSim on a chip: its deployment, and its parameters as the chip has them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from hwtrain.dynapse.connectivity import DYNAPSE2, Limits
from hwtrain.dynapse.deployment import Deployment, Tables, deploy
from hwtrain.dynapse.layout import Layout, currents, logarithms
from hwtrain.dynapse.weight_codes import BASES


def deploy_neurons(
    params: Mapping[str, Any],
    weights_in: ArrayLike,
    *,
    layout: Layout,
    table: Tables,
    chips: Mapping[int, Mapping[str, Any]] | None = None,
    cores: ArrayLike | None = None,
    limits: Limits = DYNAPSE2,
    seed: int = 0,
) -> Deployment:
    """Returns a layer of DynapSim neurons as codes for a DynapSE2-like chip.

    Its currents become bias codes, its weights masks; capacitances and constants are
    those of the silicon.

    >>> from hwtrain.dynapse.biases import computed_table
    >>> import jax.numpy as jnp
    >>> params = {"log_Itau_mem": jnp.zeros(2), "w_rec": jnp.array([[0, 0.5], [0, 0]])}
    >>> found = deploy_neurons(
    ...     params, [[1.0, 0.0]], layout=Layout(), table=computed_table())
    >>> deployed_params(found, layout=Layout())["w_rec"].round(2)
    Array([[0. , 0.5],
           [0. , 0. ]], dtype=float32)

    Args:
      params: the parameters of the DynapSim, nominal: equal for the neurons of a core.
      weights_in: `[inputs, neurons]`, the kernel before it.
      layout: its nominal quantities.
      table: as `deploy` takes it.
      chips: by seed, parameters of frozen chips, with their mismatch: stored as the
        chips', because codes cannot hold them.
      cores: as `deploy` takes it.
      limits: the limits of the chip.
      seed: of the search for base currents.

    Raises:
      ValueError: as `deploy`, or if nominal capacitances or constants are not those of
        the layout: no code changes them.
    """
    quantities = _in_si(params, layout)
    w_rec = quantities.pop("w_rec", None)
    biases = {name: value for name, value in quantities.items() if _is_bias(name)}
    for name in quantities.keys() - biases.keys():
        if not np.allclose(quantities[name], getattr(layout, name), rtol=1e-5, atol=0):
            raise ValueError(
                f"{name} was trained, or is that of one chip, but no code changes it: "
                "it is made of silicon. Export nominal parameters and give a chip's as "
                "chips={seed: params}"
            )
    found = {chip: _in_si(tree, layout) for chip, tree in (chips or {}).items()}
    return deploy(
        weights_in,
        w_rec,
        biases,
        iscale=layout.Iscale,
        table=table,
        cores=cores,
        chips={
            chip: {name: value for name, value in tree.items() if name != "w_rec"}
            for chip, tree in found.items()
        },
        limits=limits,
        seed=seed,
    )


def deployed_params(
    deployment: Deployment, *, layout: Layout, chip: int | None = None
) -> dict[str, jax.Array]:
    r"""Returns the parameters of the DynapSim as the chip has them, to simulate it.

    .. math:: I = I_\text{achieved} \frac{I_\text{chip}}{I_\text{wanted}}

    Args:
      deployment: what `deploy_neurons` returned, or was read back.
      layout: the nominal quantities of the DynapSim.
      chip: the seed of a frozen chip; `None` for the achieved values alone, and the
        capacitances and constants of the layout.

    Returns:
      Leaves `log_*` and `w_rec`. A leaf that the deployment says nothing of is missing:
      `{**params, **deployed_params(...)}`.

    Raises:
      ValueError: if the deployment has no such chip.
    """
    if chip is not None and chip not in deployment.chips:
        held = ", ".join(map(str, deployment.chips)) or "none"
        raise ValueError(f"the deployment holds no chip {chip}, it holds {held}")
    bases = {f"Iw_{number}" for number in range(BASES)}
    achieved = {n: i for n, i in deployment.currents.items() if n not in bases}
    where = deployment.cores
    wanted = {
        name: np.array([deployment.biases[core][name].wanted for core in where])
        for name in achieved
    }
    quantities: dict[str, Any] = dict(achieved)
    for name, value in deployment.chips[chip].items() if chip is not None else ():
        nominal = wanted.get(name, getattr(layout, name))
        quantities[name] = quantities.get(name, nominal) * value / nominal
    quantities["w_rec"] = deployment.weights_rec.achieved.astype(np.float32)
    return logarithms(quantities, layout)


def _in_si(params: Mapping[str, Any], layout: Layout) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in currents(params, layout).items()}


def _is_bias(name: str) -> bool:
    """Whether a chip is told this quantity; the others are silicon."""
    return name.startswith("I") and name not in ("Io", "Iscale")
