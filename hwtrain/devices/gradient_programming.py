"""Programming of whole tiles by the gradient of the error of their outputs."""

from typing import Annotated, Any, Literal

import jax
from pydantic import Field

from hwtrain._arrays.random import draw_key, fold_in
from hwtrain._parts.cost import Cost
from hwtrain._parts.fields import PositiveShare, at_least
from hwtrain._parts.registry import register
from hwtrain.devices._around import AroundNoiseModel
from hwtrain.devices._programmed import Programmed

Iterations = Annotated[int, Field(ge=1, le=100_000)]
Examples = Annotated[int, Field(ge=1, le=65_536)]
Rate = Annotated[float, Field(lt=2), *at_least(1e-12)]


@register("noise_model", "gradient_programmed")
class GradientProgrammedNoiseModel(AroundNoiseModel):
    r"""Devices that are corrected until their tile multiplies as it should.

    First `noise_model` programs each device by itself. Then, of K times, time k drives
    a tile by random inputs, compares its outputs with the exact products, and asks the
    devices for a step against the gradient of the squared error:

    .. math::
        \Delta W_k = -\eta \Big(1 - \frac k K\Big)
            \frac{X_k^T \big(f(X_k, w_k) - X_k W\big)}
            {\sigma_x^2 (\sqrt B + \sqrt n)^2}

    with W the nominal weights, f the chip's tile with its devices, the noise of their
    reads and its whole periphery, and B inputs to n rows, uniform between plus and
    minus `input_scale`. Each device takes its share, the smallest changes that together
    give this one, as well as it can: by `noise_model.adjust`. What is frozen in a chip,
    such as errors of its columns or mismatch, is thus compensated by the conductances,
    and so is the deviation of each device.

    What devices do afterwards is said by `noise_model`. A model around this one, such
    as a temperature, also changes the reads that corrections rely on.

    >>> import hwtrain
    >>> devices = hwtrain.PCMLikeNoiseModel()
    >>> model = GradientProgrammedNoiseModel(noise_model=devices, iterations=20)
    >>> print(model.describe())
    pcm_like, corrected 20 times by the outputs of 64 inputs

    References:
      Büchel et al., Programming weights to analog in-memory computing cores by direct
      minimization of the matrix-vector multiplication error, IEEE Journal on Emerging
      and Selected Topics in Circuits and Systems 13, 2023.
    """

    type: Literal["gradient_programmed"] = "gradient_programmed"
    iterations: Iterations = 50
    """K, the number of corrections."""
    examples: Examples = 64
    """B, the number of inputs of each correction."""
    rate: Rate = 0.5
    """η, the share of an error that the first correction takes back where it is
    measured best."""
    input_scale: PositiveShare = 1.0
    """The largest input, as a share of the DAC's full scale."""

    def describe(self) -> str:
        """Returns what programs the devices, and the number of corrections."""
        return (
            f"{self.noise_model.describe() or self.noise_model.type}, corrected "
            f"{self.iterations} times by the outputs of {self.examples} inputs"
        )

    @property
    def corrects(self) -> bool:
        """Whether `correct` does anything: always."""
        return True

    def correct(
        self, key: jax.Array, devices: tuple[Programmed, ...], tiles: Any
    ) -> tuple[Programmed, ...]:
        """Returns the devices after all corrections; arguments as in `NoiseModel`."""

        def correction(number: Any, devices: tuple[Programmed, ...]) -> Any:
            now = fold_in(draw_key(key, "", "correction"), number)
            wanted = tiles.changes(
                now, devices, examples=self.examples, input_scale=self.input_scale
            )
            rate = self.rate * (1 - number / self.iterations)
            adjusted = [
                self.noise_model.adjust(
                    draw_key(now, "", "adjust", part), device, rate * change
                )
                for part, (device, change) in enumerate(zip(devices, wanted))
            ]
            return tiles.with_stuck(tuple(adjusted))

        devices = self.noise_model.correct(key, devices, tiles)
        # The numbers of pulses of the first correction have the structure of all.
        devices = correction(0, devices)
        return jax.lax.fori_loop(1, self.iterations, correction, devices)

    def cost(self, ctx: Any) -> Cost:
        """Returns the cost of the devices, and what correcting takes, as a note."""
        note = (
            "correcting its devices, once, takes "
            f"{self.iterations * self.examples} reads of each tile"
        )
        return super().cost(ctx) + Cost(notes=(note,))

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: that devices are other than uncorrected ones.

        Those before any correction, drift and reads are measured as `noise_model`
        declares them.
        """
        self.noise_model.proof(ctx.corrected())
