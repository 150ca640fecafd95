"""What a part of a chip costs: energy, time and area."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Energy and time for one example, area, and what writing takes once, of a part.

    >>> both = Cost(energy_fj=2.0, area_um2=1.0) + Cost(energy_fj=3.0)
    >>> both.energy_fj, both.latency_ns, both.area_um2
    (5.0, 0.0, 1.0)

    Attributes:
      energy_fj: energy for one example, in fJ.
      latency_ns: time for one example, in ns. Times of several parts are added up.
      area_um2: area, in µm².
      writing_pulses: pulses that write the devices, once.
      writing_energy_fj: energy of writing them, in fJ.
      writing_time_ns: time of writing them one after the other, in ns.
      notes: sentences on what these numbers leave out, for the table.
    """

    energy_fj: float = 0.0
    latency_ns: float = 0.0
    area_um2: float = 0.0
    writing_pulses: float = 0.0
    writing_energy_fj: float = 0.0
    writing_time_ns: float = 0.0
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Cost") -> "Cost":
        """Returns the cost of both."""
        return Cost(
            energy_fj=self.energy_fj + other.energy_fj,
            latency_ns=self.latency_ns + other.latency_ns,
            area_um2=self.area_um2 + other.area_um2,
            writing_pulses=self.writing_pulses + other.writing_pulses,
            writing_energy_fj=self.writing_energy_fj + other.writing_energy_fj,
            writing_time_ns=self.writing_time_ns + other.writing_time_ns,
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )
