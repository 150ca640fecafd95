"""What surrounds a crossbar: the range of its inputs, and how a layer is mapped."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from hwtrain._parts.part import Described
from hwtrain.hardware.configuration import (
    CONFIG,
    Count,
    Deviation,
    Limit,
    NonNegative,
    Positive,
    Share,
    changed,
)
from hwtrain.periphery.range import as_text

_LEARNING = (
    "decay",
    "input_min_percentage",
    "manage_output_clipping",
    "output_min_percentage",
    "gradient_scale",
    "gradient_relative",
)
"""What only a learned range feels."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class InputRangeParameter(Described):
    r"""The range of a tile's inputs: clipped to it, and learned.

    .. math:: \hat x = \mathrm{clip}(x, -r, r)

    `optim.input_range_learning` says how the range is learned.

    >>> InputRangeParameter(init_value=2.0).learn_input_range
    True

    References:
      Rasch et al., Hardware-aware training for large-scale and diverse deep learning
      inference workloads using in-memory computing-based accelerators,
      Nature Communications 2023.
    """

    enable: bool = True
    """False is the same as no `input_range` at all: no clipping."""
    dynamic: bool = False
    """Take max abs(x) of each input vector on each tile as the range, which then clips
    nothing and is the full scale of the DAC. Nothing is stored, nothing is learned."""
    learn_input_range: bool = True
    """False keeps the range where it is."""
    init_value: Positive = 3.0
    """The range at initialisation, in units of the layer's input."""
    init_from_data: Count = 100
    """Number of updates that set the range from the data instead of learning it.
    Zero turns this off."""
    init_std_alpha: Positive = 3.0
    """The range that they set, in standard deviations of the input."""
    decay: Deviation = 0.001
    """Decay of the range, relative, times the learning rate. Zero turns it off."""
    input_min_percentage: Share = 0.95
    """The range decays only while more than this share of inputs is not clipped."""
    manage_output_clipping: bool = False
    """Widen the range while the ADC clips outputs. Needs an `out_bound`, and no noise
    or bound management."""
    output_min_percentage: Share = 0.95
    """It is widened while less than this share of outputs is inside the bound."""
    gradient_scale: Positive = 1.0
    """Factor on the range's gradient."""
    gradient_relative: bool = True
    """Multiply the range's gradient by the range."""
    straight_through: bool = False
    """Give clipped inputs their gradient, as if they had not been clipped."""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cell: what was learned."""
        if self.dynamic:
            return {ctx.column: "dynamic, max|x| of each vector"}
        if not ctx.weight.ranged:
            return {}
        return {ctx.column: as_text(ctx, self.init_value)}

    @property
    def moves(self) -> bool:
        """Whether updates move it: it is learned, or set from data."""
        return self.learn_input_range or self.init_from_data > 0

    @property
    def alone(self) -> Self:
        """The same without asking for an ADC."""
        return replace(self, manage_output_clipping=False, output_min_percentage=0.95)

    def proof(self, ctx: Any) -> None:
        """Says what is measured of it: it clips, and has a gradient to learn from."""
        # Bounds of converters may clip where it does, so it is told alone.
        ctx.differs("input_range", alone=True)
        ctx.clips(ctx.leaves["input_range"], "input_range clips")
        if self.learn_input_range:
            ctx.learns("input_range", "input_range learns")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.enable:
            idle = [text for text in changed(self) if text != "enable=False"]
            reason = "enable=False"
        elif self.dynamic:
            allowed = ("dynamic=True", "learn_input_range=False")
            idle = [text for text in changed(self) if text not in allowed]
            reason = "dynamic=True"
        elif not self.learn_input_range:
            idle = changed(self, _LEARNING)
            reason = "learn_input_range=False"
        else:
            return self
        if idle:
            raise ValueError(
                f"{', '.join(idle)}: nothing of this has an effect with {reason}; "
                f"leave it out, or leave out {reason}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class MappingParameter(Described):
    r"""How a weight matrix is laid on crossbars.

    The matrix is cut into tiles of at most `max_input_size` x `max_output_size`, of
    balanced sizes. A crossbar holds :math:`w = W / s` with
    :math:`s = \max |W| / \omega` of its row tile, so that its largest weight is
    :math:`\omega`; the output is multiplied by :math:`s`, and by a learned
    :math:`\gamma` if asked for: :math:`y = \sum_r \gamma_r s_r (w_r x_r) + b`.

    >>> MappingParameter(weight_scaling_omega=1.0).max_input_size
    512

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """

    max_input_size: Limit = 512
    """Most rows (inputs) of a tile; `None` for no limit."""
    max_output_size: Limit = 512
    """Most columns (outputs) of a tile; `None` for no limit."""
    weight_scaling_omega: NonNegative = 0.0
    """The largest weight on a crossbar. Zero turns scaling off: s = 1."""
    weight_scaling_columnwise: bool = False
    """A scale for each column (output)."""
    learn_out_scaling: bool = False
    """Multiply the outputs of each row of tiles digitally by a number that is learned,
    1 at first. Biases are always digital."""
    out_scaling_columnwise: bool = False
    """Learn a number for each column (output)."""

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its cells: the scale of crossbars, and that of outputs."""
        output = "column" if self.out_scaling_columnwise else "row tile"
        learned = f"learned per {output}" if self.learn_out_scaling else ""
        return {ctx.column: self._scale(ctx.weight.hardware), "output scale": learned}

    def _scale(self, chip: Any) -> str:
        if self.weight_scaling_omega == 0:
            start = "stored, 1 at first, remapped" if chip.remaps else "stored, 1"
            return start if chip.stores_scale else ""
        each = "column" if self.weight_scaling_columnwise else "tile"
        how = "stored, remapped" if chip.remaps else "stored"
        how = how if chip.stores_scale else "derived"
        return f"max|W|/{self.weight_scaling_omega:g} per {each}, {how}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weight_scaling_columnwise and not self.weight_scaling_omega:
            raise ValueError(
                "weight_scaling_columnwise=True does nothing with "
                "weight_scaling_omega=0; leave it out or write "
                "weight_scaling_omega=1.0"
            )
        if self.out_scaling_columnwise and not self.learn_out_scaling:
            raise ValueError(
                "out_scaling_columnwise=True does nothing without "
                "learn_out_scaling=True: write it beside, or leave it out"
            )
        return self
