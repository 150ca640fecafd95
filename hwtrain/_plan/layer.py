"""Layers as both frameworks report them, and the plans of their arrays."""

import dataclasses
from collections.abc import Container

from hwtrain._arrays.windows import Window
from hwtrain._errors import InputError
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import own_names
from hwtrain._plan.weight import AnalogWeight

RETURNING = ("__call__", "attend")
"""The methods whose results are those of a module."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerWeight:
    """An array of a layer that can be analog.

    Attributes:
      leaf: name of the array in the layer.
      shape: its shape as the layer sees it, without the axes of a stack.
      rows: input axes.
      columns: output axes; the remaining axes lead.
      window: for a convolution, how its window moves over the input.
      equation: for an einsum, its equation.
      kind: how the layer multiplies by it, if that differs from the layer's kind.
      stated: whether a user's method states its product.
    """

    leaf: str = "kernel"
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    window: Window | None = None
    equation: str = ""
    kind: str = ""
    stated: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A module as the frameworks report it.

    Attributes:
      path: its path.
      name: name of its class.
      kind: kind of its analog counterpart, or `None` if there is none. For layers of
        Flax it comes from their row in the table of sockets.
      why: why there is no counterpart.
      weights: the arrays that can be analog.
      by_rule: whether it is analog only if a rule says so.
      opaque: whether it is a bridge to layers that cannot be seen.
      no_inputs: why no leaves for the inputs of a call can lie beside its array, and
        what works instead; empty if they can.
      derived: by name of an array, why the layer multiplies by weights computed from
        it. Arrays that it uses as they are have no entry.
      lost: likewise, why it multiplies by no weights that a crossbar could hold.
      around: names of the arrays that an input is also multiplied by outside the layer.
      nonlinear: by name of an array, why its product is not linear.
      refused: likewise, why a crossbar cannot multiply by it as the layer does.
      capacitances: names of the parameters that take a noise current.
      called: whether a method of `RETURNING` was called, or in NNX can be.
    """

    path: str = ""
    name: str = ""
    kind: str | None = None
    why: str = "this type of layer stays digital"
    weights: tuple[LayerWeight, ...] = ()
    by_rule: bool = False
    opaque: bool = False
    no_inputs: str = ""
    derived: tuple[tuple[str, str], ...] = ()
    lost: tuple[tuple[str, str], ...] = ()
    around: tuple[str, ...] = ()
    nonlinear: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    capacitances: tuple[str, ...] = ()
    called: bool = False

    @property
    def unknown(self) -> bool:
        """Whether hwtrain knows neither its class nor a reason to keep it digital."""
        return self.kind is None and self.why == Layer.why

    def leaf_path(self, leaf: str) -> str:
        """Returns the path of one of its arrays."""
        return f"{self.path}/{leaf}" if self.path else leaf

    def weight(self, leaf: str) -> LayerWeight | None:
        """Returns the array of this name, if it can be analog."""
        return next((weight for weight in self.weights if weight.leaf == leaf), None)


def joined(before: Layer | None, layer: Layer) -> Layer:
    """Merges the reports of several calls of a layer.

    Args:
      before: the report of earlier calls of the module at this path, if any.
      layer: the report of this call.
    """
    called = layer.called or (before is not None and before.called)
    return dataclasses.replace(_joined(before, layer), called=called)


def _joined(before: Layer | None, layer: Layer) -> Layer:
    if before is None or before.kind is None:
        return layer if before is None or layer.kind else before
    if layer.kind is None:
        return before
    arrays, refused = {array.leaf: array for array in before.weights}, {}
    for array in layer.weights:
        old = arrays.get(array.leaf, array)
        if (array.stated or old.stated) and (old.rows, old.shape) != (
            array.rows,
            array.shape,
        ):
            refused[array.leaf] = (
                f"it is multiplied by in two ways, as in {old.equation!r} and as in "
                f"{array.equation!r}, but a crossbar allows only one. Make it two "
                "arrays"
            )
        arrays[array.leaf] = array
    stated = all(array.stated for array in layer.weights)
    return dataclasses.replace(
        before if stated else layer,
        weights=tuple(arrays.values()),
        refused=tuple({**refused, **dict(before.refused + layer.refused)}.items()),
    )


def unasked(layer: Layer, asked: Container[str]) -> Layer:
    """Refuses the registered arrays of a layer that its call did not multiply by.

    Without this, a layer that multiplies in another way would silently stay digital.

    Args:
      layer: the layer.
      asked: the paths of the arrays whose products a call has stated.
    """
    silent = [
        array.leaf
        for array in layer.weights
        if array.stated and layer.leaf_path(array.leaf) not in asked
    ]
    why = (
        "it is registered by hwtrain.sockets.register, but its call does not multiply "
        "by it as registered. Multiply by hwtrain.analog_einsum there"
    )
    more = tuple((leaf, why) for leaf in silent)
    return dataclasses.replace(layer, refused=layer.refused + more)


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def dense_layer(
    stack: tuple[int, ...], rows: tuple[int, ...], columns: tuple[int, ...]
) -> Layer:
    """Returns a dense layer.

    Args:
      stack: sizes of the leading axes of its kernel; each entry has its own crossbar.
      rows: sizes of the input axes, which follow.
      columns: sizes of the output axes, which come last.
    """
    first, last = len(stack), len(stack) + len(rows)
    shape = (*stack, *rows, *columns)
    weight = LayerWeight(
        shape=shape,
        rows=tuple(range(first, last)),
        columns=tuple(range(last, len(shape))),
    )
    return Layer(weights=(weight,))


def analog_weight(
    layer: Layer,
    array: LayerWeight,
    *,
    path: str,
    shape: tuple[int, ...],
    hardware: Hardware,
    rule: str,
) -> AnalogWeight:
    """Returns the plan of an array of a layer, which may be one of a stack.

    Raises:
      ValueError: if the axes of the stack do not lead, or for an input range that the
        layer cannot have.
    """
    lead = len(shape) - len(array.shape)
    if shape[lead:] != array.shape:
        raise InputError(
            f"{path}: the layer sees a kernel of shape {array.shape}, but the stored "
            f"one is {shape}; the axes of a stack of layers must lead. Stack on axis 0 "
            "(variable_axes={'params': 0}, in_axes=0)"
        )
    drawn = hardware.modifier is not None and hardware.modifier.in_layer
    options = {
        "input_range": hardware.ranged,
        "modifier.per_batch_sample, per_vector or redraw": drawn,
        "mapping.learn_out_scaling": hardware.scales_outputs,
    }
    for option in [name for name, given in options.items() if given]:
        if layer.no_inputs:
            raise InputError(
                f"{path}: {rule} gives it {option}, which {_article(layer.name)} "
                f"cannot have: {layer.no_inputs}. Write Rule({layer.path!r}, "
                f"Hardware(...)) without it, or Rule({layer.path!r}, None) to keep it "
                "digital, before the other rules"
            )
    if drawn and array.window is not None and array.window.mask:
        raise InputError(
            f"{path}: {rule} gives it modifier.per_batch_sample, per_vector or redraw, "
            f"whose noise would reach the weights that the mask of this {layer.name} "
            "leaves out. Draw its weights for the step, without these, or write "
            f"Rule({layer.path!r}, None) to keep it digital, before the other rules"
        )
    weight = AnalogWeight(
        path=path,
        kind=array.kind or layer.kind or "",
        layer=layer.name,
        shape=shape,
        rows=tuple(lead + axis for axis in array.rows),
        columns=tuple(lead + axis for axis in array.columns),
        hardware=hardware,
        rule=rule,
        ranged=hardware.ranged,
        window=array.window,
        equation=array.equation,
        derived=dict(layer.derived).get(array.leaf),
    )
    for leaf in weight.own_leaves:
        if leaf.name not in own_names(hardware):
            raise InputError(
                f"{path}: a part declares the leaf {leaf.name!r} for this weight, but "
                "not for every weight. Let leaves(self, weight) return it always, and "
                "choose the weights that have it with LeafSpec(there=lambda weight, "
                "when: ...)"
            )
    return weight
