"""Histograms of the conductances of a chip's devices."""

import dataclasses
from collections.abc import Iterable

import numpy as np

_BARS = " ▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """Histogram of the conductances of a weight's devices.

    >>> g = np.array([0.0] * 98 + [1.0, 24.0])
    >>> found = Histogram.of([g], g_min=0.0, g_max=25.0, bins=5)
    >>> found.counts.tolist(), found.text()
    ([99, 0, 0, 0, 1], '█   ▂')

    Attributes:
      counts: `[bins]`, number of devices.
      edges: `[bins + 1]`, in µS.
      lowest: the smallest conductance, in µS.
      highest: the largest, in µS.
      mean: the mean, in µS.
    """

    counts: np.ndarray
    edges: np.ndarray
    lowest: float
    highest: float
    mean: float

    @classmethod
    def of(
        cls,
        conductances: Iterable[np.ndarray],
        *,
        g_min: float,
        g_max: float,
        bins: int = 50,
    ) -> "Histogram":
        """Returns the histogram of the conductances of one weight's devices.

        Args:
          conductances: of all tiles and devices, in µS; not empty.
          g_min: start of the bins, in µS; a lower conductance extends them.
          g_max: end of the bins, in µS; a higher conductance extends them.
          bins: number of bins.
        """
        values = np.concatenate([np.ravel(array) for array in conductances])
        end = max(g_max, float(values.max()))
        start = min(g_min, float(values.min()))
        counts, edges = np.histogram(values, bins, (start, end))
        return cls(
            counts=counts,
            edges=edges,
            lowest=float(values.min()),
            highest=float(values.max()),
            mean=float(values.mean(dtype=np.float64)),
        )

    def text(self) -> str:
        """Returns a line of logarithmic bars, one for each bin; the highest is full.

        In a conductance pair, one device is at g_min: on a linear scale it would hide
        the rest.
        """
        heights = np.log1p(self.counts) / np.log1p(self.counts.max())
        # A bin that is not empty shows at least the lowest bar.
        heights = np.ceil(heights * (len(_BARS) - 1))
        return "".join(_BARS[int(height)] for height in heights)
