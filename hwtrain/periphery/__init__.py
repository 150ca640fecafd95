"""The periphery of a tile, one stage per file."""

from hwtrain.periphery.circuit import crossbar_currents as crossbar_currents
from hwtrain.periphery.input_range import InputRangeParameter as InputRangeParameter
from hwtrain.periphery.io import IOParameters as IOParameters
from hwtrain.periphery.mvm import analog_mvm as analog_mvm
