"""One thing that a chip does: its configuration, its equation, its row in tables."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, dataclass_transform

import jax
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

Draws = Literal["none", "step", "chip", "read"]

CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Part:
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

    draws: ClassVar[Draws] = "none"
    """What it draws: nothing, anew at each training step, once for each chip, or at
    each read."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True, config=CONFIG)(cls)

    whole: ClassVar[bool] = False
    """Of a stage: whether a convolution may be run in it as a whole. It then does the
    same to each value of the inputs, wherever that stands, draws nothing for them, and
    looks at them by `ctx` alone; and it calls what is inside once."""

    def runs_whole(self) -> bool:
        """Whether it may, with these fields; `whole` unless it depends on them."""
        return self.whole

    @property
    def name(self) -> str:
        """The name that it is registered by, or that of its class."""
        return getattr(type(self), "_registered", ("", type(self).__name__))[1]

    def around(self, inner: Callable[..., jax.Array], x: jax.Array, ctx: Any) -> Any:
        """Returns the outputs of a tile, with what lies further in between them."""
        return inner(x)

    def describe(self) -> str:
        """Returns its row in `inspect`; an empty text leaves it out."""
        return self.name
