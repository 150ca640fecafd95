"""A test bench for the analog layers of a running model.

Every layer is measured in place, with the leaves, weights and mode that its model gives
it: the outputs of its multiplication for test vectors, with and without each part. Each
part declares in `proof` which measurements it needs.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy import nan

from hwtrain._arrays import tiling
from hwtrain._flax.observation import Multiplication
from hwtrain._parts.part import Part
from hwtrain._plan.hardware import Hardware
from hwtrain.evaluate._judgement import ENOUGH
from hwtrain.evaluate._rerun import VECTORS, Rerun, ideal, rms, vectors_for
from hwtrain.evaluate._responses import Response, Tiles
from hwtrain.periphery.output_factor import OutputFactor

KEYS = 8
"""Measured steps, each with its own key; very small layers need more."""

_PLAIN = OutputFactor(factor=1.0)
"""A stage without effect, for hardware that needs a stage."""


class Readings(NamedTuple):
    """The readings of one multiplication; all fields but `w` are by effect.

    Attributes:
      w: `[rows, columns]`, the weights that the layer got.
      changes: deviation of the outputs without the effect, relative to their size.
      moved: likewise, for a part with leaves, with its leaves moved: `{names: change}`.
      noise: draws over their configured deviation, `[vectors, columns]`; NaN where that
        is zero, in columns of zeros.
      shared: likewise, for noise that all columns of a vector share.
      drawn: outputs for the test vectors, each given twice.
      spreads: as `noise`, for numbers that all vectors share, as those of a chip.
      varied: estimates of the variance of a noise's strength over the outputs, over
        the configured one, `[columns]`.
      responses: outputs, and what NumPy computes for them.
      slopes: gradient of a leaf, for a loss that asks for larger outputs.
      tiles: the weights of the tiles in float32, and the factors on their outputs, for
        `responses`; `None` without any.
      driven: weights that the layer draws itself, for some rows; `None` for others.
    """

    w: jax.Array
    changes: dict[str, jax.Array]
    moved: dict[str, dict[str, jax.Array]]
    noise: dict[str, jax.Array]
    shared: dict[str, jax.Array]
    drawn: dict[str, jax.Array]
    spreads: dict[str, jax.Array]
    varied: dict[str, jax.Array]
    responses: dict[str, Response]
    slopes: dict[str, jax.Array]
    tiles: tuple[jax.Array, jax.Array] | None = None
    driven: jax.Array | None = None


def read(call: Multiplication) -> Readings:
    """Returns the readings of a multiplication that a layer is about to perform."""
    empty: Any = [{} for _ in Readings._fields[1:-2]]
    chip, found = call.weight.hardware, Readings(call.w, *empty)
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
        found = found._replace(driven=bench.driven())
    if found.responses:
        tiles = bench.exact.tiles.weights, bench.exact.factors()
        found = found._replace(tiles=tiles)
    return found


@dataclasses.dataclass(frozen=True)
class _Stage:
    """The position of a stage.

    Attributes:
      chip: the hardware of the layer.
      number: index of the stage.
    """

    chip: Hardware
    number: int

    def whole(self) -> Hardware:
        """Returns the reference hardware for comparisons."""
        return _told_from(self.chip, but=self.number)

    def replaced(self, part: Part | None) -> Hardware:
        """Returns the reference hardware with this stage replaced, or removed."""
        stages = list(self.whole().stages)
        stages[self.number : self.number + 1] = [] if part is None else [part]
        return self.chip.surrounded(stages, ranged=True)

    def alone(self, *parts: Part | None) -> Hardware:
        """Returns hardware with only the given parts around its tiles."""
        return ideal(self.chip).surrounded([part for part in parts if part])


@dataclasses.dataclass(frozen=True)
class _Range:
    """The position of the input range; methods as in `_Stage`."""

    chip: Hardware

    def whole(self) -> Hardware:
        return _told_from(self.chip)

    def replaced(self, part: Any) -> Hardware:
        return self.chip.surrounded(self.whole().stages)

    def alone(self, part: Any, *inside: Part) -> Hardware:
        # In a layer with stages, the range is one of them.
        stages = inside or ([_PLAIN] if self.chip.converts else [])
        chip = dataclasses.replace(self.chip, modifier=None)
        return chip.surrounded(stages, ranged=part is not None)


def _units(noise: jax.Array, size: jax.Array) -> jax.Array:
    """Returns noise over its deviation; NaN where that is zero."""
    return jnp.where(size > 0, noise / jnp.where(size > 0, size, 1), nan)


def _told_from(chip: Hardware, but: int | None = None) -> Hardware:
    """Returns the chip without output rounding, except that of stage `but`.

    The measured changes may be smaller than a step of the ADC.
    """
    stages = [s if i == but else s.unrounded for i, s in enumerate(chip.stages)]
    same = stages == list(chip.stages)
    return chip if same else chip.surrounded(stages, ranged=True)


class Proof:
    """Lets a part around a tile declare what is to be measured.

    Units are normalised, as a stage sees them. An effect is named after the part unless
    a name is given.

    Attributes:
      leaves: the leaves beside the weights, by name.
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
        """Returns the product of inputs and other weights of the shape of `w`."""
        return self._bench.tiles.product(x, w)

    def differs(
        self, effect: str = "", without: Any = None, *, alone: bool = False
    ) -> None:
        """Requires that outputs differ without the part.

        Args:
          effect: the effect's name.
          without: a part to put in its place; `None` for none.
          alone: compare with nothing else around the tile.
        """
        place, outputs = self._place, self._bench.outputs
        whole = place.alone(self._part) if alone else place.whole()
        other = place.alone(without) if alone else place.replaced(without)
        change = rms(outputs(whole) - outputs(other))
        name = self._note("changes", effect, change / self._bench.size)
        leaves = self._bench.moved(self._part)
        if leaves:
            # At its start a part may be neutral, such as a learned gain of 1.
            run, x = self._bench.run, self._bench.x
            change = rms(run(whole, x, **leaves) - run(other, x, **leaves))
            named = ", ".join(map(repr, leaves))
            self._found.moved[name] = {named: change / self._bench.size}

    def differs_beyond(
        self,
        bound: float,
        effect: str,
        *stages: Part,
        without: Iterable[Part] = (),
    ) -> None:
        """Requires that outputs beyond a bound differ with some stages from without.

        Args:
          bound: the bound.
          effect: the effect's name.
          *stages: the stages around the tile; there are no others.
          without: the stages to compare with.
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
        pooled: bool = False,
    ) -> None:
        """Requires noise of a given standard deviation, drawn anew at each read.

        Args:
          deviation: standard deviation of a tile's outputs, broadcastable against
            `[..., row tiles, column tiles, columns]`; or a function of the inputs,
            `[..., row tiles, 1, rows]`, that returns it.
          effect: the effect's name.
          of: the part without its other effects; by default the part.
          shared: whether all outputs of a vector share a draw, as for input noise.
          pooled: measure the mean square of all outputs, for numbers that differ much
            from normal ones where their deviation is small.
        """
        bench = self._bench
        # Columns that share their noise count as one.
        alike = 1 if shared else bench.call.w.shape[-1]
        x = jnp.tile(bench.x, (-(-2 * ENOUGH // (KEYS * VECTORS * alike)), 1))
        if callable(deviation):
            cut = tiling.cut(x, self.row_sizes, axis=-1)[..., None, :]
            deviation = deviation(cut)
        else:
            x = 0 * x  # the noise ignores x, and narrow dtypes round least near 0
        size = bench.of_layer(jnp.asarray(deviation))
        noisy, quiet = self._place.alone(of or self._part), self._place.alone(None)
        run = bench.precisely if pooled else bench.run
        noise = run(noisy, x) - run(quiet, x)
        if pooled:
            size = jnp.broadcast_to(rms(size), noise.shape)
        self._note("shared" if shared else "noise", effect, _units(noise, size))

    def spreads(
        self,
        deviation: Any,
        effect: str,
        *,
        of: Part,
        alike: Part | None = None,
        around: Iterable[Part] = (),
        inputs: float = 1.0,
    ) -> None:
        """Requires numbers of a given deviation that all vectors of a step share.

        They are measured in the first row tile alone, without inputs of the others.

        Args:
          deviation: function of the inputs of tiles that returns the root mean square
            of the change of a tile's outputs.
          effect: the effect's name.
          of: the part without its other effects.
          alike: the same without a spread; `None` for no part.
          around: further stages in both cases.
          inputs: about the largest input.
        """
        bench = self._bench
        of_first = jnp.arange(bench.x.shape[-1]) < self.row_sizes[0]
        x = bench.spread_out * of_first * inputs
        cut = tiling.cut(x, self.row_sizes, axis=-1)[..., None, :]
        size = bench.of_layer(deviation(cut))
        run, alone = bench.precisely, self._place.alone
        y = run(alone(alike, *around), x)
        size = jnp.where(size > 1e-5 * rms(y), size, 0)
        self._note("spreads", effect, _units(run(alone(of, *around), x) - y, size))

    def varies(self, sigma: float, spread: float, effect: str) -> None:
        r"""Requires noise at the outputs whose strength is spread over them.

        Its deviation is :math:`\sigma\, |1 + s\, \zeta|`, with a normal number for each
        output that all vectors of a step share.

        Args:
          sigma: the deviation without a spread.
          spread: s.
          effect: the effect's name.
        """
        bench = self._bench
        x = jnp.zeros((2 * ENOUGH, bench.x.shape[-1]))
        noisy, quiet = self._place.alone(self._part), self._place.alone(None)
        noise = bench.precisely(noisy, x) - bench.precisely(quiet, x)
        one = bench.of_layer(jnp.asarray(sigma))
        halves = jnp.square(noise / jnp.maximum(one, 1e-30)).reshape(2, ENOUGH, -1)
        first, again = halves.mean(axis=1) - (1 + spread**2)
        # Of tiles that are added, each has numbers of its own.
        factors = bench.of_layer(jnp.asarray(1.0)), bench.of_layer(bench.factors())
        alike = factors[1] ** 2 / jnp.maximum(factors[0], 1e-30) ** 4
        expected = (4 * spread**2 + 2 * spread**4) * alike
        self._note("varied", effect, first * again / jnp.maximum(expected, 1e-30))

    def draws_anew(self, effect: str = "") -> None:
        """Requires noise of any strength on the outputs, drawn anew at each read."""
        alone, x = self._place.alone(self._part), self._bench.x
        found = self._bench.run(alone, jnp.concatenate([x, x]))
        self._note("drawn", effect or f"{self._part.type} draws", found)

    def responds(
        self,
        expected: Callable[..., Any],
        effect: str = "",
        *stages: Part,
        rest: Callable[..., Any] | None = None,
        inputs: float = 1.0,
        outputs: float | None = None,
        leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
    ) -> None:
        """Requires the outputs that NumPy computes.

        Args:
          expected: function `(x, tile)` of inputs `[vectors, row tiles, 1, rows]` that
            returns outputs `[vectors, row tiles, column tiles, columns]`. `tile` has
            the weights `w`, `row_sizes`, `multiply(x)` and `product(x, w)`. It must not
            use the part's own functions, or it could not tell them from others.
          effect: the effect's name.
          *stages: the stages around the tile, by default the part; there are no others.
          rest: the same function without the effect; by default the product.
          inputs: about the largest input that matters: some are smaller, some larger.
          outputs: scale the inputs such that the largest output is three times this.
          leaves: other values of leaves, which the functions get as further arguments.
        """
        x = self._bench.spread_out * inputs
        if outputs is not None:
            x = self._bench.beyond(outputs)
        alone = self._place.alone(*(stages or (self._part,)))
        given = tuple(leaves.values())
        self._responds(alone, x, expected, effect, *given, rest=rest, leaves=leaves)

    def rounds(self, step: float, effect: str = "", *, of: Part | None = None) -> None:
        """Requires that inputs are rounded to multiples of a step.

        Args:
          step: the step.
          effect: the effect's name.
          of: the part without its other effects; by default the part.
        """
        self._responds(
            self._place.alone(of or self._part),
            self._bench.unlike_zero([0, 0.4 * step, 0.6 * step, step]),
            lambda x, tile: tile.multiply(step * np.rint(x / step)),
            effect or f"{self._part.type} levels",
            amount="as many",
            wrong="the inputs are not rounded to its steps",
        )

    def clips(self, bound: Any, effect: str = "", *, of: Part | None = None) -> None:
        """Requires that inputs beyond a bound are clipped to it.

        Args:
          bound: the bound: a number, or one for each tile, `[row tiles, column tiles]`.
          effect: the effect's name.
          of: the part without its other effects; by default the part.
        """

        def clipped(x: np.ndarray, tile: Tiles, bound: np.ndarray) -> np.ndarray:
            bound = np.asarray(bound, np.float64)[..., None]
            return tile.multiply(np.clip(x, -bound, bound))

        self._responds(
            self._place.alone(of or self._part),
            self._outside(bound),
            clipped,
            effect or f"{self._part.type} clips",
            jnp.asarray(bound, jnp.float32),
            amount="at its bound",
            wrong="inputs beyond its bound are not clipped",
        )

    def _responds(
        self,
        chip: Hardware,
        x: jax.Array,
        expected: Callable[..., Any],
        effect: str,
        *arguments: Any,
        rest: Callable[..., Any] | None = None,
        leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
        amount: str = "",
        wrong: str = "",
    ) -> None:
        rest = rest or (lambda x, tile, *_: tile.multiply(x))
        found = Response(
            x,
            self._bench.precisely(chip, x, **leaves),
            arguments,
            expected,
            rest,
            amount,
            wrong,
        )
        self._note("responses", effect, found)

    def follows(self, leaf: str, effect: str = "") -> None:
        """Requires that outputs change when a leaf's value is doubled.

        Args:
          leaf: the leaf's name.
          effect: the effect's name.
        """
        bench, whole = self._bench, self._place.whole()
        doubled = bench.run(whole, bench.x, **{leaf: 2 * self.leaves[leaf]})
        change = rms(bench.outputs(whole) - doubled) / bench.size
        self._note("changes", effect, change)

    def learns(self, leaf: str, effect: str = "") -> None:
        """Requires a gradient of a leaf that bounds the inputs.

        Args:
          leaf: the leaf's name.
          effect: the effect's name.
        """
        bench, beyond = self._bench, self._outside(self.leaves[leaf])
        alone = self._place.alone(self._part)

        def shrink(value: jax.Array) -> jax.Array:
            # Its gradient at an input is minus the input's sign in that column.
            y = bench.run(alone, beyond, **{leaf: value})
            return -y[:, bench.heaviest].sum()

        slope = jax.grad(shrink)(self.leaves[leaf])
        self._note("slopes", effect or f"{self._part.type} learns", slope)

    def _note(self, kind: str, effect: str, reading: Any) -> str:
        known, name = getattr(self._found, kind), effect or self._part.type
        count = sum(other.split(" #")[0] == name for other in known)
        # Parts of the same name are numbered, because each must act.
        name = f"{name} #{count + 1}" if count else name
        known[name] = reading
        return name

    def _outside(self, bound: Any) -> jax.Array:
        return self._bench.unlike_zero([1.5, 3]) * jnp.max(bound)
