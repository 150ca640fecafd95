"""The interface of a crossbar to stages, for products and convolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import jax


class Crossbar(Protocol):
    """The weights of a tile and their products, in normalised units.

    A product has inputs `[..., row tiles, column tiles or 1, rows]` and outputs
    `[..., row tiles, column tiles, columns]`. A convolution as a whole has inputs
    `[batch, *spatial, channels]`, those of several tiles side by side, and outputs
    `[batch, *positions, groups or row tiles, column tiles, features]`.
    Operations on outputs, or on each input value alike, work with both.
    """

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """Rows of each row tile."""
        ...

    @property
    def whole(self) -> bool:
        """Whether it is a convolution as a whole."""
        ...

    @property
    def fixed(self) -> Self:
        """The same without gradients of the weights."""
        ...

    @property
    def weights(self) -> jax.Array:
        """The weights in units of the crossbar, as `product` takes them."""
        ...

    def read(self, x: jax.Array) -> jax.Array:
        """Returns the product of this read, inside all stages."""
        ...

    def multiply(self, x: jax.Array) -> jax.Array:
        """Returns inputs times the weights."""
        ...

    def multiply_absolute(self, x: jax.Array) -> jax.Array:
        """Returns inputs times the absolute weights."""
        ...

    def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Returns inputs times other weights, of the shape of `weights`."""
        ...

    def ranged(
        self, stage: Any, x: jax.Array, leaves: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns inputs clipped to the range of a stage, and the range of each."""
        ...

    def of_range(self, r: jax.Array) -> jax.Array:
        """Returns the range of each output, from that of each input."""
        ...

    def counted(self, y: jax.Array, probe: jax.Array, bound: Any) -> jax.Array:
        """Returns the outputs, and counts them in the gradient of the probe."""
        ...

    def holding(self, w: jax.Array) -> Self:
        """Returns the same with other weights, of the shape of `weights`."""
        ...

    def total(self, x: jax.Array) -> jax.Array:
        """Returns the sum of the inputs of each tile, with a last axis of 1."""
        ...

    def inputs_of(self, x: jax.Array) -> tuple[tuple[int, ...], Any]:
        """Returns the shape of inputs per tile, and which inputs are not padding."""
        ...

    def real_outputs(self, y: jax.Array) -> Any:
        """Returns which outputs are not padding."""
        ...

    def of_outputs(
        self, draw: Callable[[jax.Array, Sequence[int]], jax.Array], key: jax.Array
    ) -> jax.Array:
        """Returns a draw for each output, without batch axes."""
        ...

    def of_inputs(
        self, draw: Callable[[Any, Sequence[int]], jax.Array], key: Any
    ) -> jax.Array:
        """Returns a draw for each row of each tile, without batch axes."""
        ...
