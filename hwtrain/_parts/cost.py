"""What a part of a chip costs: energy, time and area."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Energy and time for one example, and area, of a layer or of a part of it.

    >>> both = Cost(energy_fj=2.0, area_um2=1.0) + Cost(energy_fj=3.0)
    >>> both.energy_fj, both.latency_ns, both.area_um2
    (5.0, 0.0, 1.0)

    Attributes:
      energy_fj: energy for one example, in fJ.
      latency_ns: time for one example, in ns. Times of several parts are added up.
      area_um2: area, in µm².
      notes: sentences on what these numbers leave out, for the table.
    """

    energy_fj: float = 0.0
    latency_ns: float = 0.0
    area_um2: float = 0.0
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Cost") -> "Cost":
        """Returns the cost of both."""
        return Cost(
            energy_fj=self.energy_fj + other.energy_fj,
            latency_ns=self.latency_ns + other.latency_ns,
            area_um2=self.area_um2 + other.area_um2,
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )
