"""A mixed-signal neuron (DynapSim): its quantities."""

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
CAPACITANCES = (
    "C_ahp",
    "C_gaba",
    "C_mem",
    "C_pulse",
    "C_pulse_ahp",
    "C_ref",
    "C_syn",
)
CONSTANTS = ("Io", "Ut", "Vth", "kappa_n", "kappa_p")
QUANTITIES = (*CAPACITANCES, *CURRENTS, *CONSTANTS)


def quantity_of(name: str) -> str | None:
    """Returns the quantity whose logarithm a leaf of `params` holds, or `None`."""
    quantity = name.removeprefix("log_")
    return quantity if quantity != name and quantity in QUANTITIES else None
