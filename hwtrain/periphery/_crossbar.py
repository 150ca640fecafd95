"""What stages ask of a crossbar, be it of a product or of a convolution."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import jax


class Crossbar(Protocol):
    """The weights of a tile, and how they multiply, in normalised units.

    A product has inputs `[..., row tiles, column tiles or 1, rows]` and outputs
    `[..., row tiles, column tiles, columns]`. A convolution as a whole has inputs
    `[batch, *spatial, channels]` and outputs `[batch, *positions, groups, 1, features
    of a group]`: what a stage does to outputs, or to each value of the inputs alike, it
    can do to both.
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
        """The same, to which no gradient passes."""
        ...

    @property
    def weights(self) -> jax.Array:
        """The weights in units of the crossbar, as `product` takes them."""
        ...

    def read(self, x: jax.Array) -> jax.Array:
        """Returns the inputs of this read, at the end of the stages, multiplied."""
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
        """Returns inputs within the range that a stage has, and the range of each."""
        ...

    def of_range(self, r: jax.Array) -> jax.Array:
        """Returns the range of each output, of that of each input."""
        ...

    def counted(self, y: jax.Array, probe: jax.Array, bound: Any) -> jax.Array:
        """Returns outputs, counted in the gradient of the range's probe."""
        ...

    def total(self, x: jax.Array) -> jax.Array:
        """Returns the sum of the inputs of each tile, with a last axis of 1."""
        ...

    def inputs_of(self, x: jax.Array) -> tuple[tuple[int, ...], Any]:
        """Returns the shape of inputs that differ between tiles, and which are real."""
        ...

    def real_outputs(self, y: jax.Array) -> Any:
        """Returns which outputs are real, and not padding."""
        ...

    def of_outputs(
        self, draw: Callable[[jax.Array, Sequence[int]], jax.Array], key: jax.Array
    ) -> jax.Array:
        """Returns a draw for each output, without the axes of a batch."""
        ...
