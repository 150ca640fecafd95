"""Leaves beside kernels that Linen's `nn.map_variables` must not change.

A map of a layer's variables, as in `nn.WeightNorm` or a user's function, is meant for
the layer's own parameters. It gets them without the leaves that hardware added, which
are put back unchanged.

Flax maps variables in one function. `install` wraps it; outside of analog models the
wrapper does nothing.
"""

import contextlib
import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from hwtrain._arrays import paths
from hwtrain._flax.linen import flax_internals as internals
from hwtrain._flax.linen.call_record import call, changed
from hwtrain._plan.leaf_names import OF_A_STEP, OWNERS, named_as_leaf, split


class AnyLeaf(Container[str]):
    """The possible names of leaves beside an array.

    Args:
      own: the names of leaves declared by users' parts.
    """

    def __init__(self, own: Sequence[str]):
        self._own = own

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return named_as_leaf(name, self._own) or bool(_of_step(name))


def kept(
    names: Container[str], own: Sequence[str] = ()
) -> contextlib.AbstractContextManager[None]:
    """Hides leaves of these names, beside an array, from maps of variables inside.

    Args:
      names: their names in a layer.
      own: the names of leaves declared by users' parts.
    """
    return changed(kept=names, own_leaves=own)


def install() -> None:
    """Wraps Flax's function, once."""
    original = internals.map_variables_function()
    if hasattr(original, "hwtrain_original"):
        return

    @functools.wraps(original)
    def map_variables(
        fn: Any,
        mapped_collections: Any,
        map_in_fn: Any = internals.unchanged,
        map_out_fn: Any = internals.unchanged,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        maps = (_around(map_in_fn), _around(map_out_fn))
        return original(fn, mapped_collections, *maps, *args, **kwargs)

    vars(map_variables)["hwtrain_original"] = original
    internals.put_map_variables_function(map_variables)


def _around(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a map of variables that leaves kept leaves out."""

    def mapped(variables: Any) -> Any:
        names, own = call().kept, call().own_leaves
        params = variables.get("params") if names else None
        if not isinstance(params, Mapping):
            return function(variables)
        present = paths.leaves(params)
        ours = {
            path: x
            for path, x in present.items()
            if _is_kept(path, present, names, own)
        }
        if not ours:
            return function(variables)
        rest = paths.drop(params, lambda path: path not in ours)
        found = function({**variables, "params": rest})
        return {**found, "params": paths.insert(found["params"], ours)}

    return mapped


def _is_kept(
    path: str,
    present: Mapping[str, Any],
    names: Container[str],
    own: Sequence[str],
) -> bool:
    layer, slash, name = path.rpartition("/")
    if name not in names:
        return False
    arrays = [f"{layer}{slash}{array}" for array in _of_step(name)]
    return any(array in present for array in (*split(path, own)[0], *arrays))


def _of_step(name: str) -> tuple[str, ...]:
    """Returns the arrays that a step's leaf of this name may belong to."""
    for leaf in OF_A_STEP:
        if name == leaf:
            return OWNERS
        if name.endswith(f"_{leaf}"):
            return (name.removesuffix(f"_{leaf}"),)
    return ()
