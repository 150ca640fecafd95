"""Devices that reads reset, by the time for which a read voltage was on."""

from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._errors import InputError
from hwtrain._parts.fields import NonNegative, Positive
from hwtrain._parts.registry import register
from hwtrain.devices._around import AroundNoiseModel, ChangedProof
from hwtrain.devices._programmed import Programmed

K_EV = 8.617333262e-5
"""Boltzmann's constant in eV per K, exact since 2019."""


@register("noise_model", "read_disturb")
class ReadDisturb(AroundNoiseModel):
    r"""A noise model of devices whose conductance falls with the reads since writing.

    .. math::
        g(t) = g_0(t) \max\left(\frac{N(t)\, t_r}{\tau},\ 1\right)^{-p}, \qquad
        N(t) = r\, t, \qquad
        p = c\, e^{\alpha |V| / k T}, \qquad
        \tau = t_0 \big(A\, (1 - k_c N_c^m)\big)^{1 / p}

    with the conductances :math:`g_0` of the noise model, N reads of duration
    :math:`t_r` at the voltage V, r of them a second, and :math:`N_c` cycles of writing
    before. Up to :math:`\tau` of stress, nothing happens. The defaults are those of
    filaments in hafnium oxide that reads of the polarity of a reset disturb. To look at
    numbers of reads in the place of times, ask for the time N / r.

    >>> from hwtrain import StateIndependentNoiseModel
    >>> quiet = StateIndependentNoiseModel(prog_noise_scale=0.0, drift_scale=0.0)
    >>> model = ReadDisturb(
    ...     noise_model=quiet, read_voltage_v=0.3, read_time_s=1e-7, reads_per_s=1e6)
    >>> devices = model.program(jax.random.key(0), jnp.full((1,), 10.0))
    >>> print(model.mean_at(devices, 0.3), model.mean_at(devices, 1e6).round(2))
    [10.] [6.99]

    References:
      Jiang et al., An analytical model of read-disturb failure time in a post-cycling
      resistive switching memory, IEEE Transactions on Nanotechnology 2021.
    """

    type: Literal["read_disturb"] = "read_disturb"
    read_voltage_v: Positive
    """Magnitude of the voltage of a read, in V."""
    read_time_s: Positive
    """t_r, how long a read takes, in seconds."""
    reads_per_s: Positive
    """r, reads of a device in each second."""
    temperature_k: Positive = 300.0
    """T, in K."""
    write_cycles: NonNegative = 0.0
    """N_c, cycles of set and reset that the devices have seen. Zero: new devices."""
    t_0_s: Positive = 1.55e-8
    """t_0, in seconds."""
    onset: Positive = 1.43339
    """A, of which the stress that does nothing is a power."""
    to_fit: ClassVar = ("rate",)
    rate: Positive = 0.0068
    """c, the exponent p without a voltage."""
    acceleration_ev_per_v: Positive = 0.11
    """α, how the exponent grows with the voltage, in eV / V."""
    wear: Positive = 0.003
    """k_c, of the wear by cycles."""
    wear_exponent: Positive = 0.41
    """m, of the wear by cycles."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.wear * self.write_cycles**self.wear_exponent >= 1:
            raise InputError(
                f"after write_cycles={self.write_cycles:g} the devices are worn out: "
                "the law of reads holds while wear * write_cycles**wear_exponent < 1"
            )
        return self

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must differ after a given time."""
        disturbed = bool(self.factor(t_s) < 1)
        return disturbed or self.noise_model.must_drift(t_s)

    def describe(self) -> str:
        """Returns the noise model, and the reads."""
        return (
            f"{self.noise_model.describe() or self.noise_model.type}, disturbed by "
            f"{self.reads_per_s:g} reads per s at {self.read_voltage_v:g} V"
        )

    def factor(self, t_s: ArrayLike) -> jax.Array:
        """Returns the factor on conductances after reads for a time.

        Args:
          t_s: time since programming, in seconds. May be traced.
        """
        voltage = self.acceleration_ev_per_v * self.read_voltage_v
        p = self.rate * jnp.exp(jnp.asarray(voltage / (K_EV * self.temperature_k)))
        worn = 1.0
        if not isinstance(self.write_cycles, float) or self.write_cycles:
            worn = 1 - self.wear * jnp.asarray(self.write_cycles) ** self.wear_exponent
        # In logarithms, because 1 / p may be large.
        onset = jnp.log(self.t_0_s) + jnp.log(self.onset * worn) / p
        stress = jnp.asarray(t_s * self.reads_per_s * self.read_time_s, jnp.float32)
        passed = jnp.log(jnp.where(stress > 0, stress, 1.0)) - onset
        return jnp.exp(-p * jnp.where(stress > 0, jnp.maximum(passed, 0), 0.0))

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances at a given time, without read noise, in µS."""
        return self.noise_model.mean_at(programmed, t_s) * self.factor(t_s)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> Any:
        """Returns the standard deviation of one read, in µS."""
        return self.noise_model.read_sigma(programmed, t_s) * self.factor(t_s)

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns the conductances in one read at a given time, in µS."""
        return self.noise_model.at(key, programmed, t_s) * self.factor(t_s)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the noise model's, disturbed in NumPy."""
        kt = K_EV * self.temperature_k
        p = self.rate * np.exp(self.acceleration_ev_per_v * self.read_voltage_v / kt)
        worn = 1 - self.wear * self.write_cycles**self.wear_exponent
        tau = self.t_0_s * (self.onset * worn) ** (1 / p)

        def changed(sample: Any) -> Any:
            def disturbed(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Any:
                written, drift, read = sample(rng, g, t_s)
                stress = t_s * self.reads_per_s * self.read_time_s
                factor = (stress / tau) ** -p if stress > tau else 1.0
                return written, (written + drift) * factor - written, read * factor

            return disturbed

        self.noise_model.proof(ChangedProof(ctx, changed))
