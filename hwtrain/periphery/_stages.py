"""The built-in stages, from the outermost to the innermost."""

from hwtrain._parts.registry import register
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.asymmetry import InputAsymmetry, OutputAsymmetry
from hwtrain.periphery.dac import Dac
from hwtrain.periphery.input_noise import InputNoise
from hwtrain.periphery.input_range import Range
from hwtrain.periphery.ir_drop import IrDrop
from hwtrain.periphery.management import Management
from hwtrain.periphery.output_factor import OutputFactor
from hwtrain.periphery.output_noise import OutputNoise
from hwtrain.periphery.read_noise import ReadNoise
from hwtrain.periphery.saturation import Saturation
from hwtrain.periphery.shift import Shift
from hwtrain.periphery.voltage_offset import VoltageOffset
from hwtrain.periphery.weight_noise import WeightNoise

_around: tuple[str, ...] = ()
# Stages that act on inputs stand outside of those that read the tile's own inputs.
for _name, _stage in {
    "range": Range,
    "output_factor": OutputFactor,
    "management": Management,
    "dac": Dac,
    "input_noise": InputNoise,
    "input_asymmetry": InputAsymmetry,
    "adc": Adc,
    "shift": Shift,
    "output_noise": OutputNoise,
    "output_asymmetry": OutputAsymmetry,
    "saturation": Saturation,
    "read_noise": ReadNoise,
    "voltage_offset": VoltageOffset,
    "ir_drop": IrDrop,
    "weight_noise": WeightNoise,
}.items():
    register("stage", _name, inside=_around)(_stage)
    _around = (_name,)
