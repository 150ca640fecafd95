"""Currents of devices that are not proportional to their voltage."""

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._parts.fields import Positive
from hwtrain._parts.part import Part


def sinh_law(x: jax.Array, kappa: float) -> jax.Array:
    r"""Returns the inputs that devices with a current of sinh seem to get.

    .. math:: x' = \frac{\sinh(\kappa x)}{\sinh \kappa}

    >>> print(sinh_law(jnp.array([0.5, -1.0]), 2.0).round(3))
    [ 0.324 -1.   ]

    Args:
      x: voltages, relative to the read voltage at which conductances are given.
      kappa: that voltage over the characteristic voltage of the devices. Towards zero,
        the law becomes Ohm's.
    """
    return jnp.sinh(kappa * x) / jnp.sinh(kappa)


class DeviceNonlinearity(Part):
    r"""Makes the current of every device a hyperbolic sine of its voltage.

    .. math:: I = G\,V_0 \frac{\sinh(\kappa V / V_0)}{\sinh \kappa}

    with the read voltage :math:`V_0` of an input of 1, at which G is the conductance:
    `sinh_law` has the equation in normalised units. It matters where inputs are
    voltages; where they are the lengths of pulses of one voltage, leave it out. All
    devices share one shape, so that it is a law of inputs.

    References:
      Chen and Yu, Compact modeling of RRAM devices and its applications in 1T1R and
      1S1R array design, IEEE Transactions on Electron Devices 2015: a current of
      sinh(V / V_c) with V_c = 0.25 V.
    """

    whole = True
    kappa: Positive
    """Read voltage over the characteristic voltage of the devices."""

    def around(self, inner, x, ctx):
        """Distorts the inputs."""
        return inner(sinh_law(x, self.kappa))

    def describe(self):
        """Returns its shape."""
        return f"sinh currents, kappa {self.kappa:g}"

    def proof(self, ctx):
        """Declares its measured effect: the outputs."""
        ctx.differs("device nonlinearity")

        def expected(x, tile):
            law = (np.exp(self.kappa * x) - np.exp(-self.kappa * x)) / 2
            return tile.multiply(law / np.sinh(self.kappa))

        ctx.responds(expected, "device nonlinearity", inputs=1 / 3)
