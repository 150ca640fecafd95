"""One thing that a chip does: its configuration, its equation, its row in tables."""

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, dataclass_transform

import jax
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hwtrain._parts.constant import accepting
from hwtrain._parts.leaf import LeafSpec
from hwtrain._parts.meanings import add_meanings

Draws = Literal["none", "step", "chip", "read"]

CONFIG = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=add_meanings
)
"""How configurations are checked."""


class Described:
    """What `inspect` says something of."""

    def describe(self) -> str:
        """Returns what its fields say; an empty text leaves it out."""
        return ""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cells in the row of a weight, by column; of several, texts add.

        Args:
          ctx: the weight and the leaves beside it, and `ctx.column`: the column of this
            kind of part.
        """
        return {ctx.column: self.describe()}


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Part(Described, abc.ABC):  # noqa: B024 some kinds have what they must do
    """One thing that a chip does. Its fields are its configuration.

    A subclass is a frozen dataclass with keyword-only fields, checked by pydantic when
    it is made, hashable, and written to TOML and JSON; `register` gives it its name.
    Each method has a default that does nothing.

    >>> class Leak(Part):
    ...     share: float = 0.1
    ...     def describe(self):
    ...         return f"leak {self.share:g}"
    >>> Leak(share=0.2).describe()
    'leak 0.2'
    """

    draws: ClassVar[Draws | tuple[Draws, ...]] = "none"
    """What it draws: nothing, anew at each training step, once for each chip, at each
    read, or several of these."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accepting(dataclass(frozen=True, kw_only=True, config=CONFIG)(cls))

    whole: ClassVar[bool] = False
    """Of a stage: whether a convolution may be run in it as a whole. It then does the
    same to each value of the inputs, wherever that stands, draws nothing for them, and
    looks at them by `ctx` alone; and it calls what is inside once. (Where it makes
    something of a zero, the windows are written out all the same: they reach over the
    border.)"""

    def runs_whole(self) -> bool:
        """Whether it may, with these fields; `whole` unless it depends on them."""
        return self.whole

    if TYPE_CHECKING:
        type: Any = ""
        """The name that it is registered by, or that of its class."""
    else:

        @property
        def type(self):
            """The name that it is registered by, or that of its class."""
            kind = self.__class__
            return getattr(kind, "_registered", ("", kind.__name__))[1]

    def draws_at(self, when: Draws) -> bool:
        """Whether it draws then: as `draws` says, unless it depends on its fields."""
        draws = (self.draws,) if isinstance(self.draws, str) else self.draws
        return when in draws

    def leaves(self, weight: Any) -> tuple[LeafSpec, ...]:
        """Returns the parameters that it puts beside an array of weights.

        Of a stage or a modifier, which read them by `ctx.leaf(name)`. The names depend
        on its fields alone; whether a weight has one, `LeafSpec.there` says.

        Args:
          weight: the plan of the array.
        """
        return ()

    def around(self, inner: Callable[..., jax.Array], x: jax.Array, ctx: Any) -> Any:
        """Returns the outputs of a tile, with what lies further in between them."""
        return inner(x)

    @property
    def unrounded(self) -> Any:
        """Of a stage: the same without a rounding of outputs.

        Smaller effects of what lies further in are measured without it.
        """
        return self

    def proof(self, ctx: Any) -> None:
        """Says what `assert_active` measures of it.

        Of a stage, that outputs are others with it than without, and if it draws at
        reads, that it does so anew at each. The strength of a noise is measured where
        its deviation is said: `ctx.deviates(...)`.
        """
        ctx.differs()
        if self.draws_at("read"):
            ctx.draws_anew()

    def describe(self) -> str:
        """Returns its row in `inspect`; an empty text leaves it out."""
        return self.type
