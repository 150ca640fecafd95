"""Bias currents as the coarse and fine codes of a DynapSE-like chip."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from hwtrain._errors import InputError

_CODES = 2**16
"""More codes than any bias generator has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasCode:
    """A bias current as stored on a chip.

    Attributes:
      coarse: the coarse code.
      fine: the fine code.
      wanted: the requested current, in A.
      achieved: the current of the code, in A.
    """

    # Read from JSON: reject unknown fields, and text or booleans in place of numbers.
    __pydantic_config__ = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    coarse: int
    fine: int
    wanted: float
    achieved: float

    def __post_init__(self):
        if not (0 <= self.coarse < _CODES and 0 <= self.fine < _CODES):
            raise InputError(
                f"codes are whole numbers from 0 to {_CODES - 1}, got {self.coarse} "
                f"and {self.fine}"
            )
        if not (self.wanted > 0 and self.achieved > 0):
            raise InputError(
                f"a bias current is positive, got wanted {self.wanted} and achieved "
                f"{self.achieved}"
            )


def computed_table(
    *, largest: float = 2.3e-6, ratio: float = 8.0, off: float = 4e-13
) -> np.ndarray:
    r"""Returns an idealised table of bias currents, computed from the design.

    It describes an ideal coarse-fine generator; nothing is measured. For a real chip,
    give the exporter its measured table instead.

    .. math:: I(c, f) = \max\left(I_\text{largest}\, r^{c - 5}\, \frac{f}{255},
        I_\text{off}\right), \qquad c = 0 \ldots 5, \quad f = 0 \ldots 255

    Documented: Rockpool's bias generator of the older DYNAP-SE computes
    :math:`I_c f / 255`, with base currents :math:`I_c` of 15 pA to 24 µA, each 7 to 8
    times the previous one. In Rockpool's measured table of a DynapSE2, the largest
    currents of neighbouring coarse codes have ratios of 7.84 to 8.09; the largest of
    all is 2.28 µA (n-type) or 2.24 µA (p-type), the smallest of a coarse code 0.37 to
    1.1 pA; the fine code is linear within 1.9 % of its largest current, and seven of
    its 255 steps go down.

    Assumed: a ratio of exactly 8, exact linearity, rounded ends, identical transistor
    types, and no scale of a parameter's own (on the chip, transistor sizes multiply the
    table).

    >>> table = computed_table()
    >>> table.shape, float(table[5, 255]), float(table[0, 0])
    ((6, 256), 2.3e-06, 4e-13)

    Args:
      largest: current of the largest code, in A.
      ratio: r, ratio of neighbouring coarse currents.
      off: current of a generator that is switched off, in A; the lowest current.

    Returns:
      `[coarse, fine]`, in A.

    References:
      Rockpool, `devices/dynapse`: `lookup/paramgen.py`, and the first version of its
      bias generator. Delbrück et al., 32-bit configurable bias current generator with
      sub-off-current capability, ISCAS 2010, divides a master current digitally and has
      no coarse code.
    """
    coarse = largest * ratio ** np.arange(-5.0, 1.0)
    return np.maximum(coarse[:, None] * np.arange(256) / 255, off)


def checked_table(table: ArrayLike) -> np.ndarray:
    """Returns a validated table of bias currents in float64.

    Args:
      table: `[coarse, fine]`, the current of each code, in A.

    Raises:
      ValueError: unless it is a matrix of positive, finite numbers.
    """
    array = np.asarray(table, np.float64)
    if (
        array.ndim != 2
        or not array.size
        or not (np.isfinite(array) & (array > 0)).all()
    ):
        raise InputError(
            "a table of bias currents is a matrix [coarse, fine] of positive numbers "
            f"in A, such as computed_table(); got shape {array.shape}"
        )
    return array


def nearest_code(table: np.ndarray, current: float, name: str = "a bias") -> BiasCode:
    """Returns the code of the nearest current; the smallest of equally near codes.

    >>> code = nearest_code(computed_table(), 1e-7, "Ispkthr")
    >>> code.coarse, code.fine
    (4, 89)

    Args:
      table: `[coarse, fine]`, in A.
      current: the requested current, in A.
      name: the bias's name, for the message.

    Raises:
      ValueError: if the current is outside the table.
    """
    low, high = table.min(), table.max()
    # float32 rounding may move a current slightly beyond the table's ends.
    if not low * (1 - 1e-6) <= current <= high * (1 + 1e-6):
        raise InputError(
            f"{name} should be {current:.4g} A, but the chip's bias generator gives "
            f"{low:.4g} to {high:.4g} A. Keep the current in this range (in training, "
            "clip it), or give the table of another chip"
        )
    coarse, fine = np.unravel_index(np.argmin(np.abs(table - current)), table.shape)
    return BiasCode(
        coarse=int(coarse),
        fine=int(fine),
        wanted=float(current),
        achieved=float(table[coarse, fine]),
    )
