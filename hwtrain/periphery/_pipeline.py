"""The stages around a tile, run from the outermost to the innermost."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._parts.part import Part
from hwtrain.periphery._crossbar import Crossbar
from hwtrain.periphery._read_keys import READ_EFFECTS, effect_key
from hwtrain.physics.random import (
    draw_key,
    draw_name,
    fold_in,
    normal,
    once,
    stable_hash,
    uniform,
)
from hwtrain.physics.tiling import over_batch


class Tape:
    """What a read draws, in the order of its draws: kept, or given."""

    def __init__(self, given: Sequence[jax.Array] | None = None):
        self.drawn: list[jax.Array] = [] if given is None else list(given)
        self.notes: dict[str, jax.Array] = {}
        self._next = None if given is None else iter(self.drawn)

    def draw(self, function: Callable[[], jax.Array]) -> jax.Array:
        """Returns the next draw."""
        if self._next is not None:
            return next(self._next)
        self.drawn.append(function())
        return self.drawn[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage knows of its tile, and how it draws.

    Attributes:
      crossbar: the weights of the tile, and how they multiply.
      leaves: the parameters beside the weights that belong to the periphery, by name.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_key: key of what is frozen in a chip; `None` for no spread.
      strength: factor on the standard deviation of all noise and spreads.
      tape: keeps what is drawn, or gives it; `None` for neither.
      searching: whether this read is a trial, which nothing is differentiated through
        and nothing counted in.
      stage: the stage that runs, which says when it draws.
    """

    crossbar: Crossbar
    leaves: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    keys: jax.Array | None = None
    chip_key: jax.Array | None = None
    strength: ArrayLike = 1.0
    tape: Tape | None = None
    searching: bool = False
    stage: Any = None

    def multiply(self, x: jax.Array) -> jax.Array:
        """Returns inputs times the weights of the crossbar."""
        return self.crossbar.multiply(x)

    def multiply_absolute(self, x: jax.Array) -> jax.Array:
        """Returns inputs times the absolute weights."""
        return self.crossbar.multiply_absolute(x)

    def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Returns inputs times other weights, of the shape of `w`."""
        return self.crossbar.product(x, w)

    @property
    def w(self) -> jax.Array:
        """The weights in units of the crossbar."""
        return self.crossbar.weights

    def normal(self, effect: str, shape: Sequence[int]) -> Any:
        """Returns standard normal noise of this read times its strength; 0 for none."""
        self._check_draws("read")
        if self.keys is None:
            return 0.0
        noise = self._drawn(effect, shape, normal)
        return over_batch(jnp.asarray(self.strength), noise) * noise

    def uniform(self, effect: str, shape: Sequence[int]) -> jax.Array | None:
        """Returns numbers in [0, 1), whatever the strength; `None` for none."""
        self._check_draws("read")
        return None if self.keys is None else self._drawn(effect, shape, uniform)

    def spread(self, std: float, effect: str) -> Any:
        """Returns what is frozen in a chip, for each output: 0 without a chip."""
        if std == 0:
            return 0.0
        self._check_draws("chip")
        if self.chip_key is None:
            return 0.0
        key = self.chip_key
        unit = self.crossbar.of_outputs(
            lambda key, shape: normal(draw_key(key, "", effect), shape), key
        )
        return std * (jnp.asarray(self.strength) * unit)

    def note(self, name: str, value: jax.Array) -> None:
        """Tells a stage around, which tries several reads, of what it cannot see."""
        if self.tape is not None:
            self.tape.notes[name] = value

    def at(self, number: Any) -> "Context":
        """Returns the context of another read; 0 is the first, with these keys."""
        first = isinstance(number, int) and number == 0
        if first or self.keys is None:
            return self
        return dataclasses.replace(self, keys=fold_in(self.keys, number))

    def _check_draws(self, when: Any) -> None:
        """Raises where a stage draws what no key would be given for."""
        if isinstance(self.stage, Part) and not self.stage.draws_at(when):
            name, says = type(self.stage).__name__, self.stage.draws
            raise ValueError(
                f"{name} draws at each {when}, and says draws = {says!r}: it would get "
                f'no key, and do nothing. Write draws = "{when}" in its class, or a '
                "tuple of all that it draws"
            )

    def _drawn(self, effect: str, shape: Sequence[int], kind: Any) -> jax.Array:
        def draw():
            return once(self._key(effect), lambda key: kind(key, tuple(shape)))

        return draw() if self.tape is None else self.tape.draw(draw)

    def _key(self, effect: str) -> jax.Array:
        assert self.keys is not None
        if effect in READ_EFFECTS:
            return effect_key(self.keys, effect)
        return fold_in(self.keys[..., 0], stable_hash(draw_name("", effect)))


class Inner:
    """All that lies further in than a stage, down to the multiplication.

    Each call is another read of the tile, whose noise is drawn anew.
    """

    def __init__(self, stages: Sequence[Any], ctx: Context):
        self._stages, self._ctx, self._calls = stages, ctx, 0

    def __call__(
        self,
        x: jax.Array,
        *,
        read: Any = None,
        drawn: Sequence[jax.Array] | None = None,
    ) -> jax.Array:
        """Returns the outputs of a read.

        Args:
          x: inputs.
          read: its number, which may be traced; `None` for the next.
          drawn: what it draws, as a `trial` returned it; `None` to draw.
        """
        number = self._calls if read is None else read
        self._calls += 1
        ctx = self._ctx.at(number)
        if drawn is not None:
            ctx = dataclasses.replace(ctx, tape=Tape(drawn))
        return run(self._stages, x, ctx)

    def trial(self, x: jax.Array, read: Any) -> "Trial":
        """Reads without a gradient, to look at what would come of it."""
        tape = Tape()
        ctx = dataclasses.replace(
            self._ctx.at(read),
            tape=tape,
            searching=True,
            crossbar=self._ctx.crossbar.fixed,
        )
        y = run(self._stages, jax.lax.stop_gradient(x), ctx)
        return Trial(y, tape.drawn, tape.notes)


class Trial(NamedTuple):
    """A read that was tried.

    Attributes:
      y: its outputs.
      drawn: what it drew: with it, another read is the same.
      notes: what stages said of it.
    """

    y: jax.Array
    drawn: list[jax.Array]
    notes: Mapping[str, jax.Array]


def run(stages: Sequence[Any], x: jax.Array, ctx: Context) -> jax.Array:
    """Returns the outputs of a tile between its stages.

    Args:
      stages: from the outermost to the innermost.
      x: inputs, as the crossbar takes them.
      ctx: what the stages know.
    """
    if not stages:
        return ctx.multiply(x)
    ctx = dataclasses.replace(ctx, stage=stages[0])
    return stages[0].around(Inner(stages[1:], ctx), x, ctx)
