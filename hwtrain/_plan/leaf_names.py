"""Names of the leaves that hardware puts beside arrays of weights.

A name alone does not make a parameter a leaf: the model may have one of the same name.
The plan decides (`AnalogWeight.beside`), or the creator of the variable.
"""

from collections.abc import Container, Iterable

from hwtrain._parts.constant import CONSTANTS
from hwtrain._parts.leaf import When
from hwtrain._plan.hardware import OF_CHIP
from hwtrain.periphery._read_keys import (
    CHIP_KEY,
    NOISE_KEY,
    NOISE_STRENGTH,
    WEIGHT_KEY,
)
from hwtrain.periphery.input_range import PROBE, RANGE
from hwtrain.weights.clip import CLIP_BOUND
from hwtrain.weights.mapping import MAPPING_SCALE, OUTPUT_SCALE
from hwtrain.weights.modifier import ON_LEVELS
from hwtrain.weights.noise_current import NOISE_DENSITY

BUILT_IN = (
    RANGE,
    PROBE,
    CLIP_BOUND,
    MAPPING_SCALE,
    OUTPUT_SCALE,
    CHIP_KEY,
    ON_LEVELS,
    OF_CHIP,
    NOISE_KEY,
    NOISE_STRENGTH,
    NOISE_DENSITY,
    CONSTANTS,
)
"""The built-in leaves. Users' parts declare theirs in `Part.leaves`."""

OWNERS = ("kernel", "embedding")
"""Arrays whose leaves are not prefixed by their name: a layer has only one of them."""

SHARED = ("lora_a", "lora_b")
"""The factors of a LoRA. Their leaves, and those of any other array, are prefixed by
its name, such as `lora_a_input_range`."""


def names_when(*when: When) -> tuple[str, ...]:
    """Returns the names of the built-in leaves that may exist at these times.

    >>> names_when("chip")
    ('mapping_scale', 'chip_key', 'on_levels', 'of_chip')
    """
    return tuple(leaf.name for leaf in BUILT_IN if set(when) & set(leaf.when))


EFFECTIVE = "effective_"
"""Prefix of the leaf for derived weights, before the name of the array from which they
are computed: `effective_kernel`."""

_LEAVES = names_when("model", "chip")

OF_A_STEP = tuple(leaf.name for leaf in BUILT_IN if leaf.when == ("step",))
"""Leaves that exist during a step only."""


def reserved(name: str) -> str:
    """Returns what a name means that a user's leaf cannot have; empty if it can.

    >>> reserved("kernel"), reserved("gain")
    ('is that of an array of weights', '')
    """
    if name in (*OWNERS, *SHARED):
        return "is that of an array of weights"
    if name == "bias":
        return "is that of the digital bias of a layer"
    if name.startswith(EFFECTIVE):
        return f"begins with {EFFECTIVE!r}, as those of derived weights do"
    if name == WEIGHT_KEY:
        return "is that of the key of weights drawn in the layer"
    return ""


def split(path: str, own: Iterable[str] = ()) -> tuple[tuple[str, ...], str]:
    """Returns the arrays that a leaf may lie beside, and its name; both may be empty.

    >>> split("hidden/probe")
    (('hidden/kernel', 'hidden/embedding'), 'probe')
    >>> split("lora_a_probe")
    (('lora_a',), 'probe')
    >>> split("hidden/w_mapping_scale")
    (('hidden/w',), 'mapping_scale')
    >>> split("hidden/effective_kernel")
    (('hidden/kernel',), 'effective_kernel')
    >>> split("hidden/bias")
    ((), '')
    >>> split("hidden/adc_bound", own=["bound", "adc_bound"])
    (('hidden/kernel', 'hidden/embedding'), 'adc_bound')

    Args:
      path: the path of a parameter.
      own: the names of the leaves that users' parts declare.
    """
    layer, slash, name = path.rpartition("/")
    if is_effective(path):
        return (f"{layer}{slash}{name.removeprefix(EFFECTIVE)}",), name
    # A longer name first: a leaf may be called like another behind an array.
    for leaf in sorted((*_LEAVES, *own), key=len, reverse=True):
        if name == leaf:
            return tuple(f"{layer}{slash}{owner}" for owner in OWNERS), leaf
        owner = name.removesuffix(f"_{leaf}")
        if owner not in (name, ""):
            return (f"{layer}{slash}{owner}",), leaf
    return (), ""


def is_effective(path: str) -> bool:
    """Whether a parameter has the name of the derived weights of a layer.

    >>> is_effective("hidden/effective_kernel"), is_effective("hidden/kernel")
    (True, False)
    """
    name = path.rpartition("/")[2]
    return name.startswith(EFFECTIVE) and name != EFFECTIVE


def named_as_leaf(path: str, own: Iterable[str] = ()) -> bool:
    """Whether a parameter has the name of a leaf; see `split`.

    >>> named_as_leaf("hidden/probe"), named_as_leaf("hidden/probes")
    (True, False)
    """
    return bool(split(path, own)[1])


def may_be_leaf(path: str, present: Container[str], own: Iterable[str] = ()) -> bool:
    """Whether a parameter has both the name and the place of a leaf.

    >>> may_be_leaf("hidden/probe", {"hidden/kernel", "hidden/probe"})
    True
    >>> may_be_leaf("probe", {"hidden/kernel", "probe"})
    False
    >>> may_be_leaf("hidden/my_probe", {"hidden/kernel", "hidden/my_probe"})
    False

    Args:
      path: the path of the parameter.
      present: the paths of all parameters.
      own: the names of the leaves that users' parts declare.
    """
    return any(owner in present for owner in split(path, own)[0])
