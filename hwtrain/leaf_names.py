"""Names of the leaves that hardware puts beside arrays of weights.

A name says what may be one, never that it is: a model may have a parameter of the same
name. The plan decides (`AnalogWeight.beside`), or who made a variable.
"""

from collections.abc import Container

OWNERS = ("kernel", "embedding")
"""Names of arrays that are alone in their layer, which leaves may lie beside."""

SHARED = ("lora_a", "lora_b")
"""Those of which a layer has several: their leaves bear their names, such as
`lora_a_input_range`."""

STORED = ("input_range", "probe", "mapping_scale", "output_scale", "clip_bound")
"""Leaves of a model's parameters."""

OF_A_CHIP = ("mapping_scale", "chip_key", "on_levels", "of_chip")
"""What `hwtrain.chips.with_chip_leaves` puts beside a chip's weights."""

EFFECTIVE = "effective_"
"""What begins the name of a leaf that holds the weights that a layer multiplies by,
before the name of the array that they are made of: `effective_kernel`."""

OF_A_STEP = ("noise_key", "noise_strength")
"""What only a step puts there, and takes away again."""

_LEAVES = tuple(dict.fromkeys((*STORED, *OF_A_CHIP)))


def split(path: str) -> tuple[tuple[str, ...], str]:
    """Returns the arrays that a leaf may lie beside, and its name; or none of either.

    >>> split("hidden/probe")
    (('hidden/kernel', 'hidden/embedding'), 'probe')
    >>> split("lora_a_probe")
    (('lora_a',), 'probe')
    >>> split("hidden/effective_kernel")
    (('hidden/kernel',), 'effective_kernel')
    >>> split("hidden/bias")
    ((), '')
    """
    layer, slash, name = path.rpartition("/")
    if is_effective(path):
        return (f"{layer}{slash}{name.removeprefix(EFFECTIVE)}",), name
    owners, leaf = OWNERS, name
    for shared in SHARED:
        if name.startswith(f"{shared}_"):
            owners, leaf = (shared,), name.removeprefix(f"{shared}_")
    if leaf not in _LEAVES:
        return (), ""
    return tuple(f"{layer}{slash}{owner}" for owner in owners), leaf


def is_effective(path: str) -> bool:
    """Whether a parameter has the name of what a layer multiplies by.

    >>> is_effective("hidden/effective_kernel"), is_effective("hidden/kernel")
    (True, False)
    """
    name = path.rpartition("/")[2]
    return name in {EFFECTIVE + array for array in (*OWNERS, *SHARED)}


def named_as_leaf(path: str) -> bool:
    """Whether a parameter has the name of a leaf.

    >>> named_as_leaf("hidden/probe"), named_as_leaf("hidden/my_probe")
    (True, False)
    """
    return bool(split(path)[1])


def may_be_leaf(path: str, present: Container[str]) -> bool:
    """Whether a parameter has the name and the place of a leaf.

    >>> may_be_leaf("hidden/probe", {"hidden/kernel", "hidden/probe"})
    True
    >>> may_be_leaf("probe", {"hidden/kernel", "probe"})
    False

    Args:
      path: its path.
      present: the paths of all parameters.
    """
    return any(owner in present for owner in split(path)[0])
