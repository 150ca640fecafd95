"""Names of the leaves that hardware puts beside arrays of weights.

A name says what may be one, never that it is: a model may have a parameter of the same
name. The plan decides (`AnalogWeight.beside`), or who made a variable.
"""

from collections.abc import Container

OWNERS = ("kernel", "embedding")
"""Names of arrays whose leaves do not bear their names: a layer has one of them."""

SHARED = ("lora_a", "lora_b")
"""The factors of a LoRA. Their leaves, and those of any other array, bear their names,
such as `lora_a_input_range`."""

STORED = ("input_range", "probe", "mapping_scale", "output_scale", "clip_bound")
"""Leaves of a model's parameters."""

OF_A_CHIP = ("mapping_scale", "chip_key", "on_levels", "of_chip")
"""What `hwtrain.chips.with_chip_leaves` puts beside a chip's weights."""

EFFECTIVE = "effective_"
"""What begins the name of a leaf that holds the weights that a layer multiplies by,
before the name of the array that they are made of: `effective_kernel`."""

CONSTANTS = "hardware_constants"
"""The leaf that holds the traced constants of an array's hardware in a call."""

OF_A_STEP = ("noise_key", "noise_strength", CONSTANTS)
"""What only a step puts there, and takes away again."""

_LEAVES = tuple(dict.fromkeys((*STORED, *OF_A_CHIP)))


def split(path: str) -> tuple[tuple[str, ...], str]:
    """Returns the arrays that a leaf may lie beside, and its name; or none of either.

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
    """
    layer, slash, name = path.rpartition("/")
    if is_effective(path):
        return (f"{layer}{slash}{name.removeprefix(EFFECTIVE)}",), name
    for leaf in _LEAVES:
        if name == leaf:
            return tuple(f"{layer}{slash}{owner}" for owner in OWNERS), leaf
        owner = name.removesuffix(f"_{leaf}")
        if owner not in (name, ""):
            return (f"{layer}{slash}{owner}",), leaf
    return (), ""


def is_effective(path: str) -> bool:
    """Whether a parameter has the name of what a layer multiplies by.

    >>> is_effective("hidden/effective_kernel"), is_effective("hidden/kernel")
    (True, False)
    """
    name = path.rpartition("/")[2]
    return name.startswith(EFFECTIVE) and name != EFFECTIVE


def named_as_leaf(path: str) -> bool:
    """Whether a parameter has the name of a leaf.

    >>> named_as_leaf("hidden/probe"), named_as_leaf("hidden/probes")
    (True, False)
    """
    return bool(split(path)[1])


def may_be_leaf(path: str, present: Container[str]) -> bool:
    """Whether a parameter has the name and the place of a leaf.

    >>> may_be_leaf("hidden/probe", {"hidden/kernel", "hidden/probe"})
    True
    >>> may_be_leaf("probe", {"hidden/kernel", "probe"})
    False
    >>> may_be_leaf("hidden/my_probe", {"hidden/kernel", "hidden/my_probe"})
    False

    Args:
      path: its path.
      present: the paths of all parameters.
    """
    return any(owner in present for owner in split(path)[0])
