"""What a chip's controller measures of the tiles of a weight while it programs them."""

import dataclasses

import jax
import jax.numpy as jnp

from hwtrain._arrays import tiling
from hwtrain._arrays.random import draw_key, uniform
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips import _conductances as conductances
from hwtrain.chips import _tile_reads as reads
from hwtrain.devices._conversion import Params
from hwtrain.devices._programmed import Programmed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredTiles:
    """The tiles of one weight, and the weights that they should have.

    Attributes:
      weight: the plan of the array.
      params: the parameters of the nominal weights' conversion.
      target: `[*stack, rows, columns]`, the nominal weights in units of the crossbar.
      frozen: key of the frozen properties of the periphery.
    """

    weight: AnalogWeight
    params: Params
    target: jax.Array
    frozen: jax.Array

    def changes(
        self,
        key: jax.Array,
        devices: tuple[Programmed, ...],
        *,
        examples: int,
        input_scale: float = 1.0,
    ) -> list[jax.Array]:
        r"""Returns the changes of conductances that random inputs ask for, in µS.

        .. math::
            \Delta W &= -\frac{X^T \big(f(X, w) - X W\big)}
                {\sigma_x^2 (\sqrt B + \sqrt n)^2}, \\
            \Delta g_d &= \frac{\partial w / \partial g_d}
                {\sum_e (\partial w / \partial g_e)^2}\, \Delta W

        with f the tile, its reads and its periphery, W the nominal weights, and X of B
        examples and n rows, uniform of variance :math:`\sigma_x^2`. The divisor is the
        largest eigenvalue of X'X for many examples and rows (Marchenko and Pastur
        1967), so that repeated corrections converge, of linear tiles by a factor of
        1 - B / (√B + √n)² each.

        Args:
          key: a JAX key, a new one for each measurement.
          devices: the devices, in the converter's order.
          examples: B, the number of inputs.
          input_scale: the largest input, as a share of the DAC's full scale.
        """
        weight = self.weight
        rows, row_sizes = weight.row_sizes[0], weight.row_sizes
        shape = (*weight.stack, examples, len(row_sizes), rows)
        inputs = 2 * uniform(draw_key(key, "", "inputs"), shape) - 1
        inputs = jnp.where(tiling.mask(row_sizes), input_scale * inputs, 0)
        read = [
            reads.read_device(weight, device, 0.0, draw_key(key, "", "read", part))
            for part, device in enumerate(devices)
        ]
        w = reads.weights_of(weight, read, self.params)
        found = reads.outputs(
            weight, w, inputs, draw_key(key, "", "output"), frozen=self.frozen
        )
        wanted = jnp.einsum(
            "...brj,...rcjk->...brck",
            inputs,
            reads.exact_responses(weight, self.target),
            precision="highest",
        )
        sizes = jnp.sqrt(jnp.asarray(row_sizes, jnp.float32))[:, None, None, None]
        largest = input_scale**2 / 3 * (examples**0.5 + sizes) ** 2
        slope = jnp.einsum("...brj,...brck->...rcjk", inputs, found - wanted)
        step = conductances.join(weight, -slope / largest)
        return self._by_device(devices, step)

    def with_stuck(self, devices: tuple[Programmed, ...]) -> tuple[Programmed, ...]:
        """Returns the devices with those that are stuck at their ends again."""
        return tuple(
            device
            if device.stuck is None
            else dataclasses.replace(
                device,
                g_prog=reads.with_stuck_devices(
                    self.weight, device.g_prog, device.stuck
                ),
            )
            for device in devices
        )

    def _by_device(
        self, devices: tuple[Programmed, ...], step: jax.Array
    ) -> list[jax.Array]:
        """Returns the smallest changes of conductances for changes of the weights."""
        weight = self.weight
        now = [weight.to_matrix(device.g_prog) for device in devices]

        def weights(g: list[jax.Array]) -> jax.Array:
            return conductances.back_to_weights(weight, g, self.params)

        _, pull = jax.vjp(weights, now)
        (slopes,) = pull(jnp.ones_like(step))
        size = sum(slope**2 for slope in slopes)
        share = step / jnp.where(size == 0, 1.0, size)
        return [weight.from_matrix(slope * share) for slope in slopes]
