"""The base of noise models that stand around another one."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Self

import jax
from jax.typing import ArrayLike
from pydantic import model_validator

from hwtrain._errors import InputError
from hwtrain._parts.cost import Cost
from hwtrain._parts.slot import Slot
from hwtrain.devices._programmed import Programmed
from hwtrain.devices.bases import NoiseModel


class AroundNoiseModel(NoiseModel):
    """Changes what another noise model says of its devices."""

    noise_model: Annotated[Any, Slot("noise_model")]
    """The noise model inside."""
    g_max: ClassVar[Any] = property(
        attrgetter("noise_model.g_max"),
        doc="That of the noise model inside, in µS.",
    )
    g_min: ClassVar[Any] = property(
        attrgetter("noise_model.g_min"),
        doc="That of the noise model inside, if it has one.",
    )
    normals: ClassVar[Any] = property(
        attrgetter("noise_model.normals"), doc="That of the noise model inside."
    )

    @model_validator(mode="after")
    def _check_once(self) -> Self:
        inside = self.noise_model
        if type(self).program is AroundNoiseModel.program:
            return self  # it draws nothing of its own
        while isinstance(inside, AroundNoiseModel):
            if type(inside) is type(self):
                raise InputError(
                    f"{self.type!r} stands around another {self.type!r}, which would "
                    "draw the same numbers for each device: state both effects in one"
                )
            inside = inside.noise_model
        return self

    def check_hardware(self, hardware: Any) -> None:
        """Raises where the noise model inside contradicts its hardware."""
        self.noise_model.check_hardware(hardware)

    def must_drift(self, t_s: float) -> bool:
        """Whether a chip must differ after a given time: if the model inside must."""
        return self.noise_model.must_drift(t_s)

    def programming_sigma(self, g: ArrayLike) -> Any:
        """Returns that of the noise model inside, at a target conductance in µS."""
        return self.noise_model.programming_sigma(g)

    def program(self, key: jax.Array, g_target: jax.Array) -> Programmed:
        """Returns devices as the noise model inside programs them."""
        return self.noise_model.program(key, g_target)

    def programmed_from(
        self, xi: Sequence[jax.Array], g_target: jax.Array
    ) -> Programmed:
        """Returns devices as the noise model inside programs them, by their numbers."""
        return self.noise_model.programmed_from(xi, g_target)

    def mean_at(self, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns that of the noise model inside, in µS, at a time in seconds."""
        return self.noise_model.mean_at(programmed, t_s)

    def read_sigma(self, programmed: Programmed, t_s: ArrayLike) -> Any:
        """Returns that of the noise model inside, in µS, at a time in seconds."""
        return self.noise_model.read_sigma(programmed, t_s)

    def at(self, key: jax.Array, programmed: Programmed, t_s: ArrayLike) -> jax.Array:
        """Returns a read of the noise model inside, in µS, at a time in seconds."""
        return self.noise_model.at(key, programmed, t_s)

    @property
    def corrects(self) -> bool:
        """Whether `correct` does anything: if that of the model inside does."""
        return self.noise_model.corrects

    def correct(
        self, key: jax.Array, devices: tuple[Programmed, ...], tiles: Any
    ) -> tuple[Programmed, ...]:
        """Returns the devices as the noise model inside corrects them."""
        return self.noise_model.correct(key, devices, tiles)

    def adjust(
        self, key: jax.Array, device: Programmed, change: jax.Array
    ) -> Programmed:
        """Returns the devices as the noise model inside adjusts them."""
        return self.noise_model.adjust(key, device, change)

    def cost(self, ctx: Any) -> Cost:
        """Returns the cost of the noise model inside."""
        return self.noise_model.cost(ctx)


class ChangedProof:
    """A context of a proof that changes what NumPy draws before it is compared."""

    def __init__(self, ctx: Any, change: Callable[[Any], Any]) -> None:
        """Takes the context, and a function from one sample to another."""
        self._ctx, self._change = ctx, change

    def behaves(self, sample: Callable[..., Any]) -> None:
        """Requires that devices are distributed as the changed sample draws them."""
        self._ctx.behaves(self._change(sample))

    def corrected(self) -> "ChangedProof":
        """Returns itself, for devices of a chip that `correct` has changed."""
        self._ctx.corrected()
        return self
