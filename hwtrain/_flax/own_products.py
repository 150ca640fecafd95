"""Checks that a user's product, the `dot_general` of a layer, is linear.

A tile multiplies in its own units, x / r and W / s, and its results are scaled back. So
nothing except the product may change inputs and results; moving them, or computing in
another dtype, is allowed. The walk through a call's program checks this.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from hwtrain._flax.jaxprs import mark
from hwtrain._flax.origins import Origin, Origins, Passage, changed, passages

_ENTERS, _LEAVES = "hwtrain inputs", "hwtrain results"
_GATHERS = {"all_gather", "all_gather_invariant", "all_to_all", "ppermute"}
_SUMS = {"psum", "psum_invariant", "reduce_scatter"}

_numbers = itertools.count()


def watched_product(
    dot_general: Callable[..., Any], marked: Callable[[str, Any], Any]
) -> Callable[..., Any]:
    """Returns the product of a layer with its array marked.

    Args:
      dot_general: the layer's product; for a user's, inputs and results are marked too.
      marked: called with the name of an array and the array.
    """

    def product(x, w, *numbers, **options):
        w = marked("kernel", w)
        if dot_general is jax.lax.dot_general:
            return dot_general(x, w, *numbers, **options)
        number = next(_numbers)
        x = mark(x, f"{_ENTERS} {number}")
        return mark(dot_general(x, w, *numbers, **options), f"{_LEAVES} {number}")

    return product


class Passages:
    """Follows inputs and results through users' products.

    Attributes:
      nonlinear: by path of a parameter, the reason why its layer's product is not
        linear.
    """

    def __init__(self):
        self.nonlinear: dict[str, str] = {}

    def marked(self, label: str, origins: Origins) -> Origins | None:
        """Returns the origins after a mark; `None` if the mark is not of this kind."""
        kind, _, number = label.rpartition(" ")
        if kind == _ENTERS:
            return origins | {Origin(Passage(int(number)))}
        if kind != _LEAVES:
            return None
        found = passages(origins).items()
        here = {o: passage for o, passage in found if passage.number == int(number)}
        results = {o: passage.path for o, passage in here.items() if passage.path}
        for result, path in results.items():
            if result.by:
                why = f"the operation {result.by!r} changes its results"
                self.nonlinear.setdefault(path, why)
            elif len(results) < len(here):
                why = "its results have inputs in them beside the product"
                self.nonlinear.setdefault(path, why)
        return origins - here.keys()

    def product(self, name: str, values: Sequence[Origins], paths: set[str]) -> Origins:
        """Returns the passages of the result of a product.

        Args:
          name: the operation.
          values: the origins of its operands.
          paths: the parameters among them that are multiplied by.
        """
        carried = [found for value in values if (found := passages(value))]
        if name == "gather" or len(carried) != 1:
            return changed([o for found in carried for o in found], name)
        results: set[Origin] = set()
        for origin, passage in carried[0].items():
            if passage.path:  # a further product is linear too
                results.add(origin)
            elif len(paths) != 1:
                results |= changed([origin], name)
            else:
                (path,) = paths
                if origin.by:
                    why = f"the operation {origin.by!r} changes its inputs"
                    self.nonlinear.setdefault(path, why)
                results.add(Origin(Passage(passage.number, path)))
        return frozenset(results)


def collects(name: str, origins: Origins) -> bool:
    """Whether an operation combines a product's parts on the devices of a mesh.

    Args:
      name: the operation.
      origins: the origins of its operands.
    """
    found = passages(origins)
    summed = name in _SUMS and all(passage.path for passage in found.values())
    return bool(found) and (summed or name in _GATHERS)
