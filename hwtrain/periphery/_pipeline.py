"""Runs the stages around a tile, from the outermost to the innermost."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state
from jax.typing import ArrayLike

from hwtrain._arrays.random import (
    draw_key,
    draw_name,
    fold_in,
    normal,
    once,
    stable_hash,
    uniform,
)
from hwtrain._arrays.tiling import over_batch
from hwtrain._errors import InputError
from hwtrain._parts.constant import stopped
from hwtrain._parts.part import Part
from hwtrain._parts.slot import home
from hwtrain.periphery._crossbar import Crossbar
from hwtrain.periphery._read_keys import effect_key


class Tape:
    """The draws of a read, in order: recorded, or replayed if given."""

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

    def note(self, name: str, value: jax.Array) -> None:
        """Records a condition; true if it holds in any read of a trial."""
        before = self.notes.get(name)
        self.notes[name] = value if before is None else before | value


def _trace() -> Any:
    """Returns a state that differs between a program and loops or maps inside it."""
    return get_opaque_trace_state(convention="nnx")


class Frozen:
    """Frozen quantities of a chip, drawn once for all reads of a call."""

    def __init__(self):
        self._known: dict[Any, jax.Array] = {}
        self._trace = _trace()

    def get(self, name: Any, draw: Callable[[], jax.Array]) -> jax.Array:
        """Returns a draw; inside a loop, reuses one from before the loop if any."""
        if name not in self._known:
            unit = draw()
            if _trace() != self._trace:
                return unit  # it belongs to the loop, so it is not kept
            self._known[name] = unit
        return self._known[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """Context of a stage: the tile, its parameters, and random numbers.

    Attributes:
      crossbar: the weights of the tile, and their products.
      leaves: the parameters beside the weights that belong to the periphery, by name.
      keys: `[effects]`, the `read_keys` of this read; `None` draws nothing.
      chip_key: key of a chip's frozen quantities; `None` for no spread.
      strength: factor on the standard deviation of all noise and spreads.
      tape: records or replays draws; `None` for neither.
      searching: whether this read is a trial, without gradients or statistics.
      frozen: the frozen quantities drawn so far.
      here: the running stage; `None` outside of one.
    """

    crossbar: Crossbar
    leaves: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    keys: jax.Array | None = None
    chip_key: jax.Array | None = None
    strength: ArrayLike = 1.0
    tape: Tape | None = None
    searching: bool = False
    frozen: Frozen = dataclasses.field(default_factory=Frozen)
    here: "Here | None" = None

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

    def valid_inputs(self, x: jax.Array) -> Any:
        """Returns a mask of the inputs that are not padding of a smaller tile."""
        return self.crossbar.inputs_of(x)[1]

    def valid_outputs(self, y: jax.Array) -> Any:
        """Returns a mask of the outputs that are not padding of a smaller tile."""
        return self.crossbar.real_outputs(y)

    def leaf(self, name: str) -> jax.Array:
        """Returns a leaf beside the weights, `[row tiles, column tiles, ...]`.

        A convolution of several groups has these for row tiles. With one more axis at
        the end, a leaf per tile therefore broadcasts against the outputs in both cases.

        Args:
          name: its name, as declared in the part's `leaves`.

        Raises:
          ValueError: if it is not declared, or not available before `inner(x)`.
        """
        here = self.here
        stage = "a stage" if here is None else type(here.stage).__name__
        if self.crossbar.whole and here is not None and not here.calls[0]:
            raise InputError(
                f"{stage} asks for its leaf {name!r} before it calls inner(x): a stage "
                "with whole = True does the same to all inputs. Read the leaf after "
                "calling inner(x), or leave whole out"
            )
        if name not in self.leaves:
            raise InputError(
                f"{stage} asks for the leaf {name!r}, which these weights do not have; "
                f"they have {', '.join(self.leaves) or 'none'}. Declare it: def "
                "leaves(self, weight): return (hwtrain.LeafSpec(name=...),)"
            )
        leaf = self.leaves[name]
        return jax.lax.stop_gradient(leaf) if self.searching else leaf

    def normal(self, effect: str, shape: Sequence[int]) -> jax.Array:
        """Returns normal noise of this read, times its strength; zeros if off."""
        self._check_draws("read")
        if self.keys is None:
            return jnp.zeros(tuple(shape), jnp.float32)
        noise = self._drawn(effect, shape, normal)
        return over_batch(jnp.asarray(self.strength), noise) * noise

    def uniform(self, effect: str, shape: Sequence[int]) -> jax.Array | None:
        """Returns uniform numbers in [0, 1), at any strength; `None` if off."""
        self._check_draws("read")
        return None if self.keys is None else self._drawn(effect, shape, uniform)

    def spread(self, std: float, effect: str, count: int | None = None) -> Any:
        """Returns a chip's frozen deviation of each output; 0 without a chip.

        Args:
          std: the standard deviation.
          effect: a name for the draw.
          count: how many deviations each output has, along a last axis; those of number
            k have the name `effect_k`. `None` for one, without that axis.
        """
        if std == 0:
            return 0.0
        self._check_draws("chip")
        if self.chip_key is None:
            return 0.0
        return std * self._frozen(effect, self.crossbar.of_outputs, count)

    def input_spread(self, std: float, effect: str) -> jax.Array:
        """Returns a chip's frozen deviation of each row of each tile.

        Args:
          std: the standard deviation.
          effect: a name for the draw.

        Returns:
          `[row tiles, column tiles, rows]`, padding included; zeros without a chip.

        Raises:
          ValueError: in a convolution as a whole, whose rows are not its inputs.
        """
        self._check_draws("chip")
        if self.crossbar.whole:
            stage = "a stage" if self.here is None else type(self.here.stage).__name__
            raise InputError(
                f"{stage} asks for input_spread, one number for each row of a tile: a "
                "convolution as a whole has no rows, because an input is in several "
                "windows. Leave whole out"
            )
        of_inputs = self.crossbar.of_inputs
        if std == 0 or self.chip_key is None:
            return of_inputs(lambda key, shape: jnp.zeros(tuple(shape)), None)
        return std * self._frozen(f"{effect} of inputs", of_inputs)

    def weight_spread(self, std: float, effect: str) -> jax.Array:
        """Returns a chip's frozen deviation of each weight of each tile.

        Args:
          std: the standard deviation.
          effect: a name for the draw.

        Returns:
          An array of the shape of `ctx.w`; zeros without a chip.

        Raises:
          ValueError: in a convolution as a whole, whose weights have no tiles.
        """
        self._check_draws("chip")
        shape = self.crossbar.weights.shape
        if self.crossbar.whole:
            stage = "a stage" if self.here is None else type(self.here.stage).__name__
            raise InputError(
                f"{stage} asks for weight_spread, one number for each weight of a "
                "tile: a convolution as a whole is not cut into tiles. Leave whole out"
            )
        if std == 0 or self.chip_key is None:
            return jnp.zeros(shape, jnp.float32)
        each = lambda draw, key: draw(key, shape)  # noqa: E731
        return std * self._frozen(f"{effect} of weights", each)

    def _frozen(
        self, effect: str, each: Callable[..., jax.Array], count: int | None = None
    ) -> jax.Array:
        """Returns frozen standard normal numbers, times the strength."""
        name, key = self._named(effect), self.chip_key

        def numbers(key: jax.Array, shape: Sequence[int]) -> jax.Array:
            return once(draw_key(key, *name), lambda key: normal(key, tuple(shape)))

        def several(key: jax.Array, shape: Sequence[int]) -> jax.Array:
            path, effect, part = name
            each = [draw_name(path, f"{effect}_{k}", part) for k in range(count or 0)]
            keys = fold_in(key, np.array([stable_hash(x) for x in each], np.uint32))
            draws = jax.vmap(lambda key: normal(key, tuple(shape)), out_axes=-1)
            return once(keys, draws)

        def draw() -> jax.Array:
            return each(numbers if count is None else several, key)

        strength = jnp.asarray(self.strength)
        if count is not None and strength.ndim:
            strength = strength[..., None]
        return strength * self.frozen.get(name, draw)

    def note(self, name: str, value: jax.Array) -> None:
        """Reports a condition to an outer stage that tries several reads."""
        if self.tape is not None:
            self.tape.note(name, value)

    def at(self, number: Any) -> "Context":
        """Returns the context of another read; read 0 is the first, with these keys."""
        first = isinstance(number, int) and number == 0
        return self if first else self._at(number)

    def read(self, stage: str, number: Any) -> "Context":
        """Returns the context of a read that a stage numbers itself."""
        return self._at(stable_hash(stage))._at(number)

    def _at(self, number: Any) -> "Context":
        if self.keys is None:
            return self
        return dataclasses.replace(self, keys=fold_in(self.keys, number))

    def _check_draws(self, when: Any) -> None:
        """Raises if a stage would draw nothing, or draws that are not independent."""
        here = self.here
        if here is None or not isinstance(here.stage, Part):
            return
        name, says = type(here.stage).__name__, here.stage.draws
        if not here.stage.draws_at(when):
            raise InputError(
                f"{name} draws at each {when}, but declares draws = {says!r}: it would "
                f'get no key, and do nothing. Write draws = "{when}" in its class, or '
                "a tuple of all its draws"
            )
        if when == "read" and self.crossbar.whole and not here.calls[0]:
            raise InputError(
                f"{name} draws before it calls inner(x): inputs of a stage with whole "
                "= True get no noise. Draw after calling inner(x), or leave whole out"
            )
        if when == "read" and self.keys is not None and _trace() != here.trace:
            raise InputError(
                f"{name} draws in a loop or map of its own, where each step would draw "
                "the same. Draw all numbers before it, with an axis for its steps"
            )

    def _named(self, effect: str) -> tuple[str, str, int]:
        """Returns the name of a draw: path, effect and part."""
        here = self.here
        if here is None or not home(type(here.stage)):
            return "", effect, 0
        count = here.drawn[effect]
        here.drawn[effect] += 1
        # Keeps two stages of a class, and two draws of a name in one, independent.
        return here.stage.type, effect, here.number + 1000 * count

    def _drawn(self, effect: str, shape: Sequence[int], kind: Any) -> jax.Array:
        name = self._named(effect)

        def draw():
            return once(self._key(*name), lambda key: kind(key, tuple(shape)))

        return draw() if self.tape is None else self.tape.draw(draw)

    def _key(self, path: str, effect: str, part: int) -> jax.Array:
        assert self.keys is not None
        if not path:
            return effect_key(self.keys, effect)
        name = draw_name(path, effect, part)
        return fold_in(self.keys[..., 0], stable_hash(name))


class Here(NamedTuple):
    """The state of a running stage.

    Attributes:
      stage: the stage.
      number: number of inner stages of the same class.
      trace: trace state at its start; see `_trace`.
      drawn: number of its draws, by effect.
      calls: number of its calls of the inner stages, as a list of one.
    """

    stage: Any
    number: int
    trace: Any
    drawn: collections.Counter[str]
    calls: list[int]


class Inner:
    """The stages inside of another one, down to the multiplication.

    Each call is a new read of the tile, with its own noise.
    """

    def __init__(self, stages: Sequence[Any], ctx: Context):
        self._stages, self._ctx = stages, ctx
        self.shape: tuple[int, ...] | None = None

    def __call__(
        self,
        x: jax.Array,
        *,
        read: Any = None,
        drawn: Sequence[jax.Array] | None = None,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the outputs of a read.

        Args:
          x: inputs.
          read: number of the read, which may be traced, as in a loop; `None` for the
            next one.
          drawn: draws to replay, from a `trial`; `None` to draw.
          weights: other weights for this read, of the shape of `ctx.w`; `None` for
            those of the tile. A stage with `whole = True` cannot give any.

        Raises:
          ValueError: in the stage's own loop or map, unless the read is numbered.
        """
        ctx = self._numbered(read)
        if drawn is not None:
            ctx = dataclasses.replace(ctx, tape=Tape(drawn))
        if weights is not None:
            ctx = dataclasses.replace(ctx, crossbar=ctx.crossbar.holding(weights))
        y = run(self._stages, x, ctx)
        self.shape = y.shape
        return y

    def trial(self, x: jax.Array, read: Any) -> "Trial":
        """Returns the result of a read without gradients, to decide on a real one."""
        tape = Tape()
        ctx = dataclasses.replace(
            self._numbered(read),
            tape=tape,
            searching=True,
            crossbar=self._ctx.crossbar.fixed,
        )
        y = run(stopped(tuple(self._stages)), jax.lax.stop_gradient(x), ctx)
        return Trial(y, tape.drawn, tape.notes)

    def _numbered(self, read: Any) -> Context:
        """Returns the context of a read by its number, or of the next one."""
        ctx = self._ctx
        here: Any = ctx.here
        calls, here.calls[0] = here.calls[0], here.calls[0] + 1
        name = type(here.stage).__name__
        if ctx.crossbar.whole and calls:
            raise InputError(
                f"{name} calls inner(x) twice; with whole = True it has one read. "
                "Leave whole out"
            )
        if not home(type(here.stage)):
            return ctx.at(calls if read is None else read)
        path = f"{here.stage.type}#{here.number}"
        if read is not None:
            return ctx.read(f"{path}#read", read)
        if ctx.keys is not None and _trace() != here.trace:
            raise InputError(
                f"{name} calls inner(x) in a loop or map of its own, where each step "
                "would draw the same. Number the reads: inner(x, read=i)"
            )
        return ctx.read(f"{path}#call", calls) if calls else ctx


class Trial(NamedTuple):
    """A read made on trial.

    Attributes:
      y: its outputs.
      drawn: its draws, with which another read can be made equal.
      notes: the conditions that stages reported.
    """

    y: jax.Array
    drawn: list[jax.Array]
    notes: Mapping[str, jax.Array]


def run(stages: Sequence[Any], x: jax.Array, ctx: Context) -> jax.Array:
    """Runs stages around a tile and returns the outputs.

    Args:
      stages: the stages, outermost first.
      x: inputs, as the crossbar takes them.
      ctx: context of the stages.

    Raises:
      ValueError: naming a stage that changes the shape of the outputs.
    """
    if not stages:
        return ctx.crossbar.read(x)
    stage, further = stages[0], stages[1:]
    number = sum(type(other) is type(stage) for other in further)
    here = Here(stage, number, _trace(), collections.Counter(), [0])
    ctx = dataclasses.replace(ctx, here=here)
    inner = Inner(further, ctx)
    y = stage.around(inner, x, ctx)
    if inner.shape is not None and jnp.shape(y) != inner.shape:
        raise InputError(
            f"{type(stage).__name__}.around should return outputs of the shape "
            f"{inner.shape} that inner(x) has, got {jnp.shape(y)}"
        )
    return y
