"""The step shared by the Linen and the NNX cell."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._arrays.random import normal
from hwtrain._arrays.tiling import over_batch
from hwtrain._errors import InputError
from hwtrain._flax.observation import noise_observer
from hwtrain._flax.read_keys import raw_keys_here
from hwtrain._plan.quantities import NODES
from hwtrain.dynapse._layout import Layout, currents, quantity_names
from hwtrain.dynapse._neuron import NeuronState, step
from hwtrain.periphery._read_keys import NOISE_KEY, effect_key
from hwtrain.weights.noise_current import NOISE_DENSITY


def check_trainable(trainable: Iterable[str], *, reference: bool) -> None:
    """Raises a `ValueError` for a name that is not a quantity of the neuron."""
    if isinstance(trainable, str):
        raise InputError(
            f"trainable takes a tuple of names; got {trainable!r}. Write "
            f"trainable=({trainable!r},)"
        )
    unknown = sorted(set(trainable) - set(quantity_names(reference=reference)))
    if unknown:
        raise InputError(
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
    leaf: Callable[[str], Any],
    path: Callable[[str], str],
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
      leaf: returns an array of the cell by its name, `None` if it has none.
      path: returns the path of such an array.
    """
    size = next(iter(logs.values())).shape[-1]
    if x.shape[-1] != size:
        raise InputError(
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
    quantities = currents(held, layout)
    noise = _noise(leaf, path, carry.imem.shape)

    def run(state: NeuronState, drive: jax.Array, noise: Any) -> NeuronState:
        return step(
            state,
            drive,
            quantities,
            dt_s=dt_s,
            weight_current=layout.Iscale,
            reference=reference,
            noise=noise,
        )

    watch = noise_observer()
    if watch is not None:
        for node, effect in _effects(run, carry, noise, quantities["Io"]).items():
            density = leaf(f"log_C_{node}_{NOISE_DENSITY.name}")
            deviation = _deviation(node, density, quantities, dt_s)
            watch(path(f"log_C_{node}"), effect / over_batch(deviation, effect))
    new = run(carry, drive, noise)
    return new, new.spikes


def _noise(
    leaf: Callable[[str], Any], path: Callable[[str], str], shape: tuple[int, ...]
) -> dict[str, jax.Array]:
    """Returns the noise currents of one step, by the name of the capacitance."""
    noise = {}
    for node in NODES:
        name = f"log_C_{node}"
        data = leaf(f"{name}_{NOISE_KEY.name}")
        if data is not None:
            key = effect_key(raw_keys_here(path(name), data), "read")
            noise[node] = leaf(f"{name}_{NOISE_DENSITY.name}") * normal(key, shape)
    return noise


_LEVEL = 100.0
"""The currents at which noise is measured, in dark currents."""


def _effects(
    run: Callable[..., NeuronState],
    state: NeuronState,
    noise: Mapping[str, jax.Array],
    io: jax.Array,
) -> dict[str, jax.Array]:
    """Returns by how much the noise of a step changes the logarithms of currents."""
    level = _LEVEL * over_batch(io, state.imem) + 0 * state.imem
    state = NeuronState(*(0 * level for _ in state))
    state = state._replace(iahp=level, igaba=level, imem=level, isyn=level)
    noisy, quiet = (run(state, 0 * level, given) for given in (noise, {}))
    return {
        node: jnp.log(getattr(noisy, f"i{node}") / getattr(quiet, f"i{node}"))
        for node in noise
    }


def _deviation(
    node: str, density: jax.Array, q: Mapping[str, jax.Array], dt_s: float
) -> jax.Array:
    """Returns the configured deviation of these logarithms, that of an exact step."""
    slope = (q["kappa_n"] + q["kappa_p"]) / 2 / q["Ut"]
    tau = q[f"C_{node}"] / (slope * q[f"Itau_{node}"])
    charge = density * jnp.sqrt(tau / 4 * -jnp.expm1(-2 * dt_s / tau))
    return slope * charge / q[f"C_{node}"]
