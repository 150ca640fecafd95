"""The keys of the draws of a read by the stages around a tile."""

from typing import Any

import jax
import numpy as np

from hwtrain._arrays.random import draw_name, fold_in, stable_hash
from hwtrain._parts.leaf import LeafSpec, When

READ_EFFECTS = (
    "input_noise",
    "input_stochastic_rounding",
    "weight_noise",
    "read",
    "output_noise",
    "output_stochastic_rounding",
)
"""Built-in draws of a read; `"weight_noise"` is for weights drawn in the layer. Users'
draws derive their keys from the first one."""

_NAMES = np.array(
    [stable_hash(draw_name("", name)) for name in READ_EFFECTS], np.uint32
)

_MODES = ("train", "chip", "eval")


def _is_frozen(weight: Any, when: When) -> bool:
    chip = weight.hardware
    modes = ("chip",) if when == "chip" else _MODES
    return weight.kind != "raw" and any(map(chip.freezes, modes))


def _is_noisy(weight: Any, when: When) -> bool:
    chip = weight.hardware
    needs = any(map(chip.needs_root, _MODES)) or chip.noisy(periphery=True)
    return weight.kind != "raw" and needs


def _reads(weight: Any, when: When) -> bool:
    return _is_noisy(weight, when) or weight.hardware.noise_current is not None


CHIP_KEY = LeafSpec(
    name="chip_key",
    when=("chip", "step"),
    there=_is_frozen,
    shapes=lambda weight: ((2,),),
    dtype="uint32",
    trained=None,
)
"""The key of the frozen quantities of a chip's periphery, as threefry key data."""

NOISE_KEY = LeafSpec(
    name="noise_key",
    when=("step",),
    there=_reads,
    shapes=lambda weight: ((len(READ_EFFECTS), 2),),
    dtype="uint32",
    trained=None,
)
"""The keys for a layer's reads in a step, as key data."""

NOISE_STRENGTH = LeafSpec(
    name="noise_strength",
    when=("step",),
    there=_is_noisy,
    shapes=lambda weight: ((),),
    trained=None,
)
"""A factor on the noise of a layer in a step."""

WEIGHT_KEY = "weight_key"
"""The name, among a layer's leaves, of the key for weights that it draws itself."""


def read_keys(key: jax.Array) -> jax.Array:
    """Returns the keys of a read, one for each effect.

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
    """Returns the key of one effect from those of a read."""
    return keys[..., READ_EFFECTS.index(effect)]
