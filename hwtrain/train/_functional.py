"""A model as pure functions: the loop's common interface to Linen and NNX."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from hwtrain._arrays.random import fold_in, stable_hash
from hwtrain.train._entries import EntryError

Params = Any


class Functional(NamedTuple):
    """A model as pure functions.

    Attributes:
      init: `(seed) -> params`, a nested dictionary of the initial parameters.
      apply: `(params, inputs, key) -> outputs`. The model draws all its random
        numbers of a step from the key.
    """

    init: Callable[[ArrayLike], Params]
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]


def stream_key(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of a named rng stream at one step.

    Streams must not share bits: dropout must not depend on the mismatch.

    Args:
      key: the step's key.
      name: the stream's name, such as `"mismatch"`.
    """
    return fold_in(key, stable_hash(name))


def check_call(module: Any) -> None:
    """Checks that a model can be called with its inputs alone.

    Args:
      module: a Linen or an NNX module.

    Raises:
      EntryError: (a `ValueError`) naming another required argument.
    """
    if not callable(module):
        return
    # The first parameter takes the inputs.
    for argument in list(inspect.signature(module).parameters.values())[1:]:
        various = argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        if argument.default is argument.empty and not various:
            raise EntryError(
                "model",
                "expected a model that is called with its inputs alone, got "
                f"{type(module).__name__}, which asks for {argument.name!r} too. Give "
                "it a default, and let Dropout ask for its stream: a Linen "
                'nn.Dropout(0.1, deterministic=not self.has_rng("dropout")), an NNX '
                "one by itself. Or train in a loop of your own with "
                "hwtrain.optim.hardware_aware",
            )
