"""The periphery of a tile, one stage per file."""

from hwtrain.periphery.adc_thresholds import AdcThresholds as AdcThresholds
from hwtrain.periphery.circuit import crossbar_currents as crossbar_currents
from hwtrain.periphery.column_errors import ColumnErrors as ColumnErrors
from hwtrain.periphery.column_wires import ColumnWires as ColumnWires
from hwtrain.periphery.comparator_offsets import (
    ComparatorOffsets as ComparatorOffsets,
)
from hwtrain.periphery.device_nonlinearity import (
    DeviceNonlinearity as DeviceNonlinearity,
)
from hwtrain.periphery.digital_format import DigitalFormat as DigitalFormat
from hwtrain.periphery.digital_format import OutputFormat as OutputFormat
from hwtrain.periphery.input_range import InputRangeParameter as InputRangeParameter
from hwtrain.periphery.io import IOParameters as IOParameters
from hwtrain.periphery.mvm import analog_mvm as analog_mvm
from hwtrain.periphery.weight_slices import WeightSlices as WeightSlices
from hwtrain.periphery.wire_resistance import WireResistance as WireResistance
from hwtrain.periphery.wire_resistance import (
    apparent_conductances as apparent_conductances,
)
