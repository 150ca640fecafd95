"""The names of the quantities of a DynapSim neuron."""

CAPACITANCES = (
    "C_ahp",
    "C_gaba",
    "C_mem",
    "C_pulse",
    "C_pulse_ahp",
    "C_ref",
    "C_syn",
)
CURRENTS = (
    "Idc",
    "Igain_ahp",
    "Igain_gaba",
    "Igain_mem",
    "Igain_syn",
    "Ipulse",
    "Ipulse_ahp",
    "Iref",
    "Ispkthr",
    "Itau_ahp",
    "Itau_gaba",
    "Itau_mem",
    "Itau_syn",
    "Iw_ahp",
)
CONSTANTS = ("Io", "Ut", "Vth", "kappa_n", "kappa_p")
QUANTITIES = (*CAPACITANCES, *CURRENTS, *CONSTANTS)
"""The quantities of a neuron, each with one value per neuron."""

NODES = ("ahp", "gaba", "mem", "syn")
"""Integrators whose capacitances take a noise current."""

NODE_LEAVES = tuple(f"log_C_{node}" for node in NODES)
"""Their leaves in `params`."""

INHIBITORY = ("C_gaba", "Igain_gaba", "Itau_gaba")
"""Quantities of the inhibitory dendrite, which the reference model lacks."""


def quantity_of(name: str) -> str | None:
    """Returns the quantity whose logarithm a leaf of `params` holds, or `None`.

    >>> quantity_of("log_Itau_mem"), quantity_of("log_scale")
    ('Itau_mem', None)
    """
    quantity = name.removeprefix("log_")
    return quantity if quantity != name and quantity in QUANTITIES else None
