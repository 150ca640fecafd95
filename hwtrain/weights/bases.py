"""Base classes of weight modifiers, clips and mismatch."""

import abc
import collections
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from hwtrain._arrays import tiling
from hwtrain._arrays.derivatives import straight_through
from hwtrain._arrays.random import draw_key, normal, uniform
from hwtrain._errors import InputError
from hwtrain._parts.constant import with_straight_through
from hwtrain._parts.part import Draws, Part


class WeightContext:
    """Context of a modifier or mismatch: properties of the weights, and random numbers.

    Attributes:
      w_max: the largest absolute weight of each tile, in units of the crossbar,
        broadcastable against the weights.
      weight: the plan of the array: its tiles, and where its rows and columns are.
    """

    def __init__(
        self,
        part: Part,
        when: Draws,
        w_max: jax.Array,
        key: Any,
        strength: Any,
        leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
        weight: Any = None,
    ):
        self.w_max, self.weight = w_max, weight
        self._leaves = leaves
        self._part = part
        self._when: Draws = when
        self._key, self._strength = key, strength
        self._drawn: collections.Counter[str] = collections.Counter()

    def leaf(self, name: str) -> jax.Array:
        """Returns a leaf of tiles or columns, broadcastable against the weights.

        Args:
          name: its name, as declared in the modifier's `leaves`.

        Raises:
          ValueError: if the modifier does not declare it.
        """
        if name not in self._leaves:
            raise InputError(
                f"{type(self._part).__name__} asks for the leaf {name!r}, which these "
                f"weights do not have; they have {', '.join(self._leaves) or 'none'}. "
                "Declare it: def leaves(self, weight): return "
                "(hwtrain.LeafSpec(name=...),)"
            )
        return self._leaves[name]

    def normal(self, effect: str, shape: Sequence[int]) -> jax.Array:
        """Returns standard normal noise, times the noise strength.

        Args:
          effect: a name for the draw. Repeated draws of a name differ.
          shape: shape of the result.

        Raises:
          ValueError: if the part does not declare that it draws.
        """
        return self._strength * normal(self._next(effect), shape)

    def uniform(self, effect: str, shape: Sequence[int]) -> jax.Array:
        """Returns uniform numbers in [0, 1), at any noise strength; see `normal`."""
        return uniform(self._next(effect), shape)

    def _next(self, effect: str) -> jax.Array:
        if not self._part.draws_at(self._when):
            name = type(self._part).__name__
            raise InputError(
                f"{name} draws at each {self._when}, but declares draws = "
                f"{self._part.draws!r}: it would get no key of its own. Write draws = "
                f'"{self._when}" in its class'
            )
        count, self._drawn[effect] = self._drawn[effect], self._drawn[effect] + 1
        return draw_key(self._key, "", effect, count)


class Mismatch(Part):
    """Frozen mismatch of a chip's weights: the base class of your own mismatch.

    Weights are in units of the crossbar. A subclass may set `per_column`.
    """

    draws: ClassVar = "chip"
    """It is drawn once for each chip."""
    per_column: ClassVar[bool] = False
    """Whether `ctx.w_max` is the maximum of each column instead of the tile."""

    def proof(self, ctx: Any) -> None:
        """Declares the effect that `assert_active` measures: that weights change.

        To have its strength measured too, state the deviation of each weight in units
        of the crossbar: `ctx.deviates(...)`, in terms of `ctx.w` and `ctx.w_max`.
        """
        ctx.differs()

    @abc.abstractmethod
    def on_weight(self, w: jax.Array, ctx: WeightContext) -> jax.Array:
        """Returns the weights of one chip, in units of the crossbar.

        Args:
          w: the weights as written, of any shape.
          ctx: their context, with the key of the chip.
        """

    def __call__(
        self, key: jax.Array, w: jax.Array, w_max: jax.Array, weight: Any
    ) -> jax.Array:
        """Returns the weights of one chip."""
        ctx = WeightContext(self, "chip", w_max, key, 1.0, weight=weight)
        return self.on_weight(w, ctx)


class WeightClip(Part):
    """Clips weights after every update: the base class of your own clips.

    A subclass may set `absolute` and `active`; it leaves `learned` and `fixed_value`.
    """

    absolute: ClassVar[bool] = False
    """Whether the bound is fixed in units of the crossbar and does not grow with the
    weights. The mapping scale is then stored, or nothing would ever be clipped."""

    # The same properties as those of `WeightClipParameter`.
    active: ClassVar[bool] = True
    """Whether updates are clipped; a subclass may make it a property of its fields."""
    learned: ClassVar[bool] = False
    """Whether the bound is learned: only hwtrain's own clip can, so leave it false."""
    fixed_value: ClassVar[None] = None
    """The bound of hwtrain's own clip, if it is a number; leave it `None`."""

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: that it bounds an update."""
        ctx.bounds()

    @abc.abstractmethod
    def largest(self, w: jax.Array, row_sizes: tuple[int, ...]) -> jax.Array:
        """Returns the bound, in units of the crossbar.

        Args:
          w: `[..., rows, columns]`, the weights after the update.
          row_sizes: rows of each row tile.

        Returns:
          `[..., row tiles, columns or 1]`, positive; infinity clips nothing.
        """

    def bound(
        self,
        w: jax.Array,
        row_sizes: tuple[int, ...],
        scale: jax.Array | None = None,
        *,
        update: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the bound in units of `w`; see `WeightClipParameter`."""
        w = w if update is None else w + update
        if scale is None:
            return self._checked(w, row_sizes)
        unit = jax.lax.stop_gradient(scale)
        return self._checked(w / tiling.expand_rows(unit, row_sizes), row_sizes) * unit

    def _checked(self, w: jax.Array, row_sizes: tuple[int, ...]) -> jax.Array:
        bound, tiles = self.largest(w, row_sizes), len(row_sizes)
        shapes = [(*w.shape[:-2], tiles, last) for last in (1, w.shape[-1])]
        if jnp.shape(bound) not in shapes:
            raise InputError(
                f"{type(self).__name__}.largest should return the shape {shapes[0]} or "
                f"{shapes[1]} for weights of the shape {w.shape}, got "
                f"{jnp.shape(bound)}: a bound for each row tile, or for each column too"
            )
        return bound


def in_modes(what: str, in_chip_mode: bool) -> str:
    """Returns a modifier's description with the modes in which it acts."""
    return f"{what} ({'train, chip' if in_chip_mode else 'train'})"


class WeightModifier(Part):
    """Modifies weights at each training step: the base class of your own modifiers.

    Weights are in units of the crossbar. The gradient of the modified weights is passed
    to the nominal ones (straight-through).

    A subclass may set `draws`, `enable_during_test`, `acts`, `changed_share`,
    `copy_last_column` and `unitless`; and for `ctx.w_max` `per_column`, or
    `rel_to_actual_wmax` and `assumed_wmax`. It leaves the other class attributes, which
    are options of hwtrain's own modifier, as they are.

    >>> import hwtrain
    >>> import jax.numpy as jnp
    >>> @hwtrain.register("modifier", "like_log_normal")
    ... class LogNormal(WeightModifier):
    ...     sigma: float = 0.1
    ...     draws = "step"
    ...     def on_weight(self, w, ctx):
    ...         return w * jnp.exp(self.sigma * ctx.normal("log_normal", w.shape))
    >>> w = jnp.ones((2, 2))
    >>> print(LogNormal(sigma=0.0)(jax.random.key(0), w, jnp.ones(())))
    [[1. 1.]
     [1. 1.]]
    """

    per_column: ClassVar[bool] = False
    """Whether `ctx.w_max` is the maximum of each column instead of the tile."""
    enable_during_test: ClassVar[bool] = False
    """Whether it acts in `chip_mode` too."""

    # The same properties as those of `WeightModifierParameter`.
    acts: ClassVar[bool] = True
    """Whether it changes anything; a subclass may make it a property of its fields."""
    in_layer: ClassVar[bool] = False
    """Whether the layer draws as it multiplies; leave it false."""
    per_batch_sample: ClassVar[bool] = False
    """Whether it draws weights for each example; leave it false."""
    per_vector: ClassVar[bool] = False
    """Whether it draws noise for each input vector; leave it false."""
    redraw: ClassVar[bool] = False
    """Whether the backward pass draws again instead of storing; leave it false."""
    copy_last_column: ClassVar[bool] = False
    """Whether the weights of the last input, which stand for a bias, stay unchanged."""
    rel_to_actual_wmax: ClassVar[bool] = True
    """Whether `ctx.w_max` is taken from the weights, and not `assumed_wmax`."""
    assumed_wmax: ClassVar[float] = 1.0
    """`ctx.w_max` if `rel_to_actual_wmax` is false, in units of the crossbar."""
    unitless: ClassVar[bool] = False
    """Whether a common factor of the weights and `ctx.w_max` is one of the result, too.
    It then gets weights in units of the model, which saves time."""
    changed_share: ClassVar[float] = 1.0
    """The smallest share of weights that a step changes. If it is small,
    `assert_active` looks at more steps; a subclass may make it a property."""
    rounds_chips: ClassVar[bool] = False
    """Whether the weights of a chip are programmed to its levels; leave it false."""
    column_steps: ClassVar[None] = None
    """Its steps between the levels that a learned bound spans; leave it `None`."""

    @property
    def noisy(self) -> bool:
        """Whether it draws noise of adjustable strength: whether it draws at all."""
        return self.draws != "none"

    @property
    def levels(self) -> "WeightModifier":
        """Its levels alone, to which a chip's weights are rounded when programmed."""
        return self

    @property
    def without_levels(self) -> "WeightModifier | None":
        """The same for weights that already lie on its levels; by default it has none.

        `None` if it does nothing else.
        """
        return self

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cell: its description, and the modes in which it acts."""
        if not self.acts:
            return {}
        return {ctx.column: in_modes(self.describe(), self.enable_during_test)}

    def proof(self, ctx: Any) -> None:
        """Declares the effect that `assert_active` measures: that weights change.

        To have its strength measured too, state the deviation of each weight in units
        of the crossbar: `ctx.deviates(...)`, in terms of `ctx.w` and `ctx.w_max`.
        """
        ctx.differs()

    @abc.abstractmethod
    def on_weight(self, w: jax.Array, ctx: WeightContext) -> jax.Array:
        """Returns the modified weights, in units of the crossbar.

        Args:
          w: the weights, of any shape.
          ctx: their context.
        """

    def __call__(
        self,
        key: jax.Array | None,
        w: jax.Array,
        w_max: jax.Array,
        strength: jax.Array | None = None,
        leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
    ) -> jax.Array:
        """Returns the modified weights, with a straight-through gradient."""
        factor = 1.0 if strength is None else strength

        def change(w: jax.Array, w_max: jax.Array) -> jax.Array:
            ctx = WeightContext(self, "step", w_max, key, factor, leaves)
            return self.on_weight(w, ctx)

        new = with_straight_through(self, change, w, w_max)
        if new is not None:
            return new
        if not leaves:
            return straight_through(w, change(w, w_max).astype(w.dtype))
        # Leaves get the gradient of the modification itself.
        fixed = jax.lax.stop_gradient(w)
        return change(fixed, w_max).astype(w.dtype) + (w - fixed)
