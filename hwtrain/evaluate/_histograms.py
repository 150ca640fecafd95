"""Histograms of conductances: what the devices of a chip are programmed to."""

import dataclasses
from collections.abc import Iterable

import numpy as np

_BARS = " ▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """How often a weight's devices have which conductance.

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
          conductances: of every tile and device, in µS; not empty.
          g_min: where the bins begin, in µS.
          g_max: where they end at least; a device above makes them longer.
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
        """Returns a line of bars, one for each bin, the highest full; logarithmic.

        Of a pair, one device is at g_min: on a linear scale it would hide the rest.
        """
        heights = np.log1p(self.counts) / np.log1p(self.counts.max())
        # A bin with any device in it shows at least the lowest bar.
        heights = np.ceil(heights * (len(_BARS) - 1))
        return "".join(_BARS[int(height)] for height in heights)
