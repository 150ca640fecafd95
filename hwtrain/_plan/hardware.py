"""One type of chip."""

import functools
import math
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from hwtrain._errors import InputError
from hwtrain._parts.constant import replaced
from hwtrain._parts.fields import configuration
from hwtrain._parts.leaf import LeafSpec, When
from hwtrain._parts.part import Part
from hwtrain._parts.slot import OpenSlot
from hwtrain.devices import (
    ConductanceConverter,
    DriftCompensation,
    NoiseModel,
    StuckParameter,
)
from hwtrain.periphery import (
    DigitalFormat,
    InputRangeParameter,
    IOParameters,
    OutputFormat,
)
from hwtrain.periphery._read_keys import CHIP_KEY
from hwtrain.periphery.input_range import Range
from hwtrain.periphery.management import Management
from hwtrain.weights import (
    DriftParameter,
    MappingParameter,
    Mismatch,
    MismatchParameter,
    NoiseCurrentParameter,
    SimpleDriftParameter,
    WeightClip,
    WeightClipParameter,
    WeightModifier,
    WeightModifierParameter,
    WeightRemapParameter,
)
from hwtrain.weights.mapping import MAPPING_SCALE
from hwtrain.weights.modifier import ON_LEVELS

_Drift = Annotated[SimpleDriftParameter | DriftParameter, Field(discriminator="type")]


def _shows_nothing_else(weight: Any, when: When) -> bool:
    """Whether a chip's weights differ from nominal ones and no other leaf shows it."""
    others = (MAPPING_SCALE, CHIP_KEY, ON_LEVELS)
    return weight.hardware.frozen and not any(x.there(weight, when) for x in others)


OF_CHIP = LeafSpec(
    name="of_chip",
    when=("chip",),
    there=_shows_nothing_else,
    shapes=lambda weight: ((),),
    trained=None,
)
"""Marks the weights beside it as those of a chip."""


@configuration
class Hardware:
    """One type of chip: its effects on weights and inputs. `Hardware()` is ideal.

    >>> chip = Hardware(
    ...     modifier=WeightModifierParameter(type="add_normal", std_dev=0.1),
    ...     input_range=InputRangeParameter(),
    ... )
    >>> chip.clip is None
    True
    """

    modifier: Annotated[
        WeightModifierParameter | WeightModifier | None, OpenSlot("modifier")
    ] = None
    """Noise on the weights at every training step."""
    clip: Annotated[WeightClipParameter | WeightClip | None, OpenSlot("clip")] = None
    """Clipping of the weights after every update."""
    remap: WeightRemapParameter | None = None
    """Rescaling of each crossbar after every update, after the clip."""
    input_range: InputRangeParameter | None = None
    """Input range of each tile."""
    forward: IOParameters | None = None
    """Converters, noise and management around each tile. `None` is ideal."""
    mapping: MappingParameter | None = None
    """Tiles and weight scaling. `None`: one tile per layer, and no scaling."""
    mismatch: Annotated[MismatchParameter | Mismatch | None, OpenSlot("mismatch")] = (
        None
    )
    """Frozen mismatch of each chip."""
    drift: _Drift | None = None
    """Drift of the weights from one training step to the next."""
    converter: Annotated[ConductanceConverter | None, OpenSlot("converter")] = None
    """How weights become conductances, for `export`, `noise_model` and `stuck`."""
    noise_model: Annotated[NoiseModel | None, OpenSlot("noise_model")] = None
    """Effects of programming, time and reads on a chip's conductances."""
    drift_compensation: Annotated[
        DriftCompensation | None, OpenSlot("drift_compensation")
    ] = None
    """Compensation of the mean drift of each tile when a chip is used."""
    stuck: StuckParameter | None = None
    """Devices of each chip that cannot be programmed."""
    noise_current: NoiseCurrentParameter | None = None
    """White noise of the currents at a capacitance of a neuron, at every time step."""
    outputs: Annotated[
        DigitalFormat | OutputFormat | None, OpenSlot("output_format")
    ] = None
    """How digital units store what a layer's `__call__` returns. Alone in a rule, it
    also applies to modules that stay digital: norms, activations, whole blocks."""

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        # An export writes the fields of the known classes only: a subclass would be
        # loaded as its parent.
        for name, kinds in _classes().items():
            value = getattr(self, name)
            if type(value) not in kinds and not isinstance(value, Part):
                parent = next(kind for kind in kinds if isinstance(value, kind))
                raise InputError(
                    f"{name} should be a {parent.__name__} itself; got the subclass "
                    f"{type(value).__name__}, which an export would turn into its "
                    f"parent. Write its numbers as fields of {parent.__name__}, or "
                    "of a class of its own"
                )
        return self

    @model_validator(mode="after")
    def _check_stuck(self) -> Self:
        if self.stuck is not None and self.converter is None:
            raise InputError(
                "stuck needs a converter, because devices are stuck at its g_min or "
                "g_max. Write converter=SinglePairConductanceConverter(g_max=25.0)"
            )
        return self

    @model_validator(mode="after")
    def _check_noise_model(self) -> Self:
        if self.noise_model is None:
            if self.drift_compensation is not None:
                raise InputError(
                    "drift_compensation needs a noise_model, because without one "
                    "nothing drifts; write noise_model=PCMLikeNoiseModel() too, or "
                    "leave it out"
                )
            return self
        if self.converter is None:
            raise InputError(
                f"noise_model={self.noise_model.type!r} needs a converter: its noise "
                "acts on conductances. Write "
                f"converter=SinglePairConductanceConverter(g_max={self.noise_model.g_max:g})"
            )
        for name in ("g_max", "g_min"):
            here = getattr(self.converter, name)
            there = getattr(self.noise_model, name, here)
            if not math.isclose(here, there, rel_tol=1e-6):
                raise InputError(
                    f"the converter has {name}={here:g} µS and the noise model "
                    f"{self.noise_model.type!r} has {there:g} µS; they must be the "
                    f"same. Write {name}={there:g} in the converter, or the model's "
                    f"{name}={here:g}"
                )
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        stages = self.forward.stages if self.forward is not None else ()
        fields = (getattr(self, name) for name in _classes())
        for part in (*stages, *fields):
            if isinstance(part, Part):
                part.check_hardware(self)
        return self

    @model_validator(mode="after")
    def _check_leaves(self) -> Self:
        for name in ("clip", "mismatch", "converter", "noise_model"):
            self._check_no_leaves(name)
        for name in ("drift_compensation", "outputs"):
            self._check_no_leaves(name)
        return self

    def _check_no_leaves(self, name: str) -> None:
        part = getattr(self, name)
        if isinstance(part, Part) and type(part).leaves is not Part.leaves:
            raise InputError(
                f"{name}: {type(part).__name__} declares leaves, but a {name} reads "
                "none. Only stages (IOParameters(stages=...)) and modifiers can have "
                "leaves"
            )

    def leaves(self, weight: Any) -> tuple[LeafSpec, ...]:
        """Returns the leaves that users' parts add to an array of weights.

        Args:
          weight: the plan of the array.
        """
        parts = self.forward.stages if self.forward is not None else ()
        parts += (self.modifier,) if isinstance(self.modifier, Part) else ()
        return tuple(leaf for part in parts for leaf in part.leaves(weight))

    @model_validator(mode="after")
    def _check_outputs(self) -> Self:
        if self.outputs is not None and any(
            self.outputs.draws_at(when) for when in ("step", "chip", "read")
        ):
            raise InputError(
                f"outputs: {type(self.outputs).__name__} declares draws = "
                f"{self.outputs.draws!r}, but a format has no key. Only stages "
                "(IOParameters(stages=...)) draw at reads"
            )
        return self

    @property
    def digital(self) -> bool:
        """Whether it is that of digital units alone: `outputs` and nothing else."""
        return self.outputs is not None and self == Hardware(outputs=self.outputs)

    @property
    def frozen(self) -> bool:
        """Whether chips differ, by mismatch or by programming."""
        mismatch = self.mismatch is not None and bool(self.mismatch.draws)
        return mismatch or self.programs

    @property
    def sticks(self) -> bool:
        """Whether chips have stuck devices."""
        return self.stuck is not None and self.stuck.draws

    @property
    def programs(self) -> bool:
        """Whether devices of a chip deviate from their target conductances."""
        return self.noise_model is not None or self.sticks

    @property
    def ranged(self) -> bool:
        """Whether an input range, or an average of input maxima, is stored."""
        return self.averages or (self._has_range and not self.dynamic)

    @property
    def _has_range(self) -> bool:
        return self.input_range is not None and self.input_range.enable

    @property
    def dynamic(self) -> bool:
        """Whether each input vector has its own range."""
        return self.input_range is not None and self.input_range.dynamic

    @property
    def averages(self) -> bool:
        """Whether inputs are divided by a running average of their maxima."""
        io = self.forward
        return io is not None and io.noise_management == "average_abs_max"

    @property
    def stages(self) -> tuple[Part, ...]:
        """The stages around a tile, outermost first, without the input range."""
        io = self.forward or IOParameters()
        if not self.dynamic:
            return io.parts
        # A dynamic range is noise management by each vector's largest value.
        stages = replaced(io, noise_management="abs_max").parts
        return tuple(
            replaced(stage, of_range=True) if isinstance(stage, Management) else stage
            for stage in stages
        )

    def surrounded(self, stages: Iterable[Part], *, ranged: bool = False) -> Self:
        """Returns the same chip with other stages around its tiles.

        Args:
          stages: the stages.
          ranged: whether to keep its input range.
        """
        io, given = IOParameters(stages=tuple(stages)), self.input_range
        if ranged and self.averages and self.forward is not None:
            averaging: dict[str, Any] = {"noise_management": "average_abs_max"}
            averaging["nm_decay"] = self.forward.nm_decay
            io = replaced(io, **averaging)
        given = given.alone if given and ranged and self.ranged else None
        return replaced(self, forward=io, input_range=given)

    @property
    def range(self) -> Range:
        """The stage of the input range; an inert one if there is no range."""
        given = self.input_range
        if given is None:
            return Range(averages=self.averages)
        return Range(
            averages=self.averages,
            gradient_scale=given.gradient_scale,
            gradient_relative=given.gradient_relative,
            straight_through=given.straight_through,
            extremes=given.fast_mode,
        )

    @property
    def stores_scale(self) -> bool:
        """Whether the mapping scale is stored as a leaf rather than derived."""
        absolute = ("fixed_value", "average_channel_max")
        if isinstance(self.clip, WeightClip):
            return self.remaps or self.clip.absolute
        return self.remaps or (self.clip is not None and self.clip.type in absolute)

    @property
    def scales_outputs(self) -> bool:
        """Whether outputs are multiplied by a learned scale."""
        return self.mapping is not None and self.mapping.learn_out_scaling

    @property
    def learns_clip(self) -> bool:
        """Whether weights are clipped to a learned bound in the forward pass."""
        return self.clip is not None and self.clip.learned

    @property
    def remaps(self) -> bool:
        """Whether crossbars get a new scale after every update."""
        return self.remap is not None and self.remap.active

    @property
    def drifts(self) -> bool:
        """Whether weights drift during training."""
        return self.drift is not None and self.drift.acts

    @property
    def derives_chip_scale(self) -> bool:
        """Whether only a chip's parameters have a mapping scale beside the kernel.

        It is the scale of the nominal kernel, or 1; the factor of the drift
        compensation, behind the ADC, is multiplied into it.
        """
        scaled = self.mapping is not None and self.mapping.weight_scaling_omega > 0
        scaled = scaled or self.drift_compensation is not None
        return scaled and self.converts and not self.stores_scale

    @property
    def converts(self) -> bool:
        """Whether there is any periphery around the tiles other than an input range."""
        return self.forward is not None and self.forward != IOParameters()

    @property
    def rounds_chips(self) -> bool:
        """Whether the weights of a chip are programmed to levels."""
        of_devices = self.converter is not None and self.converter.rounds
        of_modifier = self.modifier is not None and self.modifier.rounds_chips
        return of_devices or of_modifier

    @property
    def without_levels(self) -> Self:
        """The same chip for weights that already lie on its modifier's levels."""
        if self.modifier is None or not self.modifier.rounds_chips:
            return self
        return replaced(self, modifier=self.modifier.without_levels)

    def modifies(self, mode: str) -> bool:
        """Whether the weights of a layer in `mode` are modified at a step."""
        if mode == "eval" or self.modifier is None or not self.modifier.acts:
            return False
        return mode == "train" or self.modifier.enable_during_test

    def modifies_in_layer(self, mode: str) -> bool:
        """Whether the layer applies the modifier, not the model before the call."""
        return self.modifies(mode) and bool(self.modifier and self.modifier.in_layer)

    def redraws(self, mode: str) -> bool:
        """Whether a layer redraws the modification in its backward pass."""
        return self.modifies(mode) and bool(self.modifier and self.modifier.redraw)

    def draws_weights(self, mode: str) -> bool:
        """Whether a step draws noise for the weights of a layer in `mode`."""
        return self.modifies(mode) and _draws(self.modifier)

    def reads(self, mode: str) -> bool:
        """Whether the periphery draws noise at a read in `mode`."""
        return mode != "eval" and self.forward is not None and self.forward.draws

    def noisy(self, *, periphery: bool) -> bool:
        """Whether training draws noise of adjustable strength."""
        modifier, forward = self.modifier, self.forward
        own = modifier is not None and modifier.noisy or self.noise_current is not None
        return own or (periphery and forward is not None and forward.noisy)

    def draws_currents(self, mode: str) -> bool:
        """Whether noise currents of a neuron are drawn in `mode`."""
        return mode != "eval" and self.noise_current is not None

    def freezes(self, mode: str) -> bool:
        """Whether the periphery in `mode` has quantities frozen in a chip."""
        return mode != "eval" and self.forward is not None and self.forward.frozen

    def draws(self, mode: str) -> bool:
        """Whether a layer in `mode` draws at a step; plain rounding does not count."""
        drawn = self.draws_weights(mode) or self.draws_currents(mode)
        return drawn or self.reads(mode)

    def needs_root(self, mode: str) -> bool:
        """Whether a layer in `mode` must be called through its model to be correct."""
        rounds = mode == "chip" and self.rounds_chips
        return self.modifies(mode) or self.draws(mode) or self.learns_clip or rounds

    @model_validator(mode="after")
    def _check_learned_clip(self) -> Self:
        if self.learns_clip and self.remaps:
            raise InputError(
                "remap sets the scale of crossbars from weights that were clipped "
                'after an update, and clip=WeightClipParameter(type="learnable_per_'
                'channel") clips in the forward pass: leave one of the two out'
            )
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        io = self.forward or IOParameters()
        if self.dynamic and io == IOParameters():
            raise InputError(
                "input_range=InputRangeParameter(dynamic=True) does nothing without a "
                "DAC or noise, because its range clips no input: write forward="
                "IOParameters(inp_bits=8) beside it, or leave it out"
            )
        if self.dynamic and io.noise_management != "none":
            raise InputError(
                "input_range=InputRangeParameter(dynamic=True) scales each input "
                f"vector by itself, and so does noise_management="
                f"{io.noise_management!r}: leave one of them out"
            )
        if self._has_range and io.noise_management not in ("none", "constant"):
            raise InputError(
                f"noise_management={io.noise_management!r} scales inputs by their "
                "largest values, and an input range scales all by one number: "
                "together, the range could not be learned. Leave input_range out, or "
                'write noise_management="none" or "constant"'
            )
        if self._has_range and self.input_range is not None:
            self._check_output_clipping(self.input_range, io)
        return self

    def _check_output_clipping(
        self, parameter: InputRangeParameter, io: IOParameters
    ) -> None:
        if not parameter.manage_output_clipping:
            return
        managed = (io.noise_management, io.bound_management)
        if io.out_bound is None or managed != ("none", "none"):
            raise InputError(
                "manage_output_clipping=True widens the input range where the ADC "
                "clips; it needs forward=IOParameters(out_bound=...) with "
                'noise_management="none" and bound_management="none"; got '
                f"out_bound={io.out_bound}, noise_management="
                f"{io.noise_management!r}, bound_management={io.bound_management!r}"
            )


def _draws(modifier: WeightModifierParameter | WeightModifier | None) -> bool:
    """Whether a modifier draws; a user's modifier may name what it draws."""
    return modifier is not None and modifier.draws not in (False, "none")


@functools.cache
def _classes() -> dict[str, tuple[type, ...]]:
    """Returns the classes allowed in each field of `Hardware`, by field name."""
    hints = typing.get_type_hints(Hardware)
    return {name: typing.get_args(hint) for name, hint in hints.items()}
