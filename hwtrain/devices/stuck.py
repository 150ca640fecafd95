"""Stuck devices, whose conductance stays at one end of the range when written."""

from typing import Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._arrays.random import uniform
from hwtrain._errors import InputError
from hwtrain._parts.fields import Share, configuration
from hwtrain._parts.part import Described

HEALTHY, AT_G_MIN, AT_G_MAX = range(3)
"""The states of a device."""


def draw_stuck(
    key: jax.Array, shape: tuple[int, ...], *, at_g_min: float, at_g_max: float
) -> jax.Array:
    r"""Draws independently which devices are stuck.

    .. math::
        P(\text{stuck at } g_\text{min}) = p_0, \qquad
        P(\text{stuck at } g_\text{max}) = p_1

    >>> states = draw_stuck(jax.random.key(0), (1000,), at_g_min=0.1, at_g_max=0.02)
    >>> jnp.bincount(states).tolist()
    [876, 107, 17]

    Args:
      key: a JAX key.
      shape: shape of the devices.
      at_g_min: p0, the share stuck at g_min. Zero turns it off.
      at_g_max: p1, the share stuck at g_max. Zero turns it off.

    Returns:
      `uint8`: 0 healthy, 1 stuck at g_min, 2 stuck at g_max.

    References:
      Chen et al., RRAM defect modeling and failure analysis based on march test and a
      novel squeeze-search scheme, IEEE Transactions on Computers 2015.
    """
    u = uniform(key, shape)
    low, high = u < at_g_min, u >= 1 - at_g_max
    return jnp.where(low, AT_G_MIN, jnp.where(high, AT_G_MAX, HEALTHY)).astype("uint8")


def with_stuck(
    g: jax.Array, stuck: jax.Array, *, g_min: ArrayLike, g_max: ArrayLike
) -> jax.Array:
    """Replaces the conductances of stuck devices.

    >>> g = with_stuck(jnp.array([7.0, 7.0, 7.0]), jnp.array([0, 1, 2], "uint8"),
    ...                g_min=0.1, g_max=25.0)
    >>> print(g)
    [ 7.   0.1 25. ]

    Args:
      g: conductances, in µS.
      stuck: the states of the devices, from `draw_stuck`.
      g_min: the smallest conductance, in µS.
      g_max: the largest conductance, in µS.
    """
    ends = jnp.where(stuck == AT_G_MIN, g_min, g_max).astype(g.dtype)
    return jnp.where(stuck == HEALTHY, g, ends)


@configuration
class StuckParameter(Described):
    r"""Shares of a chip's devices that are stuck, drawn once for each chip.

    .. math::
        P(g = g_\text{min}) = p_0, \qquad P(g = g_\text{max}) = p_1

    whatever the target. A stuck device neither drifts nor has read noise. Each device
    of a pair is drawn independently, as a function of the chip's seed, the parameter's
    path, the device and the element.

    >>> StuckParameter(at_g_min=0.01).draws
    True

    References:
      Chen et al., RRAM defect modeling and failure analysis based on march test and a
      novel squeeze-search scheme, IEEE Transactions on Computers 2015.
    """

    at_g_min: Share = 0.0
    """Share of devices stuck at the converter's g_min. Zero: none."""
    at_g_max: Share = 0.0
    """Share of devices stuck at the converter's g_max. Zero: none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.at_g_min + self.at_g_max > 1:
            raise InputError(
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
        """Returns each end with devices: its share, state and conductance in µS."""
        ends = (self.at_g_min, AT_G_MIN, g_min), (self.at_g_max, AT_G_MAX, g_max)
        return [end for end in ends if end[0] > 0]

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns the states of devices; see `hwtrain.devices.stuck.draw_stuck`."""
        return draw_stuck(key, shape, at_g_min=self.at_g_min, at_g_max=self.at_g_max)
