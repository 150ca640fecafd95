"""Repeats a multiplication of a running model with other hardware."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import tiling
from hwtrain._flax.loops import as_new_root
from hwtrain._flax.observation import Multiplication, observed
from hwtrain._flax.signal_side import multiply
from hwtrain._parts.part import Part
from hwtrain._plan.hardware import Hardware
from hwtrain.periphery._tiled_matrix import TiledMatrix, cut_columns
from hwtrain.periphery.input_range import RANGE
from hwtrain.weights.mapping import MAPPING_SCALE, OUTPUT_SCALE

VECTORS = 6
"""Number of test vectors; noise is drawn for each of them."""


@dataclasses.dataclass(frozen=True)
class Rerun:
    """A multiplication that can be repeated with other hardware.

    Attributes:
      call: the multiplication.
      x: the test vectors, `[vectors, rows]`.
    """

    call: Multiplication
    x: jax.Array

    @functools.cached_property
    def outputs(self) -> Callable[[Hardware], jax.Array]:
        """Returns the outputs for the test vectors; each hardware is traced once."""
        return functools.cache(lambda chip: self.run(chip, self.x))

    @functools.cached_property
    def exact(self) -> "Rerun":
        """The same multiplication in float32, whatever the layer's dtype."""
        call = self.call._replace(
            x=self.call.x.astype(jnp.float32),
            w=self.call.w.astype(jnp.float32),
            dtype=jnp.float32,
        )
        return Rerun(call, self.x)

    def precisely(self, chip: Hardware, x: Any, **leaves: Any) -> jax.Array:
        """Runs in float32, also on devices that multiply less precisely."""
        with jax.default_matmul_precision("highest"):
            return self.exact.run(chip, x, **leaves)

    @functools.cached_property
    def size(self) -> jax.Array:
        """The root mean square of the layer's own outputs."""
        return jnp.maximum(rms(self.outputs(self.call.weight.hardware)), 1e-30)

    @functools.cached_property
    def tiles(self) -> TiledMatrix:
        """The weights of the tiles."""
        weight, w = self.call.weight, self.call.w.astype(jnp.float32)
        scale = self.call.leaves.get(MAPPING_SCALE.name)
        scale = weight.derived_scale(self.call.w) if scale is None else scale
        return TiledMatrix.cut(w, scale, weight.row_sizes, weight.column_sizes)

    def run(self, chip: Hardware, x: Any, **leaves: Any) -> jax.Array:
        """Multiplies as the layer would with other hardware."""
        call = self.call
        weight = dataclasses.replace(call.weight, hardware=chip, ranged=chip.ranged)
        changed = call._replace(
            weight=weight, x=x.astype(call.x.dtype), leaves={**call.leaves, **leaves}
        )
        with observed(None):  # as a first call each time, so that results compare
            return as_new_root(multiply, changed).astype(jnp.float32)

    def moved(self, part: Any) -> dict[str, jax.Array]:
        """Returns the leaves of a part, moved away from values that may be neutral."""
        if not isinstance(part, Part):
            return {}
        names = {leaf.name for leaf in part.leaves(self.call.weight)}
        leaves = {k: v for k, v in self.call.leaves.items() if k in names}
        return {k: moved_away(v) for k, v in leaves.items()}

    def factors(self) -> Any:
        """Returns the factors on tiles' outputs (scales), as from `cut_columns`."""
        learned = self.call.leaves.get(OUTPUT_SCALE.name, jnp.ones(()))
        if learned.ndim:
            learned = cut_columns(learned, self.tiles.column_sizes)
        return jnp.asarray(self.tiles.scale) * learned

    def of_layer(self, deviation: jax.Array) -> jax.Array:
        """Returns the deviation of the layer's outputs from that of its tiles."""
        sizes = self.tiles.column_sizes
        grid = (*self.call.weight.tiles, sizes[0])
        shape = jnp.broadcast_shapes(jnp.shape(deviation), grid)
        each = jnp.broadcast_to(deviation, shape)
        each = jnp.square(each * tiling.over_batch(self.factors(), each))
        return jnp.sqrt(tiling.join(tiling.add_tiles(each, -3), sizes, axis=-1))

    def beyond(self, bound: float) -> jax.Array:
        """Returns the test vectors, scaled so that their outputs exceed a bound."""
        y = jnp.max(jnp.abs(self.run(ideal(self.call.weight.hardware), self.x)))
        real = tiling.mask(self.tiles.column_sizes)
        largest = jnp.max(jnp.where(real, jnp.abs(self.factors()), 0))
        return self.x * 3 * bound * largest / jnp.maximum(y, 1e-30)

    def driven(self) -> jax.Array:
        """Returns the weights that the layer draws itself, as some rows respond."""
        chip, leaves = self.call.weight.hardware, {}
        if OUTPUT_SCALE.name in self.call.leaves:
            scale = self.call.leaves[OUTPUT_SCALE.name]
            leaves[OUTPUT_SCALE.name] = jnp.ones_like(scale)
        rows = self.x.shape[-1]
        x = jnp.eye(rows, dtype=jnp.float32)[driven_rows(rows)]
        chip = dataclasses.replace(ideal(chip), modifier=chip.modifier)
        with jax.default_matmul_precision("highest"):
            return self.exact.run(chip, x, **leaves)

    @functools.cached_property
    def spread_out(self) -> jax.Array:
        """The test vectors in normalised units, whatever the range."""
        return _normal(self.x.shape[-1])

    @functools.cached_property
    def heaviest(self) -> jax.Array:
        """The column with the largest weights; other columns may be all zeros."""
        w = jnp.abs(self.call.w.astype(jnp.float32))
        return jnp.argmax(jnp.sum(w, axis=0))

    def unlike_zero(self, sizes: list[float]) -> jax.Array:
        """Returns inputs of given sizes whose outputs do not cancel in one column."""
        signs = jnp.where(self.call.w[:, self.heaviest] < 0, -1.0, 1.0)
        return jnp.array(sizes, jnp.float32)[:, None] * signs[None]


def driven_rows(rows: int) -> np.ndarray:
    """Returns which rows `Rerun.driven` drives: a few, because each may cost a draw."""
    return np.unique(np.linspace(0, rows - 1, 16).astype(int))


def moved_away(leaf: jax.Array) -> jax.Array:
    """Returns other values of a leaf, whose own may be those of no effect."""
    return (1.25 * leaf + 0.05).astype(leaf.dtype)


def ideal(chip: Hardware) -> Hardware:
    """Returns hardware with the same mapping and nothing around its tiles."""
    return dataclasses.replace(chip, modifier=None, forward=None, input_range=None)


def vectors_for(call: Multiplication) -> jax.Array:
    """Returns `[VECTORS, rows]`, some well within the range and some beyond it."""
    largest = jnp.max(call.leaves[RANGE.name]) if call.weight.ranged else 1.0
    return _normal(call.x.shape[-1]) * largest


def _normal(rows: int) -> jax.Array:
    x = np.random.default_rng(0).normal(size=(VECTORS, rows)).astype(np.float32)
    return jnp.asarray(x * np.array([0.3, 0.3, 1, 1, 3, 3], np.float32)[:, None])


def rms(y: jax.Array) -> jax.Array:
    """Returns the root mean square."""
    return jnp.sqrt(jnp.mean(jnp.square(y)))


def undisturbed(call: Multiplication) -> jax.Array:
    """Performs the multiplication as the layer would have."""
    with observed(None):
        return multiply(call)
