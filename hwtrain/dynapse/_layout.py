"""Nominal quantities of DynapSim neurons, and conversion of `params` to SI units."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from hwtrain._errors import InputError
from hwtrain._parts.fields import at_least, configuration
from hwtrain._plan.quantities import INHIBITORY, QUANTITIES

_Quantity = Annotated[float, Field(le=1e3), *at_least(1e-18)]
"""In SI units. The bound excludes currents of a few electrons per second."""

_UT, _KAPPA, _VTH = 25e-3, (0.75 + 0.66) / 2, 0.7


def _leak(capacitance: float, tau_s: float) -> float:
    """Returns the leak current that gives a time constant."""
    return _UT / _KAPPA * capacitance / tau_s


@configuration
class Layout:
    r"""Nominal quantities of a DynapSE2-like chip, static and hashable.

    The defaults are Rockpool's, computed from time constants and pulse widths by

    .. math:: I_\tau = \frac{U_T C}{\kappa \tau}, \quad
        I_\text{pulse} = \frac{V_{th} C}{t}, \quad I_\text{gain} = r I_\tau

    >>> print(f"{Layout().Itau_mem:.3g} A")
    5.32e-12 A
    """

    C_ahp: _Quantity = 40e-12
    """Capacitance of the adaptation, F."""
    C_gaba: _Quantity = 25e-12
    """Capacitance of the inhibitory dendrite, F."""
    C_mem: _Quantity = 3e-12
    """Capacitance of the membrane, F."""
    C_pulse: _Quantity = 0.5e-12
    """Capacitance of the pulse extender of synapses, F."""
    C_pulse_ahp: _Quantity = 0.5e-12
    """Capacitance of the pulse extender of the adaptation, F."""
    C_ref: _Quantity = 1.5e-12
    """Capacitance of the refractory period, F."""
    C_syn: _Quantity = 24.5e-12
    """Capacitance of the excitatory dendrite, F."""
    Idc: _Quantity = 0.5e-12
    """Constant input, A; the dark current turns it off."""
    Igain_ahp: _Quantity = _leak(40e-12, 50e-3)
    """Gain of the adaptation, A: once its leak."""
    Igain_gaba: _Quantity = 100 * _leak(25e-12, 10e-3)
    """Gain of the inhibitory dendrite, A: 100 times its leak."""
    Igain_mem: _Quantity = 4 * _leak(3e-12, 20e-3)
    """Gain of the membrane, A: four times its leak."""
    Igain_syn: _Quantity = 100 * _leak(24.5e-12, 10e-3)
    """Gain of the excitatory dendrite, A: 100 times its leak."""
    Ipulse: _Quantity = _VTH * 0.5e-12 / 10e-6
    """Pulse width of synapses, A: 10 µs."""
    Ipulse_ahp: _Quantity = _VTH * 0.5e-12 / 1e-6
    """Pulse width of the adaptation, A: 1 µs."""
    Iref: _Quantity = _VTH * 1.5e-12 / 1e-3
    """Refractory period, A: 1 ms."""
    Ispkthr: _Quantity = 1e-7
    """Membrane current at which a neuron spikes, A."""
    Itau_ahp: _Quantity = _leak(40e-12, 50e-3)
    """Leak of the adaptation, A: 50 ms."""
    Itau_gaba: _Quantity = _leak(25e-12, 10e-3)
    """Leak of the inhibitory dendrite, A: 10 ms."""
    Itau_mem: _Quantity = _leak(3e-12, 20e-3)
    """Leak of the membrane, A: 20 ms."""
    Itau_syn: _Quantity = _leak(24.5e-12, 10e-3)
    """Leak of the excitatory dendrite, A: 10 ms."""
    Iw_ahp: _Quantity = 0.5e-12
    """Weight of the adaptation, A; the dark current turns it off."""
    Io: _Quantity = 0.5e-12
    """Dark current, A: the lower bound of every current."""
    Ut: _Quantity = _UT
    """Thermal voltage, V."""
    Vth: _Quantity = _VTH
    """Threshold voltage of the pulse extenders, V."""
    kappa_n: _Quantity = 0.75
    """Subthreshold slope of n-type transistors."""
    kappa_p: _Quantity = 0.66
    """Subthreshold slope of p-type transistors."""
    Iscale: _Quantity = 1e-8
    """Current of a weight of 1, A. It has no mismatch, because it is a unit."""


def quantity_names(*, reference: bool = False) -> tuple[str, ...]:
    """Returns the names of a neuron's quantities, sorted.

    Args:
      reference: leave out the inhibitory dendrite, as the reference does.
    """
    return tuple(sorted(n for n in QUANTITIES if not reference or n not in INHIBITORY))


def currents(params: Mapping[str, Any], layout: Layout) -> dict[str, jax.Array]:
    r"""Returns the quantities of a DynapSim in SI units, computed from its `params`.

    .. math:: I = I_\text{nominal} e^{\theta}

    >>> amperes = currents({"log_Itau_mem": jnp.log(jnp.array([1.0, 2.0]))}, Layout())
    >>> [f"{current:.3g}" for current in amperes["Itau_mem"]]
    ['5.32e-12', '1.06e-11']

    Args:
      params: the parameters of one DynapSim: leaves `log_*` of any shape, and `w_rec`,
        which is returned unchanged.
      layout: the nominal quantities.

    Returns:
      Currents in A, capacitances in F, voltages in V, by name.
    """
    return {
        name.removeprefix("log_"): jnp.asarray(value)
        if name == "w_rec"
        else getattr(layout, name.removeprefix("log_")) * jnp.exp(jnp.asarray(value))
        for name, value in params.items()
    }


def logarithms(quantities: Mapping[str, Any], layout: Layout) -> dict[str, jax.Array]:
    """Returns the `params` of a DynapSim from quantities in SI units.

    Inverse of `currents`, for quantities measured on a chip or read back from one.

    >>> logarithms({"Itau_mem": [5.319149e-12]}, Layout())["log_Itau_mem"].round(4)
    Array([0.], dtype=float32)

    Args:
      quantities: by name, of any shape; `w_rec` is returned unchanged.
      layout: the nominal quantities.

    Raises:
      ValueError: for a name that is not a quantity, or values that are not positive.
    """
    known = {field.name for field in dataclasses.fields(Layout)} - {"Iscale"}
    params = {}
    for name, value in quantities.items():
        if name == "w_rec":
            params[name] = jnp.asarray(value)
            continue
        if name not in known:
            raise InputError(
                f"{name!r} is not a quantity of a DynapSim; expected {sorted(known)}"
            )
        value = np.asarray(value, np.float64)
        if not (value > 0).all():
            raise InputError(
                f"{name} must be greater than 0 to have a logarithm; got "
                f"{value.min()}. Draw mismatch with least_ratio=0.01, or of the "
                "logarithms themselves"
            )
        ratio = np.log(value / getattr(layout, name))
        params[f"log_{name}"] = jnp.asarray(ratio, jnp.float32)
    return params
