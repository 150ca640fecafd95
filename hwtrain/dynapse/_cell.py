"""The step shared by the Linen and the NNX cell."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from hwtrain.dynapse._layout import Layout, currents, quantity_names
from hwtrain.dynapse._neuron import NeuronState, step


def check_trainable(trainable: Iterable[str], *, reference: bool) -> None:
    """Raises a `ValueError` for a name that is not a quantity of the neuron."""
    if isinstance(trainable, str):
        raise ValueError(
            f"trainable takes a tuple of names; got {trainable!r}. Write "
            f"trainable=({trainable!r},)"
        )
    unknown = sorted(set(trainable) - set(quantity_names(reference=reference)))
    if unknown:
        raise ValueError(
            f"trainable names {unknown}, which this DynapSim does not have; expected "
            f"some of {list(quantity_names(reference=reference))}"
        )


def advance(
    carry: NeuronState,
    x: jax.Array,
    logs: Mapping[str, jax.Array],
    w_rec: jax.Array | None,
    *,
    layout: Layout,
    trainable: tuple[str, ...],
    dt_s: float,
    reference: bool,
) -> tuple[NeuronState, jax.Array]:
    """Returns the new state and the spikes of one step.

    Args:
      carry: the state, `[..., N]`.
      x: weighted input spikes, `[..., N]`.
      logs: the leaves `log_*`, `[N]` each.
      w_rec: `[N (from), N (to)]` recurrent weights, or `None`.
      layout: the nominal quantities.
      trainable: names of the quantities that get a gradient.
      dt_s: length of the step, s.
      reference: see `hwtrain.dynapse._neuron.step`.
    """
    size = next(iter(logs.values())).shape[-1]
    if x.shape[-1] != size:
        raise ValueError(
            f"a DynapSim of {size} neurons takes inputs [..., {size}], a weighted sum "
            f"for each neuron; got {x.shape}. Put a Dense({size}, use_bias=False) "
            "before it"
        )
    held = {
        name: value
        if name.removeprefix("log_") in trainable
        else jax.lax.stop_gradient(value)
        for name, value in logs.items()
    }
    drive = x
    if w_rec is not None:
        recurrent = jnp.matmul(carry.spikes, w_rec)
        drive = x.astype(recurrent.dtype) + recurrent
    new = step(
        carry,
        drive,
        currents(held, layout),
        dt_s=dt_s,
        weight_current=layout.Iscale,
        reference=reference,
    )
    return new, new.spikes
