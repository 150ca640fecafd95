"""A model as pure functions: what the loop needs to know of Linen and of NNX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from hwtrain.physics.random import fold_in, stable_hash

Params = Any


class Functional(NamedTuple):
    """A model as pure functions.

    Attributes:
      init: `(seed) -> params`, a nested dictionary of the initial parameters.
      apply: `(params, inputs, key) -> outputs`. All that the model draws at a step, it
        draws from the key.
    """

    init: Callable[[ArrayLike], Params]
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]


def stream_key(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of a named rng stream at a step.

    Streams must not share their bits: dropout is not to depend on the mismatch.

    Args:
      key: the step's key.
      name: the stream's name, such as `"mismatch"`.
    """
    return fold_in(key, stable_hash(name))
