"""A test bench for the analog layers of a running model.

Every layer is measured in place, with the leaves, the weights and the mode that its
model gives it: what its multiplication does to test vectors, with each part and
without. What there is to measure of a part, the part says by `proof`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpy import nan

from hwtrain._arrays import tiling
from hwtrain._flax.observation import Multiplication
from hwtrain._parts.part import Part
from hwtrain._plan.hardware import Hardware
from hwtrain.evaluate._judgement import ENOUGH
from hwtrain.evaluate._rerun import VECTORS, Rerun, ideal, rms, vectors_for
from hwtrain.periphery.output_factor import OutputFactor

KEYS = 8
"""Steps that are measured, each with a key of its own; more of very small layers."""


_PLAIN = OutputFactor(factor=1.0)
"""A stage that does nothing, so that there is one."""


class Readings(NamedTuple):
    """What the bench reads of one multiplication, but for the first by effect.

    Attributes:
      w: `[rows, columns]`, the weights that the layer got.
      changes: the deviation of the outputs without it, relative to their size.
      noise: draws over their configured deviation, `[vectors, columns]`; NaN where that
        is zero, in columns of zeros.
      shared: the same of noise that all columns of a vector share.
      drawn: outputs, of the test vectors and of the same again.
      levels: outputs at 0, 0.4, 0.6 and 1 steps, `[4, columns]`.
      clipped: outputs at 1.5 and 3 bounds, `[2, columns]`.
      slopes: the gradient of a leaf, of an output that wants to grow.
    """

    w: jax.Array
    changes: dict[str, jax.Array]
    noise: dict[str, jax.Array]
    shared: dict[str, jax.Array]
    drawn: dict[str, jax.Array]
    levels: dict[str, jax.Array]
    clipped: dict[str, jax.Array]
    slopes: dict[str, jax.Array]


def read(call: Multiplication) -> Readings:
    """Returns the readings of a multiplication that a layer is about to do."""
    chip, found = call.weight.hardware, Readings(call.w, {}, {}, {}, {}, {}, {}, {})
    bench = Rerun(call, vectors_for(call))
    for place, stage in enumerate(chip.stages):
        stage.proof(Proof(bench, stage, _Stage(chip, place), found))
    if call.weight.ranged:
        around: Any = chip.range if chip.averages else chip.input_range
        around.proof(Proof(bench, around, _Range(chip), found))
    if chip.modifies_in_layer("train"):
        whole = _told_from(chip)
        other = dataclasses.replace(whole, modifier=None)
        change = bench.outputs(whole) - bench.outputs(other)
        found.changes["modifier"] = rms(change) / bench.size
    return found


@dataclasses.dataclass(frozen=True)
class _Stage:
    """The place of a stage.

    Attributes:
      chip: the hardware of the layer.
      number: which of its stages it is.
    """

    chip: Hardware
    number: int

    def whole(self) -> Hardware:
        """Returns the hardware that it is told from."""
        return _told_from(self.chip, but=self.number)

    def replaced(self, part: Part | None) -> Hardware:
        """Returns the same with another part there, or with none."""
        stages = list(self.whole().stages)
        stages[self.number : self.number + 1] = [] if part is None else [part]
        return self.chip.surrounded(stages, ranged=True)

    def alone(self, part: Part | None) -> Hardware:
        """Returns hardware with nothing around its tiles but a part in this place."""
        return ideal(self.chip).surrounded([] if part is None else [part])


@dataclasses.dataclass(frozen=True)
class _Range:
    """The place of the range of inputs; methods as above."""

    chip: Hardware

    def whole(self) -> Hardware:
        return _told_from(self.chip)

    def replaced(self, part: Any) -> Hardware:
        return self.chip.surrounded(self.whole().stages)

    def alone(self, part: Any) -> Hardware:
        # Where a layer has stages, its range is one of them.
        stages = [_PLAIN] if self.chip.converts else []
        chip = dataclasses.replace(self.chip, modifier=None)
        return chip.surrounded(stages, ranged=part is not None)


def _told_from(chip: Hardware, but: int | None = None) -> Hardware:
    """Returns the chip without the rounding of outputs, but for that of one stage.

    What is measured may be smaller than a step of the ADC.
    """
    stages = [s if i == but else s.unrounded for i, s in enumerate(chip.stages)]
    same = stages == list(chip.stages)
    return chip if same else chip.surrounded(stages, ranged=True)


class Proof:
    """Where what stands around a tile says what is to be measured of it.

    Units are normalised, as a stage sees them. An effect has the name of the part
    unless it has one of its own.

    Attributes:
      leaves: what lies beside the weights, by name.
      row_sizes: rows of each row tile.
      w: the weights, as `product` takes them.
    """

    def __init__(
        self, bench: Rerun, part: Any, place: _Stage | _Range, found: Readings
    ):
        self._bench, self._part, self._place = bench, part, place
        self._found = found
        self.leaves, self.row_sizes = bench.call.leaves, bench.tiles.row_sizes
        self.w = bench.tiles.weights

    def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Returns inputs times other weights, of the shape of `w`."""
        return self._bench.tiles.product(x, w)

    def differs(
        self, effect: str = "", without: Any = None, *, alone: bool = False
    ) -> None:
        """Outputs are others without it.

        Args:
          effect: its name.
          without: what stands there instead; `None` for nothing.
          alone: whether nothing else stands around the tile meanwhile.
        """
        place, outputs = self._place, self._bench.outputs
        whole = place.alone(self._part) if alone else place.whole()
        other = place.alone(without) if alone else place.replaced(without)
        change = rms(outputs(whole) - outputs(other))
        self._note("changes", effect, change / self._bench.size)

    def differs_beyond(
        self,
        bound: float,
        effect: str,
        *stages: Part,
        without: Iterable[Part] = (),
    ) -> None:
        """Outputs that exceed a bound are others with some stages than without.

        Args:
          bound: the bound.
          effect: its name.
          *stages: what stands around the tile: nothing else does.
          without: what stands there instead.
        """
        run, x = self._bench.run, self._bench.beyond(bound)
        plain = ideal(self._place.chip)
        whole, other = (run(plain.surrounded(each), x) for each in (stages, without))
        self._note("changes", effect, rms(whole - other))

    def deviates(
        self,
        deviation: Any,
        effect: str = "",
        *,
        of: Part | None = None,
        shared: bool = False,
    ) -> None:
        """It adds noise of a standard deviation to the outputs, another at each read.

        Args:
          deviation: of a tile's outputs, broadcastable against `[..., row tiles,
            column tiles, columns]`; or a function of the inputs, `[..., row tiles, 1,
            rows]`, that returns it.
          effect: its name.
          of: the part without other effects; by default the part.
          shared: whether all outputs of a vector share a draw, as of noise of inputs.
        """
        bench = self._bench
        # Of a noise that they share, columns tell no more than one.
        alike = 1 if shared else bench.call.w.shape[-1]
        x = jnp.tile(bench.x, (-(-2 * ENOUGH // (KEYS * VECTORS * alike)), 1))
        if callable(deviation):
            cut = tiling.cut(x, self.row_sizes, axis=-1)[..., None, :]
            deviation = deviation(cut)
        else:
            x = 0 * x  # on which it does not depend, and narrow outputs round as is
        size = bench.of_layer(jnp.asarray(deviation))
        noisy, quiet = self._place.alone(of or self._part), self._place.alone(None)
        noise = bench.run(noisy, x) - bench.run(quiet, x)
        unit = jnp.where(size > 0, noise / jnp.where(size > 0, size, 1), nan)
        self._note("shared" if shared else "noise", effect, unit)

    def draws_anew(self, effect: str = "") -> None:
        """It adds noise of any strength to the outputs, another at each read."""
        alone, x = self._place.alone(self._part), self._bench.x
        found = self._bench.run(alone, jnp.concatenate([x, x]))
        self._note("drawn", effect or f"{self._part.type} draws", found)

    def rounds(self, step: float, effect: str = "", *, of: Part | None = None) -> None:
        """Inputs are rounded to multiples of a step.

        Args:
          step: the step.
          effect: its name.
          of: the part without other effects; by default the part.
        """
        x = self._bench.unlike_zero([0, 0.4 * step, 0.6 * step, step])
        found = self._bench.run(self._place.alone(of or self._part), x)
        self._note("levels", effect or f"{self._part.type} levels", found)

    def clips(self, bound: Any, effect: str = "") -> None:
        """Inputs beyond a bound are clipped.

        Args:
          bound: the bound; of several, the largest counts.
          effect: its name.
        """
        found = self._bench.run(self._place.alone(self._part), self._outside(bound))
        self._note("clipped", effect or f"{self._part.type} clips", found)

    def follows(self, leaf: str, effect: str = "") -> None:
        """Outputs are others with twice the value of a leaf.

        Args:
          leaf: its name.
          effect: its name.
        """
        bench, whole = self._bench, self._place.whole()
        doubled = bench.run(whole, bench.x, **{leaf: 2 * self.leaves[leaf]})
        change = rms(bench.outputs(whole) - doubled) / bench.size
        self._note("changes", effect, change)

    def learns(self, leaf: str, effect: str = "") -> None:
        """A leaf that bounds the inputs has a gradient.

        Args:
          leaf: its name.
          effect: its name.
        """
        bench, beyond = self._bench, self._outside(self.leaves[leaf])
        alone = self._place.alone(self._part)

        def shrink(value: jax.Array) -> jax.Array:
            # Its gradient at the input is minus the sign of the input in that column.
            y = bench.run(alone, beyond, **{leaf: value})
            return -y[:, bench.heaviest].sum()

        slope = jax.grad(shrink)(self.leaves[leaf])
        self._note("slopes", effect or f"{self._part.type} learns", slope)

    def _note(self, kind: str, effect: str, reading: jax.Array) -> None:
        known, name = getattr(self._found, kind), effect or self._part.type
        count = sum(other.split(" #")[0] == name for other in known)
        # Of several alike, each must act.
        known[f"{name} #{count + 1}" if count else name] = reading

    def _outside(self, bound: Any) -> jax.Array:
        return self._bench.unlike_zero([1.5, 3]) * jnp.max(bound)
