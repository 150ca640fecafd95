"""Products by array name, for the methods of users' layers."""

from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from hwtrain._errors import InputError
from hwtrain._flax.linen import own as linen_own
from hwtrain._flax.nnx import stated_products as nnx_own
from hwtrain._flax.stated import DimensionNumbers, Stated
from hwtrain.sockets._table import array_letters


def analog_einsum(
    module: Any,
    name: str,
    equation: str,
    x: ArrayLike,
    *,
    dtype: DTypeLike | None = None,
    **options: Any,
) -> jax.Array:
    """Multiplies inputs by an array of a layer, on its hardware if it has some.

    Call it in the methods of your own layer. In a model from `analogize`, the array is
    treated like the kernel of a built-in layer: weight noise, an input range,
    converters and tiles, a row of the plan, an export. In any other model it is plain
    `jnp.einsum`.

    >>> import jax.numpy as jnp
    >>> import hwtrain
    >>> class Project(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         self.param("w", nn.initializers.ones, (3, 4))
    ...         return hwtrain.analog_einsum(self, "w", "...i,io->...o", x)
    >>> x = jnp.ones((2, 3))
    >>> model = hwtrain.analogize(Project(), hwtrain.Hardware())
    >>> variables = model.init(jax.random.key(0), x)
    >>> hwtrain.plan(model, variables, x)["w"].rows
    (0,)

    An NNX class also needs a row of `hwtrain.sockets.register`, because its objects are
    planned before they are called.

    Of the array's axes, those that the equation sums over are the rows of a crossbar;
    those that the inputs lack are its columns; those that inputs and result share are a
    stack of crossbars, and must come first in the array.

    Args:
      module: the layer, `self`.
      name: name of its array: of a parameter (Linen), or of an attribute that is an
        `nnx.Param` (NNX).
      equation: the equation of inputs, array and result, with the array second; an
        ellipsis stands for axes of the inputs.
      x: the inputs.
      dtype: the dtype that both are cast to, as `dtype` of Flax's layers; `None` for
        their common dtype, at least a float.
      **options: `precision` and `preferred_element_type`, as for `jnp.einsum`.

    Returns:
      The product.

    Raises:
      ValueError: if the layer has no such array, if it is on hardware and no crossbar
        can compute the equation, or if an NNX class is not registered.
    """
    array_letters(equation)
    options_ = tuple(options.items())
    stated = Stated(name, equation=equation, dtype=dtype, options=options_)
    return _multiplied(module, stated, x)


def analog_dot_general(
    module: Any,
    name: str,
    x: ArrayLike,
    dimension_numbers: DimensionNumbers,
    *,
    dtype: DTypeLike | None = None,
    **options: Any,
) -> jax.Array:
    """As `analog_einsum`, with axes given as for `jax.lax.dot_general`.

    >>> import jax.numpy as jnp
    >>> import hwtrain
    >>> class Project(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         self.param("w", nn.initializers.ones, (4, 3))
    ...         summed = ((x.ndim - 1,), (1,))
    ...         return hwtrain.analog_dot_general(self, "w", x, (summed, ((), ())))
    >>> x = jnp.ones((2, 3))
    >>> model = hwtrain.analogize(Project(), hwtrain.Hardware())
    >>> variables = model.init(jax.random.key(0), x)
    >>> hwtrain.plan(model, variables, x)["w"].rows
    (1,)

    Args:
      module: the layer, `self`.
      name: name of its array.
      x: the inputs.
      dimension_numbers: `((axes of x, axes of the array) that are summed over,
        (axes of x, axes of the array) of a batch)`. Batch axes come first in the array.
      dtype: as for `analog_einsum`.
      **options: `precision` and `preferred_element_type`.

    Returns:
      The product, its axes in the order of `jax.lax.dot_general`.

    Raises:
      ValueError: as for `analog_einsum`.
    """
    (summed, batch), options_ = dimension_numbers, tuple(options.items())
    numbers = (
        (tuple(summed[0]), tuple(summed[1])),
        (tuple(batch[0]), tuple(batch[1])),
    )
    stated = Stated(name, numbers=numbers, dtype=dtype, options=options_)
    return _multiplied(module, stated, x)


def _multiplied(module: Any, stated: Stated, x: Any) -> jax.Array:
    if isinstance(module, nn.Module):
        return linen_own.multiply(module, stated, x)
    if isinstance(module, nnx.Module):
        return nnx_own.multiply(module, stated, x)
    raise InputError(
        f"{stated} takes a flax.linen.Module or a flax.nnx.Module first, the layer "
        f"that has the array; got {type(module).__name__}"
    )
