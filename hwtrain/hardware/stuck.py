"""Devices that cannot be programmed."""

from typing import Self

import jax
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from hwtrain._parts.part import Described
from hwtrain.hardware.configuration import CONFIG, Share
from hwtrain.physics.stuck import AT_G_MAX, AT_G_MIN, draw_stuck


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class StuckParameter(Described):
    r"""Shares of a chip's devices that are stuck, drawn once for each chip.

    .. math::
        P(g = g_\text{min}) = p_0, \qquad P(g = g_\text{max}) = p_1

    whatever the target is. A stuck device neither drifts nor has read noise. Each
    device of a pair is drawn by itself, a function of the chip's seed, the parameter's
    path, the device and the element.

    >>> StuckParameter(at_g_min=0.01).draws
    True

    References:
      Chen et al., RRAM defect modeling and failure analysis based on march test and a
      novel squeeze-search scheme, IEEE Transactions on Computers 2015.
    """

    at_g_min: Share = 0.0
    """Share of the devices that are stuck at the converter's g_min. Zero: none."""
    at_g_max: Share = 0.0
    """Share of the devices that are stuck at the converter's g_max. Zero: none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.at_g_min + self.at_g_max > 1:
            raise ValueError(
                f"at_g_min={self.at_g_min} and at_g_max={self.at_g_max} are shares of "
                "the same devices; together they must be at most 1"
            )
        return self

    @property
    def draws(self) -> bool:
        """Whether any device is stuck."""
        return self.at_g_min + self.at_g_max > 0

    def describe(self) -> str:
        """Returns the shares of both ends."""
        shares = (("g_min", self.at_g_min), ("g_max", self.at_g_max))
        return ", ".join(f"{share:.2%} at {end}" for end, share in shares if share)

    def ends(self, g_min: float, g_max: float) -> list[tuple[float, int, float]]:
        """Returns of each end its share, the state of a device there and its µS."""
        ends = (self.at_g_min, AT_G_MIN, g_min), (self.at_g_max, AT_G_MAX, g_max)
        return [end for end in ends if end[0] > 0]

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns the states of devices; see `hwtrain.physics.stuck.draw_stuck`."""
        return draw_stuck(key, shape, at_g_min=self.at_g_min, at_g_max=self.at_g_max)
