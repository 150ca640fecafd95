"""The keys of what the stages around a tile draw at a read."""

import jax
import numpy as np

from hwtrain.physics.random import draw_name, fold_in, stable_hash

READ_EFFECTS = (
    "input_noise",
    "input_stochastic_rounding",
    "weight_noise",
    "read",
    "output_noise",
    "output_stochastic_rounding",
)
"""What is drawn at a read; `"weight_noise"` is that of weights drawn in the layer. What
users draw has keys made of the first of these."""

_NAMES = np.array(
    [stable_hash(draw_name("", name)) for name in READ_EFFECTS], np.uint32
)


def read_keys(key: jax.Array) -> jax.Array:
    """Returns the keys of a read: of every effect, the key of its draw.

    >>> keys = read_keys(jax.random.split(jax.random.key(0), 5))
    >>> keys.shape == (5, len(READ_EFFECTS))
    True

    Args:
      key: JAX keys, of any shape.

    Returns:
      JAX keys, with an axis of `READ_EFFECTS` at the end.
    """
    return fold_in(key[..., None], _NAMES)


def effect_key(keys: jax.Array, effect: str) -> jax.Array:
    """Returns the key of one effect, out of those of a read."""
    return keys[..., READ_EFFECTS.index(effect)]
