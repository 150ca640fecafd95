"""Base class of parts: one effect of a chip, its configuration and its table row."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, dataclass_transform

import jax
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from hwtrain._errors import InputError, page_of
from hwtrain._parts.calls import refused
from hwtrain._parts.constant import accepting
from hwtrain._parts.cost import Cost
from hwtrain._parts.leaf import LeafSpec
from hwtrain._parts.meanings import add_meanings

Draws = Literal["none", "step", "chip", "read"]

CONFIG = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=add_meanings
)
"""Pydantic configuration of all parts."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def configuration(cls: type[T]) -> type[T]:
    """Makes a class a configuration: frozen, keyword-only and validated.

    What pydantic finds wrong becomes an `InputError` in the words of `refused`, which
    names the page of the docs about the class.

    Args:
      cls: a class with annotated fields.
    """
    made: Any = dataclass(frozen=True, kw_only=True, config=CONFIG)(cls)
    check = made.__init__

    @functools.wraps(check)
    def __init__(self: Any, *args: Any, **fields: Any) -> None:
        try:
            check(self, *args, **fields)
        except ValidationError as error:
            wrong = InputError(refused(type(self), error, fields))
            wrong.__notes__ = [f"See {page_of(made.__module__)}"]
            raise wrong from None

    made.__init__ = __init__
    return made


class Described:
    """Base of configurations that `inspect` describes."""

    def describe(self) -> str:
        """Returns a summary of its fields; an empty string leaves it out."""
        return ""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cells for a weight, by column; equal columns are joined.

        Args:
          ctx: context: the weight, the leaves beside it, and `ctx.column`, the column
            of this kind of part.
        """
        return {ctx.column: self.describe()}


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Part(Described, abc.ABC):  # noqa: B024 some kinds add abstract methods
    """One effect of a chip. Its fields are its configuration.

    A subclass becomes a frozen dataclass with keyword-only fields, hashable, validated
    by pydantic at construction, and written to TOML and JSON; `register` gives it its
    name. Each method has a default that does nothing.

    >>> class Leak(Part):
    ...     share: float = 0.1
    ...     def describe(self):
    ...         return f"leak {self.share:g}"
    >>> Leak(share=0.2).describe()
    'leak 0.2'
    """

    draws: ClassVar[Draws | tuple[Draws, ...]] = "none"
    """When it draws: never, at each training step, once for each chip, at each read, or
    several of these."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("__annotations__", {})
        if not cls.__module__.startswith("hwtrain.") and "type" not in own:
            # Its name comes from `register`, also if a built-in parent has a field.
            cls.__annotations__ = {**own, "type": ClassVar[Any]}
            cls.type = Part.__dict__["type"]
        accepting(configuration(cls))

    stays_static: ClassVar[Mapping[str, str]] = {}
    """Numbers among its fields that `with_constants` refuses to trace, and why: it
    continues "the number ..."."""

    keeps_static: ClassVar[tuple[str, ...]] = ()
    """For stages: numbers of their hardware that they state too, such as
    `"forward.out_bound"`, so that `with_constants` refuses to trace these alone."""

    without_slope: ClassVar[Mapping[str, str]] = {}
    """Numbers that may be traced but have no gradient, and why. Zero would be wrong
    silently."""

    whole: ClassVar[bool] = False
    """For stages: whether a convolution may run through it as a whole. It must then
    treat all input values alike, wherever they stand, draw nothing for them, access
    them through `ctx` only, and call the inner stages once. (If it does not map zero to
    zero, windows are materialised nevertheless, since they extend over the border.)"""

    def runs_whole(self) -> bool:
        """Whether `whole` holds with these fields; override it to depend on them."""
        return self.whole

    @property
    def passes(self) -> int:
        """For stages: reads of the tile for each of its own, as energy counts them."""
        return 1

    if TYPE_CHECKING:
        type: Any = ""
        """The name under which it is registered, or that of its class."""
    else:

        @property
        def type(self):
            """The name under which it is registered, or that of its class."""
            kind = self.__class__
            return getattr(kind, "_registered", ("", kind.__name__))[1]

    def draws_at(self, when: Draws) -> bool:
        """Whether it draws at `when`: given by `draws` unless it depends on fields."""
        draws = (self.draws,) if isinstance(self.draws, str) else self.draws
        return when in draws

    def check_hardware(self, hardware: Any) -> None:
        """Raises where it contradicts another part of its hardware; called with it.

        A part that stands around another one calls that of the other too.

        Args:
          hardware: the `Hardware` that it is part of.

        Raises:
          ValueError: saying what contradicts what, and what to write.
        """

    def leaves(self, weight: Any) -> tuple[LeafSpec, ...]:
        """Returns the parameters that it puts beside an array of weights.

        For stages and modifiers, which read them by `ctx.leaf(name)`. The names may
        depend on its fields only; `LeafSpec.there` decides which weights have a leaf.

        Args:
          weight: the plan of the array.
        """
        return ()

    def around(self, inner: Callable[..., jax.Array], x: jax.Array, ctx: Any) -> Any:
        """Returns the outputs of a tile, computed around those of the inner stages."""
        return inner(x)

    @property
    def unrounded(self) -> Any:
        """For stages: a copy that does not round outputs.

        It is used to measure small effects of inner stages.
        """
        return self

    def proof(self, ctx: Any) -> None:
        """Declares the effect that `assert_active` measures.

        By default, for a stage: that it changes outputs, and if it draws at reads, that
        each read draws anew. To have the strength of noise measured, state its standard
        deviation: `ctx.deviates(...)`.
        """
        ctx.differs()
        if self.draws_at("read"):
            ctx.draws_anew()

    def cost(self, ctx: Any) -> Cost:
        """Returns the energy and time that it takes for one example, and its area.

        For stages, converters, noise models and compensations of a chip. Its constants
        are its own fields, or those of the technology.

        Args:
          ctx: context: `ctx.weight`, the plan of the weights; `ctx.counts`, how often
            their tiles do what, such as `ctx.counts.conversions`; `ctx.constants`, a
            `CostParameter`; `ctx.inp_bits` and `ctx.out_bits`.
        """
        return Cost()

    def describe(self) -> str:
        """Returns its summary in `inspect`; an empty string leaves it out."""
        return self.type
