"""DynapSim, a mixed-signal spiking neuron in terms of subthreshold currents.

Currents are in amperes, capacitances in farads, voltages in volts, times in seconds.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hwtrain._arrays.tiling import over_batch
from hwtrain.weights.noise_current import noise_charge


class NeuronState(NamedTuple):
    """State of DynapSim neurons between two steps, each `[..., N]`.

    Attributes:
      iahp: current of the after-hyperpolarisation, A.
      igaba: current of the inhibitory dendrite, A.
      imem: membrane current, A.
      isyn: current of the excitatory dendrite, A.
      spikes: number of spikes in the last step.
      timer_ref: remaining refractory period, s.
      vmem: membrane voltage, V.
    """

    iahp: jax.Array
    igaba: jax.Array
    imem: jax.Array
    isyn: jax.Array
    spikes: jax.Array
    timer_ref: jax.Array
    vmem: jax.Array


def resting_state(shape: tuple[int, ...], dark_current: float) -> NeuronState:
    """Returns neurons at rest: every current is the dark current, in A.

    >>> resting_state((2,), 5e-13).spikes
    Array([0., 0.], dtype=float32)
    """
    current, zero = jnp.full(shape, dark_current), jnp.zeros(shape)
    return NeuronState(
        iahp=current,
        igaba=current,
        imem=current,
        isyn=current,
        spikes=zero,
        timer_ref=zero,
        vmem=zero,
    )


@jax.custom_jvp
def spike_count(excess: jax.Array) -> jax.Array:
    r"""Returns the number of spikes in a step, with a surrogate gradient.

    .. math:: s = \max(\lceil x \rceil, 0), \quad
        x = \ln \frac{I_\text{mem}}{I_\text{spkthr}}, \quad
        \frac{ds}{dx} := e^{\min(x, 1)}

    Up to one spike this is :math:`ds/dI_\text{mem} = 1/I_\text{spkthr}`, the
    reference's surrogate (1/A) in units of the threshold: gradients of weights are of
    the order of one. At 1e-8, Adam's epsilon would suppress them.

    >>> x = jnp.array([-1.0, 0.5, 1.5])
    >>> spike_count(x), jax.grad(lambda x: spike_count(x).sum())(x)
    (Array([0., 1., 2.], dtype=float32),
     Array([0.36787945, 1.6487212 , 2.7182817 ], dtype=float32))

    Args:
      excess: x, of any shape.
    """
    return jnp.maximum(jnp.ceil(excess), 0)


@spike_count.defjvp
def _spike_count_jvp(primals, tangents):
    (excess,), (tangent,) = primals, tangents
    return spike_count(excess), jnp.exp(jnp.minimum(excess, 1)) * tangent


def step(
    state: NeuronState,
    drive: jax.Array,
    quantities: Mapping[str, jax.Array],
    *,
    dt_s: float,
    weight_current: float,
    reference: bool = False,
    noise: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
) -> NeuronState:
    r"""Returns the state of neurons one time step later.

    Synapses and adaptation are differential-pair integrators that receive a pulse of
    :math:`t = V_{th} C_\text{pulse} / I_\text{pulse}` for each spike,

    .. math::
        I' = e^{-dt/\tau} I + (1 - e^{-t/\tau}) \tfrac{I_\text{gain}}{I_\tau} I_w,
        \quad \tau = \tfrac{U_T}{\kappa} \tfrac{C}{I_\tau}

    with the drive :math:`I_w`: its positive part for the excitatory, its negative part
    for the inhibitory dendrite. The membrane is integrated by forward Euler:

    .. math::
        \tau \Big(1 + \frac{I_\text{gain}}{I}\Big) \frac{dI}{dt} =
        \frac{I_\text{gain}}{I_\tau} (I_\text{in} - I_\tau - I_\text{ahp})
        + \frac{I_\text{fb}}{I_\tau} (I + I_\text{gain})
        - I \Big(1 + \frac{I_\text{ahp}}{I_\tau}\Big)

    with :math:`I_\text{in} = I_\text{syn} - I_\text{gaba} + I_{dc}`, the dark current
    during the refractory period, and the positive feedback :math:`I_\text{fb} =
    I_0 (I / I_0)^{\kappa / (\kappa + 1)}`. A spike resets current and voltage; no
    gradient passes through a reset. No current falls below the dark current
    :math:`I_0`.

    A noise current leaves a charge Q on a capacitance (`noise_charge`), and multiplies
    its new current by :math:`e^{\kappa Q / (U_T C)}`; not that of a membrane that its
    refractory period holds.

    The reference has no inhibitory dendrite, subtracts the leak twice, divides the
    feedback and the time constant by the sum of leak and adaptation, and feeds back the
    voltage from before a reset; its refractory period ends only when its timer is
    exactly zero. `reference=True` reproduces all of this.

    Args:
      state: the state, `[..., N]`.
      drive: weighted spikes of this step, `[..., N]`, in units of `weight_current`. All
        contributions to a step are summed before they are split by sign; this is exact
        if both dendrites have the same time constant, as by default.
      quantities: `[N]` each, in SI units; without `reference` all of `QUANTITIES`.
      dt_s: length of the step, s.
      weight_current: current of a weight of 1, A.
      reference: compute as Rockpool does.
      noise: densities of noise currents times standard normal numbers, `[..., N]`, in
        A/sqrt(Hz), by names in `hwtrain._plan.quantities.NODES`; none for no noise.

    Returns:
      The new state; its `spikes` are the output.

    References:
      Chicca et al., Neuromorphic electronic circuits for building autonomous cognitive
      systems, Proc. IEEE 2014; the feedback: Indiveri et al., Spike-based learning with
      a generalized integrate and fire silicon neuron, ISCAS 2010.
    """
    q = {name: over_batch(value, state.imem) for name, value in quantities.items()}
    io, ut = q["Io"], q["Ut"]
    kappa = (q["kappa_n"] + q["kappa_p"]) / 2

    def at_least_dark(current: jax.Array) -> jax.Array:
        return jnp.maximum(current, io)

    def time_constant(leak: jax.Array, capacitance: jax.Array) -> jax.Array:
        return ut / kappa * capacitance / leak

    def pulse(capacitance: str, current: str) -> jax.Array:
        return q["Vth"] * q[capacitance] / q[current]

    def integrator(name: str, width: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the decay, the charge of a pulse and the gain of an integrator."""
        leak = at_least_dark(q[f"Itau_{name}"])
        gain = at_least_dark(q[f"Igain_{name}"])
        tau = time_constant(leak, q[f"C_{name}"])
        return jnp.exp(-dt_s / tau), 1 - jnp.exp(-width / tau), gain / leak

    def disturbed(name: str, current: jax.Array) -> jax.Array:
        if name not in noise:
            return current
        c = q[f"C_{name}"]
        tau = time_constant(at_least_dark(q[f"Itau_{name}"]), c)
        # The membrane decays by a step of Euler's, the others exactly.
        euler = jnp.minimum(dt_s / tau, 1)
        exact = -jnp.expm1(-2 * dt_s / tau)
        forgotten = euler * (2 - euler) if name == "mem" else exact
        charge = noise_charge(noise[name], tau, forgotten)
        return at_least_dark(current * jnp.exp(kappa / ut * charge / c))

    def dendrite(name: str, current: jax.Array, drive: jax.Array) -> jax.Array:
        decay, charge, gain = integrator(name, pulse("C_pulse", "Ipulse"))
        if reference:
            current = decay * current + charge * at_least_dark(gain * drive)
        else:
            current = at_least_dark(decay * current + charge * gain * drive)
        return disturbed(name, current)

    # In half precision, all currents would be zero.
    drive = jnp.asarray(drive, state.imem.dtype) * weight_current
    isyn = dendrite("syn", state.isyn, drive if reference else jnp.maximum(drive, 0))
    igaba = state.igaba
    if not reference:
        igaba = dendrite("gaba", igaba, jnp.maximum(-drive, 0))

    decay, charge, gain = integrator("ahp", pulse("C_pulse_ahp", "Ipulse_ahp"))
    kick = charge * gain * (q["Iw_ahp"] * state.spikes)
    iahp = disturbed("ahp", at_least_dark(decay * state.iahp + kick))

    leak, threshold = at_least_dark(q["Itau_mem"]), at_least_dark(q["Igain_mem"])
    feedback = io * jnp.exp(kappa**2 / (kappa + 1) * state.vmem / ut)
    both = leak + iahp
    if reference:
        ready = state.timer_ref == 0
        given, slow = isyn - both + q["Idc"], both
    else:
        ready = state.timer_ref < dt_s / 2
        given, slow = isyn - igaba + q["Idc"], leak
    given = at_least_dark(jnp.where(ready, given, 0))
    imem = state.imem
    change = (
        threshold / leak * (given - both)
        + feedback / slow * (imem + threshold)
        - imem * (1 + iahp / leak)
    )
    rate = dt_s * imem / (time_constant(slow, q["C_mem"]) * (imem + threshold))
    imem = at_least_dark(imem + rate * change)
    imem = jnp.where(ready, disturbed("mem", imem), imem)

    spikes = spike_count(jnp.log(imem / q["Ispkthr"]))
    vmem = ut / kappa * jnp.log(imem / io)
    # Not differentiated: the positive feedback before each reset multiplies gradients.
    fired = jax.lax.stop_gradient(jnp.minimum(spikes, 1))
    if not reference:
        vmem = (1 - fired) * vmem
    timer = (1 - fired) * jnp.maximum(state.timer_ref - dt_s, 0)
    return NeuronState(
        iahp=iahp,
        igaba=igaba,
        imem=(1 - fired) * imem + fired * io,
        isyn=isyn,
        spikes=spikes,
        timer_ref=timer + fired * pulse("C_ref", "Iref"),
        vmem=vmem,
    )
