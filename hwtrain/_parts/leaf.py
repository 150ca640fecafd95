"""A parameter that hardware puts beside an array of weights, declared once."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

When = Literal["model", "chip", "step"]
Trained = Literal["base", "range", "bound", "remap"]
Shapes = tuple[tuple[int, ...], ...]


def _of_tiles(weight: Any) -> Shapes:
    """Returns `[row tiles, column tiles]`."""
    return (weight.tiles,)


def _always(weight: Any, when: When) -> bool:
    """Returns that every weight has the leaf."""
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafSpec:
    """A parameter beside an array of weights, a *leaf*: all that anybody asks of it.

    A part of one's own returns its leaves from `leaves(self, weight)`, and reads them
    by `ctx.leaf(name)`. A leaf is made when the model is, trained, exported, loaded,
    checked and stripped with the weights it lies beside. It has the axes of their
    stack, so it goes through `nn.scan` and `nn.vmap` as they do.

    >>> import hwtrain
    >>> class Gain(hwtrain.Part):
    ...     def leaves(self, weight):
    ...         return (hwtrain.LeafSpec(name="gain", unit="1"),)
    ...     def around(self, inner, x, ctx):
    ...         return inner(x) * ctx.leaf("gain")[..., None]
    >>> [leaf.name for leaf in Gain().leaves(None)]
    ['gain']

    Attributes:
      name: its name beside the array, such as `"input_range"`.
      when: where it may be found: among the parameters of a model (`"model"`), only
        among those of a chip (`"chip"`), or only in a step (`"step"`).
      there: whether a weight has it, given its plan and one of `when`.
      shapes: the shapes that it may have beside a weight, without the stack in front.
        The first is made, others are accepted. `[row tiles, column tiles]` by default.
      dtype: its dtype.
      initial: its value at first: a number, or a function of the weight's plan and its
        nominal matrix, `[*stack, rows, columns]`, which returns the array.
      trained: by what it is trained: the user's optimiser (`"base"`), which sees it
        like a parameter of the model, a rule of its own (`"range"`, `"bound"`,
        `"remap"`), or nothing (`None`).
      positive: whether every number must be above zero. `optim.hardware_aware` then
        halves one at most in an update.
      exported: as what a checkpoint holds it: its values (`"tensor"`), or its shape,
        for zeros (`"zeros"`).
      unit: its unit.
      fits: what is wrong with it beside these weights, as after others were loaded, or
        an empty text: of the weight's plan, the leaf, and the array, which is `None`
        where it has no values. `None` where any value fits.
      in_kernel: returns the array that does without the leaf what it does with it, of
        the weight's plan, the array and the leaf. `None` where there is none.
    """

    name: str
    when: tuple[When, ...] = ("model",)
    there: Callable[[Any, When], bool] = _always
    shapes: Callable[[Any], Shapes] = _of_tiles
    dtype: str = "float32"
    initial: float | Callable[[Any, jax.Array], Any] = 1.0
    trained: Trained | None = "base"
    positive: bool = False
    exported: Literal["tensor", "zeros"] = "tensor"
    unit: str = "unit of the model"
    fits: Callable[[Any, Any, Any], str] | None = None
    in_kernel: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(
                "a leaf is called in lower case, with underscores, such as "
                f"'adc_bound'; got {self.name!r}"
            )

    @property
    def own_fault(self) -> str:
        """What a leaf of a user's part cannot be, or an empty text."""
        said = (
            ("when", self.when, (("model",),)),
            ("trained", self.trained, ("base", None)),
            ("exported", self.exported, ("tensor",)),
            ("dtype", self.dtype, ("float32", "bfloat16", "float16")),
        )
        for field, value, allowed in said:
            if value not in allowed:
                choices = " or ".join(map(repr, allowed))
                return f"{field} should be {choices}, got {value!r}"
        return ""

    def shapes_of(self, weight: Any) -> Shapes:
        """Returns the shapes that it may have beside a weight, the stack in front."""
        return tuple((*weight.stack, *shape) for shape in self.shapes(weight))

    def value(self, weight: Any, kernel: jax.Array) -> jax.Array:
        """Returns its value at first.

        Args:
          weight: the plan of the array.
          kernel: the array, nominal, as stored.
        """
        shapes, value = self.shapes_of(weight), self.initial
        if not callable(value):
            return jnp.full(shapes[0], value, self.dtype)
        found = jnp.asarray(value(weight, weight.to_matrix(kernel)), self.dtype)
        if found.shape not in shapes:
            raise ValueError(
                f"{weight.leaf(self)} should begin with the shape {shapes[0]}, and "
                f"initial returned {found.shape}: the stack of the weights leads"
            )
        return found


def not_positive(weight: Any, leaf: Any, kernel: Any = None) -> str:
    """Returns what is wrong with a leaf that should be positive; see `LeafSpec.fits`.

    What is not finite has an error of its own.
    """
    found = jnp.asarray(leaf)
    if not bool(jnp.any(found <= 0)):
        return ""
    return f"is {float(jnp.min(found)):.3g} at its smallest, and never zero or less"
