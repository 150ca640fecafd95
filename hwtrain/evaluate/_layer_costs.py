"""The cost of one layer, as the parts of its hardware state it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from hwtrain._errors import InputError
from hwtrain._flax.signal_side import stages_of
from hwtrain._parts.cost import Cost
from hwtrain._parts.cost_constants import CostParameter
from hwtrain._parts.part import Part
from hwtrain._parts.registry import ordered
from hwtrain._plan.counts import Counts, counts_of
from hwtrain._plan.weight import AnalogWeight
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.dac import Dac
from hwtrain.periphery.input_bits import InputBits
from hwtrain.periphery.weight_slices import WeightSlices

TILE = "tile"
DIGITAL = "digital"
_ON_CHIP = ("converter", "noise_model", "drift_compensation")
"""Fields of `Hardware` whose parts are on a chip, beside the stages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostContext:
    """What a part knows where it states its cost.

    Attributes:
      weight: the plan of the weights.
      counts: how often their tiles do what, for one example.
      constants: the constants of the technology.
      dac_bits: bits of the DAC of the hardware; `None` without.
      adc_bits: bits of its ADC.
    """

    weight: AnalogWeight
    counts: Counts
    constants: CostParameter
    dac_bits: float | None
    adc_bits: float | None

    @property
    def inp_bits(self) -> float:
        """Bits of the inputs.

        Raises:
          ValueError: if neither the hardware nor the constants state them.
        """
        return _bits(self.weight, self.dac_bits, self.constants, "inp")

    @property
    def out_bits(self) -> float:
        """Bits of the outputs; raises as `inp_bits` does."""
        return _bits(self.weight, self.adc_bits, self.constants, "out")


def _bits(
    weight: AnalogWeight, bits: float | None, constants: CostParameter, side: str
) -> float:
    found = getattr(constants, f"{side}_bits") if bits is None else bits
    if found is not None:
        return found
    kind = {"inp": "DAC", "out": "ADC"}[side]
    asks = {"inp": "input_bits_per_pass", "out": "adc_energy_fj_per_step"}[side]
    beside = "" if side == "inp" else " and out_bound"
    in_hardware = f"{side}_bits{beside} in its IOParameters (hardware.forward), or "
    if weight.kind == "raw":  # which has no periphery
        in_hardware = ""
    raise InputError(
        f"{weight.path}: its hardware has no {kind} with levels, and its cost depends "
        f"on their bits, as by {asks}. Write {in_hardware}{side}_bits in the "
        f"CostParameter (cost.{side}_bits)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCost:
    """The cost of an array of weights.

    Attributes:
      path: its path; of a digital layer, that of the parameter; empty for products of
        two results, as in attention.
      macs: multiplications and additions for one example.
      parts: its cost by the name of the part.
      counts: counts of its tiles; `None` for a digital layer.
      devices: number of its devices; `None` without a conductance converter.
    """

    path: str
    macs: float
    parts: Mapping[str, Cost]
    counts: Counts | None = None
    devices: int | None = None

    @property
    def total(self) -> Cost:
        """The cost of all parts."""
        return sum(self.parts.values(), Cost())


def analog_layer(
    weight: AnalogWeight, products: float, constants: CostParameter
) -> LayerCost:
    """Returns the cost of an array of analog weights."""
    chip = weight.hardware
    stages = list(stages_of(weight))
    # Without levels, converters are there nevertheless.
    for kind in (Dac, Adc):
        if not any(isinstance(stage, kind) for stage in stages):
            stages.append(kind())
    dac = next(stage for stage in stages if isinstance(stage, Dac))
    adc = next(stage for stage in stages if isinstance(stage, Adc))
    dac_bits, adc_bits = dac.converter.bits, adc.converter.bits
    passes = 1
    if constants.input_bits_per_pass is not None and products:
        bits = _bits(weight, dac_bits, constants, "inp")
        # Bits from a step are the logarithm of a number that rounding may exceed.
        passes = math.ceil(bits / constants.input_bits_per_pass - 1e-9)
    ordered_stages = ordered("stage", [s for s in stages if isinstance(s, Part)])
    outside = ordered_stages[: ordered_stages.index(adc)]
    # Applying an input's bits in groups is one reason for passes, not another one.
    passes = max([passes, *(s.passes for s in stages if isinstance(s, InputBits))])
    counts = counts_of(
        weight,
        products,
        passes=passes * _repeats(ordered_stages),
        converted_passes=passes * _repeats(outside),
        tile_rows=constants.tile_rows,
        tile_columns=constants.tile_columns,
        columns_per_output=constants.columns_per_output,
        columns_per_adc=constants.columns_per_adc,
    )
    # Of a weight in slices, each pass reads the devices of one.
    slices = math.prod(len(s.bits) for s in stages if isinstance(s, WeightSlices))
    counts = dataclasses.replace(counts, weight_reads=counts.weight_reads / slices)
    of_cells = constants.cell_energy_fj or constants.cell_area_um2
    if chip.converter is None and of_cells:
        raise InputError(
            f"{weight.path}: its hardware has no converter of weights to conductances, "
            "so that the number of its devices is not known, and cell_energy_fj and "
            "cell_area_um2 are of one device. Give it one, such as "
            "converter=SinglePairConductanceConverter(g_max=25.0), or leave these "
            "constants out"
        )
    ctx = CostContext(
        weight=weight,
        counts=counts,
        constants=constants,
        dac_bits=dac_bits,
        adc_bits=adc_bits,
    )
    parts: dict[str, Cost] = {}
    fields = [getattr(chip, name) for name in _ON_CHIP]
    for part in (*stages, *fields):
        if not isinstance(part, Part):
            continue
        found = part.cost(ctx)
        if not isinstance(found, Cost):
            raise InputError(
                f"{weight.path}: expected cost of {type(part).__name__} to return a "
                f"hwtrain.Cost, got {type(found).__name__}"
            )
        name = "cells" if part is chip.converter else part.type
        parts[name] = parts.get(name, Cost()) + found
    parts[TILE] = parts.get(TILE, Cost()) + Cost(
        energy_fj=counts.tile_reads * constants.tile_energy_pj * 1e3,
        latency_ns=counts.steps * counts.passes * constants.read_time_ns,
        area_um2=counts.tiles * constants.tile_area_um2,
    )
    devices = None
    if chip.converter is not None:
        devices = math.prod(weight.shape) * len(chip.converter.devices)
    return LayerCost(
        path=weight.path,
        macs=counts.macs,
        parts={name: part for name, part in parts.items() if part != Cost()},
        counts=counts,
        devices=devices,
    )


def _repeats(stages: Sequence[Part]) -> int:
    """Returns how often stages repeat a read with all bits of the inputs."""
    return math.prod(s.passes for s in stages if not isinstance(s, InputBits))


def digital_layer(path: str, macs: float, constants: CostParameter) -> LayerCost:
    """Returns the cost of digital products."""
    speed = constants.digital_macs_per_ns
    found = Cost(
        energy_fj=macs * constants.digital_mac_energy_fj,
        latency_ns=macs / speed if speed is not None else 0.0,
    )
    return LayerCost(path=path, macs=macs, parts={DIGITAL: found})
