"""A model as pure functions: the loop's common interface to Linen and NNX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from hwtrain._arrays.random import fold_in, stable_hash

Params = Any
ModelState = Any


class Functional(NamedTuple):
    """A model as pure functions.

    Attributes:
      init: `(seed) -> (params, state)`, nested dictionaries: the initial parameters,
        and the other variables, such as statistics of a BatchNorm.
      apply: `(params, state, batch, key) -> (outputs, state)`, in training. The model
        draws all its random numbers of a step from the key.
      evaluate: `(params, state, batch) -> outputs`, not in training: nothing is drawn.
    """

    init: Callable[[ArrayLike], tuple[Params, ModelState]]
    apply: Callable[..., tuple[Any, ModelState]]
    evaluate: Callable[..., Any]


def stream_key(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of a named rng stream at one step.

    Streams must not share bits: dropout must not depend on the mismatch.

    Args:
      key: the step's key.
      name: the stream's name, such as `"mismatch"`.
    """
    return fold_in(key, stable_hash(name))
