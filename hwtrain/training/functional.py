"""A model as pure functions: what the loop needs to know of Linen and of NNX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any


class Functional(NamedTuple):
    """A model as pure functions.

    Attributes:
      init: `(seed) -> params`, a nested dictionary of the initial parameters.
      apply: `(params, inputs, key) -> outputs`. All that the model draws at a step, it
        draws from the key.
    """

    init: Callable[[int], Params]
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]
