"""The declaration of a parameter that hardware puts beside an array of weights."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from hwtrain._errors import InputError

When = Literal["model", "chip", "step"]
Trained = Literal["base", "range", "bound", "remap"]
Shapes = tuple[tuple[int, ...], ...]


def _of_tiles(weight: Any) -> Shapes:
    """Returns `[row tiles, column tiles]`."""
    return (weight.tiles,)


def _always(weight: Any, when: When) -> bool:
    """Returns true: every weight has the leaf."""
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafSpec:
    """Declaration of a *leaf*, a parameter beside an array of weights.

    Your own part returns its leaves from `leaves(self, weight)`, and reads them by
    `ctx.leaf(name)`. A leaf is created, trained, exported, loaded, checked and stripped
    together with its weights. It has the stack axes of the weights, and so goes through
    `nn.scan` and `nn.vmap` as they do.

    >>> import hwtrain
    >>> class Gain(hwtrain.Part):
    ...     def leaves(self, weight):
    ...         return (hwtrain.LeafSpec(name="gain", unit="1"),)
    ...     def around(self, inner, x, ctx):
    ...         return inner(x) * ctx.leaf("gain")[..., None]
    >>> [leaf.name for leaf in Gain().leaves(None)]
    ['gain']

    Attributes:
      name: name beside the array, such as `"input_range"`.
      when: where it exists: in the parameters of a model (`"model"`), only in those of
        a chip (`"chip"`), or only during a step (`"step"`).
      there: whether a weight has it, given the plan of the weight and one of `when`.
      shapes: the allowed shapes beside a weight, without the leading stack axes. It is
        created with the first one. `[row tiles, column tiles]` by default.
      dtype: its dtype.
      initial: initial value: a number, or a function of the weight's plan and its
        nominal matrix, `[*stack, rows, columns]`, that returns the array.
      trained: how it is trained: by the user's optimiser (`"base"`), which treats it
        like a parameter of the model, by a rule of its own (`"range"`, `"bound"`,
        `"remap"`), or not at all (`None`).
      positive: whether every number must be above zero. `optim.hardware_aware` then
        lets an update at most halve a number.
      exported: content in a checkpoint: its values (`"tensor"`), or only its shape, for
        zeros (`"zeros"`).
      unit: its unit.
      fits: function of the weight's plan, the leaf, and the array (`None` if it has no
        values); returns the fault of a leaf that does not fit its weights, for example
        after loading others, or an empty string. `None` if any value fits.
      in_kernel: function of the weight's plan, the array and the leaf; returns an array
        with the same effect without the leaf. `None` if there is none.
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
            raise InputError(
                "the name of a leaf is in lower case, with underscores, such as "
                f"'adc_bound'; got {self.name!r}"
            )

    @property
    def own_fault(self) -> str:
        """The reason why a user's part cannot have this leaf; empty if it can."""
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

    def shapes_fault(self, weight: Any) -> str:
        """The reason why `shapes` of a user's part is invalid; empty if it is valid.

        Args:
          weight: the plan of the array.
        """
        found: Any = self.shapes(weight)
        if isinstance(found, tuple) and found and all(map(_is_shape, found)):
            return ""
        hint = "a single number is ((),)" if found == () else "such as (weight.tiles,)"
        if found and _is_shape(found):
            hint = f"for this one alone, write {(found,)!r}"
        return (
            "shapes should return a tuple of the allowed shapes, each a tuple of sizes "
            f"above zero; got {found!r}; {hint}"
        )

    def shapes_of(self, weight: Any) -> Shapes:
        """Returns the allowed shapes beside a weight, with the leading stack axes."""
        return tuple((*weight.stack, *shape) for shape in self.shapes(weight))

    def value(self, weight: Any, kernel: jax.Array) -> jax.Array:
        """Returns its initial value.

        Args:
          weight: the plan of the array.
          kernel: the array, nominal, as stored.
        """
        shapes, value = self.shapes_of(weight), self.initial
        if not callable(value):
            return jnp.full(shapes[0], value, self.dtype)
        found = jnp.asarray(value(weight, weight.to_matrix(kernel)), self.dtype)
        if found.shape not in shapes:
            raise InputError(
                f"{weight.leaf(self)} should begin with the shape {shapes[0]}, that of "
                f"the stack of the weights, but initial returned {found.shape}"
            )
        return found


def _is_shape(found: Any) -> bool:
    """Whether something is a tuple of numbers of entries."""
    if not isinstance(found, tuple):
        return False
    return all(
        hasattr(n, "__index__") and not isinstance(n, bool) and n > 0 for n in found
    )


def not_positive(weight: Any, leaf: Any, kernel: Any = None) -> str:
    """Returns the fault of a leaf that should be positive; see `LeafSpec.fits`.

    Values that are not finite are reported elsewhere.
    """
    found = jnp.asarray(leaf)
    if not bool(jnp.any(found <= 0)):
        return ""
    return f"has the minimum {float(jnp.min(found)):.3g}, but must be positive"
