"""The periphery of a tile: converters, noise, management, and output distortions."""

import math
from dataclasses import fields
from typing import Annotated, Literal, Self

from pydantic import Field, WrapSerializer, model_validator

import hwtrain.periphery._stages  # noqa: F401 gives stages their order
from hwtrain._arrays.rounding import resolution
from hwtrain._errors import InputError
from hwtrain._parts.constant import static
from hwtrain._parts.fields import (
    Deviation,
    NonNegative,
    Number,
    Positive,
    PositiveShare,
    PositiveSteps,
    Share,
    configuration,
)
from hwtrain._parts.part import Described, Part
from hwtrain._parts.registry import ordered
from hwtrain._parts.slot import Slot
from hwtrain.periphery._converter import from_bits
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.asymmetry import InputAsymmetry, OutputAsymmetry
from hwtrain.periphery.dac import Dac
from hwtrain.periphery.input_bits import InputBits
from hwtrain.periphery.input_noise import InputNoise
from hwtrain.periphery.ir_drop import G_RATIO, IrDrop
from hwtrain.periphery.management import Management
from hwtrain.periphery.output_factor import OutputFactor
from hwtrain.periphery.output_noise import OutputNoise
from hwtrain.periphery.read_noise import ReadNoise
from hwtrain.periphery.saturation import Saturation
from hwtrain.periphery.separate_signs import SeparateSigns, SeparateSignsDigitally
from hwtrain.periphery.shift import Shift
from hwtrain.periphery.voltage_offset import VoltageOffset

Bits = Annotated[int, Field(ge=2, le=24)]


@configuration
class IOParameters(Described):
    r"""The periphery of a tile's matrix multiplication. `IOParameters()` is ideal.

    .. math::
        y = \alpha\, f_\text{out} \mathrm{ADC}(w\, \mathrm{DAC}(x / \alpha))

    All values are in normalised units, and each tile has its own converters: inputs are
    divided by the input range and weights by the mapping scale, so that 1 is the
    largest input and, with `weight_scaling_omega=1`, the largest weight.
    `hwtrain.periphery.mvm.analog_mvm` documents the order of the effects and their
    gradients.

    >>> chip = IOParameters(inp_bits=8, out_bits=8, out_bound=10.0, out_noise=0.04)
    >>> round(1 / chip.dac.res)
    254

    Raises:
      ValueError: for an ADC without `out_bound`, for both bits and resolution of one
        converter, or for an option without effect.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """

    inp_bound: Positive | None = None
    """Full scale of the DAC. `None`: 1 with rounding, no clipping without."""
    inp_res: PositiveSteps | None = None
    """Step of the DAC relative to its full range of twice the bound; above 1, the
    number of steps. `None` for no rounding."""
    inp_bits: Bits | None = None
    """Bits of the DAC, instead of `inp_res`: 1 / (2^bits - 2)."""
    inp_sto_round: bool = False
    """Round the inputs stochastically."""
    inp_noise: Deviation = 0.0
    """Standard deviation of the noise on the inputs, after the DAC. Zero turns it
    off."""
    inp_asymmetry: Share = 0.0
    """Relative attenuation of negative inputs. Zero turns it off."""

    out_bound: Positive | None = None
    """Full scale of the ADC. `None` for no clipping."""
    out_res: PositiveSteps | None = None
    """Step of the ADC relative to its full range of twice the bound; above 1, the
    number of steps. `None` for no rounding."""
    out_bits: Bits | None = None
    """Bits of the ADC, instead of `out_res`: 1 / (2^bits - 2)."""
    out_sto_round: bool = False
    """Round the outputs stochastically."""
    out_noise: Deviation = 0.0
    """Standard deviation of the noise on the outputs, before the ADC. Zero turns it
    off."""
    out_noise_per_channel: bool = False
    """Multiply `out_noise` by the largest weight of each output's column."""
    out_noise_std: Deviation = 0.0
    """Relative spread of `out_noise` over the outputs of a chip, frozen with the chip.
    Zero turns it off."""
    out_asymmetry: Share = 0.0
    """Relative attenuation of negative outputs. Zero turns it off."""
    out_scale: Positive = 1.0
    """Factor on the outputs after the ADC. One turns it off."""

    noise_management: Literal[
        "none", "abs_max", "max", "constant", "abs_max_np_sum", "average_abs_max"
    ] = "none"
    """Divisor of each input vector before the DAC: its largest absolute value; its
    largest value; a constant; the largest absolute value or, if larger, the scale at
    which the worst-case output, from its inputs of one sign, fits the ADC; or a running
    average of the largest absolute value over the vectors of past updates."""
    nm_thres: NonNegative = 0.0
    """Upper limit of the `"abs_max"` scale (zero: no limit); the `"constant"` scale
    (zero: 1)."""
    nm_decay: PositiveShare = 1e-3
    """Weight of the newest update in the average of `"average_abs_max"`."""
    nm_assumed_wmax: Positive = 0.6
    """Largest weight assumed by `"abs_max_np_sum"` and `"iterative_worst_case"`."""
    bound_management: Literal["none", "iterative", "iterative_worst_case", "shift"] = (
        "none"
    )
    """Action when the ADC clips. `"iterative"` halves the inputs of the vector until
    nothing clips; `"iterative_worst_case"` first uses the scale of `"abs_max_np_sum"`;
    `"shift"` shifts the outputs down, which is invisible only to a softmax."""
    max_bm_factor: Annotated[float, Field(ge=1, le=1e12)] = 1000.0
    """Factor above which inputs are not halved again."""
    max_bm_res: Positive = 0.25
    """Inputs are not halved again once the DAC's step exceeds this share of their
    remaining range."""

    mv_type: Literal[
        "one_pass",
        "pos_neg_separate",
        "pos_neg_separate_digital_sum",
        "split_mode",
        "bit_wise",
    ] = "one_pass"
    """Reads of a tile for one input: one; one for its positive and one for its negative
    values, added before the ADC or behind it; one for its lower and one for its higher
    bits, or one for each bit, shifted and added behind the ADC."""
    split_mode_bit_shift: Annotated[int, Field(ge=1, le=23)] = 3
    """Lower bits of `"split_mode"`."""
    w_read_asymmetry_dtod: Deviation = 0.0
    """Relative spread over devices of the weight that negative inputs see, frozen with
    the chip. Zero turns it off."""

    w_noise: Deviation = 0.0
    """Strength of the read noise of the weights. Zero turns it off."""
    w_noise_type: Literal["none", "additive_constant", "pcm_read"] = "none"
    """Standard deviation of each weight: `w_noise`, or `w_noise` times the square root
    of the absolute weight."""
    ir_drop: NonNegative = 0.0
    """Strength of the IR drop along the wires. Zero turns it off; 1 is physical."""
    ir_drop_g_ratio: Positive = G_RATIO
    """Conductance of the wire between two cells over the largest device conductance."""
    out_nonlinearity: NonNegative = 0.0
    """Strength of the saturation of outputs at the bound of the ADC. Zero turns it
    off."""
    out_nonlinearity_std: Deviation = 0.0
    """Relative spread of the saturation over the outputs of a chip, frozen with the
    chip. Zero turns it off."""
    slope_calibration: NonNegative = 0.0
    """Distance from zero, relative to the bound, at which the slope of the outputs is
    calibrated to 1. Zero turns the calibration off."""
    r_series: NonNegative = 0.0
    """Series resistance of the outputs, normalised. Zero turns it off."""
    v_offset_std: Deviation = 0.0
    """Standard deviation of the voltage offset of the outputs, relative to the read
    voltage, frozen with the chip; negative offsets become zero. Zero turns it off."""
    v_offset_w_min: Number = -1.0
    """Weight of a device that is off, the reference for reads at an offset voltage or
    through `r_series`."""

    stages: Annotated[
        tuple[Annotated[Part, Slot("stage")], ...],
        WrapSerializer(lambda stages, write: write(stages) or None),
    ] = ()
    """Further stages around the tile, such as a user's, that are not fields of this
    class. Their order follows from their registration."""

    def describe(self) -> str:
        """Returns the fields that differ from the ideal, by name."""
        ideal = IOParameters()
        names = [f.name for f in fields(ideal) if f.name != "stages"]
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in ((name, getattr(self, name)) for name in names)
            if value != getattr(ideal, name)
        )

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at a read."""
        return self.noisy or self.inp_sto_round or self.out_sto_round

    @property
    def noisy(self) -> bool:
        """Whether noise of adjustable strength is drawn."""
        noise = (self.inp_noise, self.out_noise, self.w_noise)
        noisy = any(value > 0 for value in noise) or self.frozen
        return noisy or any(stage.draws_at("read") for stage in self.stages)

    @property
    def frozen(self) -> bool:
        """Whether chips differ: drawn once per chip, and in training at each step."""
        spreads = (
            self.out_noise_std,
            self.out_nonlinearity_std,
            self.v_offset_std,
            self.w_read_asymmetry_dtod,
        )
        frozen = any(spread > 0 for spread in spreads)
        return frozen or any(stage.draws_at("chip") for stage in self.stages)

    @property
    def dac(self) -> Dac:
        """The converter of the inputs; its full scale is 1 unless given."""
        res = _resolution(self.inp_res, self.inp_bits)
        bound = 1.0 if self.inp_bound is None and res is not None else self.inp_bound
        return Dac(bound=bound, res=res, stochastic=self.inp_sto_round)

    @property
    def adc(self) -> Adc:
        """The converter of the outputs."""
        res = _resolution(self.out_res, self.out_bits)
        return Adc(bound=self.out_bound, res=res, stochastic=self.out_sto_round)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The same as a tuple of stages, outermost first."""
        dac, adc, bound = self.dac, self.adc, self.out_bound
        found: list[Part | None] = [
            OutputFactor(factor=self.out_scale) if self.out_scale != 1 else None,
            self._management,
            dac if dac.bound is not None else None,
            InputNoise(sigma=self.inp_noise) if self.inp_noise > 0 else None,
            InputAsymmetry(share=self.inp_asymmetry) if self.inp_asymmetry else None,
            self._passes,
            adc if bound is not None else None,
            OutputAsymmetry(share=self.out_asymmetry) if self.out_asymmetry else None,
        ]
        if self.bound_management == "shift" and bound is not None:
            found.append(Shift(bound=bound))
        if self.out_noise > 0:
            found.append(
                OutputNoise(
                    sigma=self.out_noise,
                    spread=self.out_noise_std,
                    per_channel=self.out_noise_per_channel,
                )
            )
        if self.out_nonlinearity > 0 or self.r_series > 0:
            found.append(
                Saturation(
                    strength=self.out_nonlinearity,
                    spread=self.out_nonlinearity_std,
                    slope_calibration=self.slope_calibration,
                    r_series=self.r_series,
                    bound=bound,
                )
            )
        if self.w_noise > 0 and self.w_noise_type != "none":
            found.append(ReadNoise(sigma=self.w_noise, kind=self.w_noise_type))
        if self.v_offset_std > 0 or self.r_series > 0:
            found.append(
                VoltageOffset(
                    spread=self.v_offset_std,
                    w_min=self.v_offset_w_min,
                    r_series=self.r_series,
                )
            )
        if self.ir_drop > 0:
            found.append(IrDrop(strength=self.ir_drop, g_ratio=self.ir_drop_g_ratio))
        given = [part for part in found if part is not None]
        return ordered("stage", [*given, *self.stages])

    @property
    def _passes(self) -> Part | None:
        if self.mv_type == "one_pass":
            return None
        if self.mv_type in ("split_mode", "bit_wise"):
            step, groups = self.dac.converter.step, self._groups
            assert step is not None
            return InputBits(step=step, groups=groups)
        digitally = self.mv_type == "pos_neg_separate_digital_sum"
        kind = SeparateSignsDigitally if digitally else SeparateSigns
        return kind(read_asymmetry=self.w_read_asymmetry_dtod)

    @property
    def _groups(self) -> tuple[int, ...]:
        """Bits of an input in each pass, the lowest first, without the sign."""
        res = self.dac.res
        bits = 0 if res is None else math.ceil(math.log2(0.5 / static(res) + 1) - 1e-6)
        if self.mv_type == "bit_wise":
            return (1,) * bits
        return (self.split_mode_bit_shift, bits - self.split_mode_bit_shift)

    @property
    def _management(self) -> Management | None:
        # The running average is handled by the `Range` stage.
        noise = self.noise_management
        noise = "none" if noise == "average_abs_max" else noise
        iterates = self.bound_management in ("iterative", "iterative_worst_case")
        if noise == "none" and not iterates:
            return None
        limit, step = self.max_bm_factor, self.dac.converter.step
        if step is not None:
            limit = min(limit, self.max_bm_res / step)
        return Management(
            noise=noise,
            threshold=self.nm_thres,
            iterative=iterates,
            worst_case=self.bound_management == "iterative_worst_case",
            limit=limit,
            assumed_wmax=self.nm_assumed_wmax,
            bound=self.out_bound,
            inputs_drawn=self.inp_noise > 0,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for side in ("inp", "out"):
            _check_converter(self, side)
        needs_bound = {
            "bound_management": self.bound_management != "none",
            "noise_management": self.noise_management == "abs_max_np_sum",
            "out_nonlinearity": self.out_nonlinearity > 0,
            "slope_calibration": self.slope_calibration > 0,
        }
        for name, needed in needs_bound.items():
            if needed and self.out_bound is None:
                raise InputError(
                    f"{name}={getattr(self, name)!r} refers to the full scale of the "
                    f"ADC: write out_bound=10.0 beside it, in normalised units, or "
                    f"leave {name} out"
                )
        iterates = self.bound_management in ("iterative", "iterative_worst_case")
        levels = self.inp_res is not None or self.inp_bits is not None
        assumes = self.noise_management == "abs_max_np_sum" or (
            self.bound_management == "iterative_worst_case"
        )
        without_effect = {
            "nm_assumed_wmax": self.nm_assumed_wmax != 0.6 and not assumes,
            "max_bm_factor": self.max_bm_factor != 1000.0 and not iterates,
            "max_bm_res": self.max_bm_res != 0.25 and not (iterates and levels),
            "ir_drop_g_ratio": self.ir_drop_g_ratio != G_RATIO and self.ir_drop == 0,
            "nm_thres": self.nm_thres > 0
            and self.noise_management not in ("abs_max", "constant"),
            "nm_decay": self.nm_decay != 1e-3
            and self.noise_management != "average_abs_max",
            "slope_calibration": self.slope_calibration > 0
            and not (self.out_nonlinearity > 0 or self.r_series > 0),
            "v_offset_w_min": self.v_offset_w_min != -1.0
            and not (self.v_offset_std > 0 or self.r_series > 0),
            "out_noise_per_channel": self.out_noise_per_channel and self.out_noise == 0,
            "out_noise_std": self.out_noise_std > 0 and self.out_noise == 0,
            "out_nonlinearity_std": self.out_nonlinearity_std > 0
            and self.out_nonlinearity == 0,
            "w_noise": self.w_noise > 0 and self.w_noise_type == "none",
            "split_mode_bit_shift": self.split_mode_bit_shift != 3
            and self.mv_type != "split_mode",
            "w_read_asymmetry_dtod": self.w_read_asymmetry_dtod > 0
            and "separate" not in self.mv_type,
            "mv_type": self.mv_type in ("split_mode", "bit_wise") and not levels,
        }
        needed = {
            "nm_assumed_wmax": 'noise_management="abs_max_np_sum" or '
            'bound_management="iterative_worst_case"',
            "max_bm_factor": 'bound_management="iterative"',
            "max_bm_res": 'bound_management="iterative" and levels of the DAC',
            "ir_drop_g_ratio": "ir_drop above zero",
            "nm_thres": 'noise_management="abs_max" or "constant"',
            "nm_decay": 'noise_management="average_abs_max"',
            "slope_calibration": "out_nonlinearity or r_series above zero",
            "v_offset_w_min": "v_offset_std or r_series above zero",
            "out_noise_per_channel": "out_noise above zero",
            "out_noise_std": "out_noise above zero",
            "out_nonlinearity_std": "out_nonlinearity above zero",
            "w_noise": 'w_noise_type="additive_constant" or "pcm_read"',
            "split_mode_bit_shift": 'mv_type="split_mode"',
            "w_read_asymmetry_dtod": 'mv_type="pos_neg_separate" or '
            '"pos_neg_separate_digital_sum"',
            "mv_type": "levels of the DAC, inp_bits or inp_res",
        }
        for name, idle in without_effect.items():
            if idle:
                raise InputError(
                    f"{name}={getattr(self, name)!r} does nothing without "
                    f"{needed[name]}: write it beside, or leave {name} out"
                )
        if self.mv_type in ("split_mode", "bit_wise") and self._groups[-1] < 1:
            raise InputError(
                f"split_mode_bit_shift={self.split_mode_bit_shift} leaves no bits for "
                f"the second pass: the DAC has {sum(self._groups)} beside the sign. "
                "Write fewer, or more inp_bits"
            )
        if self.mv_type == "bit_wise" and len(self._groups) < 2:
            raise InputError(
                'mv_type="bit_wise" needs at least two bits beside the sign: write '
                'inp_bits=3 or more, or mv_type="one_pass"'
            )
        return self


def _resolution(res: float | None, bits: int | None) -> float | None:
    if bits is not None:
        return from_bits(bits)
    return None if res is None else resolution(res)


def _check_converter(io: IOParameters, side: str) -> None:
    """Raises for a converter that is specified twice or has options without effect."""
    res, bits = getattr(io, f"{side}_res"), getattr(io, f"{side}_bits")
    if res is not None and bits is not None:
        raise InputError(
            f"{side}_res={res} and {side}_bits={bits} both give the resolution; leave "
            f"one out ({side}_bits={bits} is {side}_res={from_bits(bits):.6g})"
        )
    levels = res is not None or bits is not None
    if getattr(io, f"{side}_sto_round") and not levels:
        raise InputError(
            f"{side}_sto_round=True does nothing without levels to round to: write "
            f"{side}_bits=8 beside it, or leave it out"
        )
    if side == "out" and levels and io.out_bound is None:
        given = "out_res" if bits is None else "out_bits"
        raise InputError(
            f"an ADC needs a full scale: write out_bound=10.0 beside {given}, in "
            "normalised units (largest input times largest weight)"
        )
