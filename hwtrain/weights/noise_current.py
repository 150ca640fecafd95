"""White noise of the currents that charge and discharge a capacitance of a neuron."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from pydantic import Field

from hwtrain._parts.fields import at_least, configuration
from hwtrain._parts.leaf import LeafSpec
from hwtrain._parts.part import Described

ELEMENTARY_CHARGE = 1.602176634e-19
"""In C, exactly."""

NOISE_DENSITY = LeafSpec(
    name="noise_density",
    when=("step",),
    there=lambda weight, when: weight.hardware.noise_current is not None,
    shapes=lambda weight: ((),),
    trained=None,
    unit="A/sqrt(Hz)",
)
"""The density of a capacitance's noise current in a step."""

_Density = Annotated[float, Field(le=1e-12), *at_least(1e-21)]
"""In A/sqrt(Hz). The largest is the shot noise of 3 µA."""


def shot_noise_density(current: ArrayLike) -> jax.Array:
    r"""Returns the spectral density of the shot noise of a current.

    .. math:: S = \sqrt{2 q I}

    with the elementary charge q. Subthreshold transistors in saturation have it, and
    their thermal noise is the same phenomenon. The densities of independent currents
    add up as squares, so S of their sum is that of the sum of the currents.

    >>> print(f"{shot_noise_density(2 * 5.3e-12):.3g} A/sqrt(Hz)")
    1.84e-15 A/sqrt(Hz)

    Args:
      current: I, in A, of any shape; of a neuron at rest, the leak and the equal
        current that balances it, twice the leak.

    Returns:
      S, one-sided, in A/sqrt(Hz).

    References:
      Sarpeshkar, Delbrück and Mead, White noise in MOS transistors and resistors, IEEE
      Circuits and Devices Magazine 1993.
    """
    # Squared, such currents would be too small for float32.
    charge = jnp.float32((2 * ELEMENTARY_CHARGE) ** 0.5)
    return charge * jnp.sqrt(jnp.asarray(current, jnp.float32))


def noise_charge(
    current: jax.Array, tau_s: ArrayLike, forgotten: ArrayLike
) -> jax.Array:
    r"""Returns the charges that a white noise current leaves after one time step.

    .. math:: Q = S \sqrt{\tau (1 - a^2) / 4}\; \xi

    with a the factor by which the step lets a deviation decay: its variance settles at
    :math:`S^2 \tau / 4`, whatever the length dt of the step. For short steps, Q is
    :math:`S \sqrt{dt / 2}\; \xi`.

    >>> charge = noise_charge(1.84e-15, 10e-3, 0.18)
    >>> print(f"{charge / ELEMENTARY_CHARGE:.0f} electrons")
    244 electrons

    Args:
      current: S times standard normal numbers, in A/sqrt(Hz), of any shape.
      tau_s: time constant of the capacitance, in s.
      forgotten: 1 - a^2, from 0 to 1.

    Returns:
      Q, in C.

    References:
      Gillespie, Exact numerical simulation of the Ornstein-Uhlenbeck process and its
      integral, Physical Review E 1996.
    """
    return current * jnp.sqrt(jnp.asarray(tau_s) * forgotten / 4)


@configuration
class NoiseCurrentParameter(Described):
    r"""White noise of the currents at a capacitance of a neuron, at every time step.

    A current of density S brings charges, which move the voltage of the capacitance and
    the subthreshold current that it controls, by a factor:

    .. math::
        Q = S \sqrt{\tau (1 - a^2) / 4}\; \xi, \qquad
        I' = I \exp\!\left(\frac{\kappa}{U_T} \frac{Q}{C}\right)

    with a the decay of a deviation in a step. So, independent of the length of the
    steps, the current of an integrator of time constant :math:`\tau` deviates by

    .. math::
        \mathrm{std}(\ln I) = \sigma \sqrt{\tau / 2}, \qquad
        \sigma = \frac{\kappa}{U_T} \frac{S}{\sqrt 2\, C}

    if this is small. With the shot noise of the leak and of an equal input, that is a
    voltage noise of :math:`\sqrt{q U_T / (\kappa C)}`, which is kT/C noise but for
    :math:`\kappa`. The noise is drawn in `train_mode` and `chip_mode`. Gradients pass
    through the factor at fixed random numbers.

    It belongs to a capacitance of a `dynapse.DynapSim`: `C_mem`, `C_syn`, `C_gaba` or
    `C_ahp`.

    >>> import hwtrain
    >>> noise = hwtrain.NoiseCurrentParameter(density=1.84e-15)
    >>> rule = hwtrain.Rule(params=".*/log_C_(mem|syn|gaba)",
    ...                     hardware=hwtrain.Hardware(noise_current=noise))

    References:
      Sarpeshkar, Delbrück and Mead, White noise in MOS transistors and resistors, IEEE
      Circuits and Devices Magazine 1993: the noise of subthreshold currents, and that
      of a capacitance.

      Gillespie, Exact numerical simulation of the Ornstein-Uhlenbeck process and its
      integral, Physical Review E 1996.
    """

    density: _Density
    """S, one-sided spectral density of the current, in A/sqrt(Hz): sqrt(2 q I) for the
    shot noise of I (`dynapse.shot_noise_density`)."""

    def describe(self) -> str:
        """Returns the density."""
        return f"{self.density:.3g} A/sqrt(Hz)"
