"""The built-in stages, from the outermost to the innermost."""

from hwtrain._parts.registry import register
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.adc_thresholds import AdcThresholds
from hwtrain.periphery.asymmetry import InputAsymmetry, OutputAsymmetry
from hwtrain.periphery.column_errors import ColumnErrors
from hwtrain.periphery.column_wires import ColumnWires
from hwtrain.periphery.comparator_offsets import ComparatorOffsets
from hwtrain.periphery.dac import Dac
from hwtrain.periphery.device_nonlinearity import DeviceNonlinearity
from hwtrain.periphery.input_bits import InputBits
from hwtrain.periphery.input_noise import InputNoise
from hwtrain.periphery.input_range import Range
from hwtrain.periphery.ir_drop import IrDrop
from hwtrain.periphery.management import Management
from hwtrain.periphery.output_factor import OutputFactor
from hwtrain.periphery.output_noise import OutputNoise
from hwtrain.periphery.read_noise import ReadNoise
from hwtrain.periphery.saturation import Saturation
from hwtrain.periphery.separate_signs import SeparateSigns, SeparateSignsDigitally
from hwtrain.periphery.shift import Shift
from hwtrain.periphery.voltage_offset import VoltageOffset
from hwtrain.periphery.weight_noise import WeightNoise
from hwtrain.periphery.weight_slices import WeightSlices
from hwtrain.periphery.wire_resistance import WireResistance

_around: tuple[str, ...] = ()
# Stages that act on inputs stand outside of those that read the tile's own inputs.
for _name, _stage in {
    "range": Range,
    "output_factor": OutputFactor,
    "management": Management,
    "dac": Dac,
    "input_noise": InputNoise,
    "input_asymmetry": InputAsymmetry,
    "input_bits": InputBits,
    "separate_signs_digitally": SeparateSignsDigitally,
    "weight_slices": WeightSlices,
    "adc": Adc,
    "comparator_offsets": ComparatorOffsets,
    "adc_thresholds": AdcThresholds,
    "column_errors": ColumnErrors,
    "shift": Shift,
    "output_noise": OutputNoise,
    "output_asymmetry": OutputAsymmetry,
    "saturation": Saturation,
    "separate_signs": SeparateSigns,
    "read_noise": ReadNoise,
    "voltage_offset": VoltageOffset,
    "device_nonlinearity": DeviceNonlinearity,
    "ir_drop": IrDrop,
    "column_wires": ColumnWires,
    "wire_resistance": WireResistance,
    "weight_noise": WeightNoise,
}.items():
    register("stage", _name, inside=_around)(_stage)
    _around = (_name,)
