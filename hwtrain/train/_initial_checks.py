"""Checks that the arrays of a checkpoint fit those of a model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain._errors import InputError

_SHOWN = 8
"""Most names in one line."""


def check_stacks(
    targets: Mapping[str, Any],
    missing: Sequence[str],
    unused: Mapping[str, np.ndarray],
    source: str,
) -> None:
    """Raises if layers lie in one array here, and in one for each layer there."""
    for one, several, words in (
        (unused, {x: targets[x] for x in missing}, ("scanned", "one by one")),
        ({x: targets[x] for x in missing}, unused, ("one by one", "scanned")),
    ):
        groups: dict[str, list[str]] = {}
        for name in several:
            for unnumbered in _unnumbered(name):
                groups.setdefault(unnumbered, []).append(name)
        for stacked, array in one.items():
            shape = np.shape(array)
            for group in map(groups.get, [_plain(stacked), *_unnumbered(stacked)]):
                if group is None:
                    continue
                inner = {np.shape(several[name]) for name in group}
                # A scan may stack its layers along any axis.
                if not any(
                    size == len(group) and inner == {shape[:axis] + shape[axis + 1 :]}
                    for axis, size in enumerate(shape)
                ):
                    continue
                there, here = words
                pair = (stacked, group[0]) if one is unused else (group[0], stacked)
                raise InputError(
                    f"{source}: holds its layers {there} ({pair[0]}), and the model "
                    f"{here} ({pair[1]}): {len(group)} arrays of shape "
                    f"{inner.pop()} against one of {shape}; return "
                    "them as the model has them from a function of your own, such as "
                    'init_from = "file.py:function"'
                )


def _unnumbered(path: str) -> list[str]:
    """Returns a path without one of the numbers at the end of its names, for each.

    >>> _unnumbered("layers_1/Dense_0/kernel")
    ['layers/Dense_0/kernel', 'layers_1/Dense/kernel']
    >>> _unnumbered("layers/1/kernel")
    ['layers/kernel']
    """
    numbers = re.finditer(r"[_/]?\d+(?=/|$)", path)
    return [_plain(path[: x.start()] + path[x.end() :]) for x in numbers]


def _plain(path: str) -> str:
    """Returns a path without the names that Flax gives to scans."""
    return path.replace("Scan", "")


def as_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arrays by path; lists of numbers become arrays."""
    return {path: _as_array(array) for path, array in arrays.items()}


def _as_array(value: Any) -> Any:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return value
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths, which `cast` refuses by this dtype
        return np.asarray(value, object)


def no_parameters(source: str, found: Sequence[str]) -> str:
    """Returns the error of a checkpoint with other arrays of the model only.

    Args:
      source: the checkpoint, for the message.
      found: the arrays of the model that it has.
    """
    return (
        f"{source}: expected the parameters of this model, got only {listed(found)}; "
        "give a checkpoint that holds its parameters as well"
    )


def nothing_fits(source: str, params: Mapping[str, Any], there: Sequence[str]) -> str:
    """Returns the error of a checkpoint in which no parameter of the model was found.

    Args:
      source: the checkpoint, for the message.
      params: the model's parameters by path.
      there: the paths in the checkpoint.
    """
    first = there[0] if there else "name"
    head, slash, _ = first.partition("/")
    hint = 'rename = { "pattern" = "replacement" }'
    if slash and all(path.startswith(f"{head}/") for path in there):
        hint = f"""rename = {{ "{head}/(.*)" = '\\1' }}"""
    if any(path.rpartition("/")[2] == "weight" for path in there):
        hint = (
            'init_from = "file.py:function", because PyTorch\'s weights have other '
            "names and are transposed"
        )
    return (
        f"{source}: expected a checkpoint of this model, but no array has the path of "
        f"a parameter: it has {listed(sorted(there))}; the model has "
        f"{listed(sorted(params))}. If they are the same, give {hint}"
    )


def cast(array: np.ndarray, like: Any, name: str, source: str) -> np.ndarray:
    """Returns an array in the model's dtype, after checking that it fits."""
    shape, dtype = np.shape(like), np.dtype(jnp.result_type(like))
    if array.shape != shape:
        hint = f'for a new layer, skip = ["{_layer_pattern(name)}"]'
        if array.shape == shape[::-1]:
            hint = (
                "if it is transposed, as PyTorch's weights are, return it the other "
                'way round from a function of your own, init_from = "file.py:function"'
            )
        raise InputError(
            f"{source}: expected {name} of shape {shape}, as the model has it, got "
            f"{array.shape}; {hint}"
        )
    if not any(
        jnp.issubdtype(array.dtype, kind) and jnp.issubdtype(dtype, kind)
        for kind in (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    ):
        raise InputError(
            f"{source}: expected {name} of a dtype that can be converted to the "
            f"model's {dtype}, got {array.dtype}; convert it in a function of your "
            'own, init_from = "file.py:function"'
        )
    _require_finite(
        array,
        name,
        source,
        "as after a training that diverged; take an earlier checkpoint",
    )
    with np.errstate(over="ignore"):
        found = array.astype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        _require_finite(
            found,
            name,
            source,
            f"as {dtype}, which the model has; train the model in a wider dtype",
        )
    elif (found != array).any():
        raise InputError(
            f"{source}: expected whole numbers in {name} that fit the model's {dtype}, "
            f"got {array.dtype} up to {array.max()}"
        )
    return found


def _require_finite(array: np.ndarray, name: str, source: str, why: str) -> None:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    wrong = int(np.sum(~np.isfinite(array)))
    if wrong:
        raise InputError(
            f"{source}: {wrong} of {array.size} numbers in {name} are NaN or infinite, "
            f"{why}"
        )


def _layer_pattern(name: str) -> str:
    layer, slash, _ = name.rpartition("/")
    return f"{layer}/.*" if slash else name


def listed(names: Sequence[str]) -> str:
    """Returns names for a line; many are counted."""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
