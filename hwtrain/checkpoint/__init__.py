"""Hardware-ready checkpoints for programming a chip or a simulator."""

from hwtrain.checkpoint._description import Graph as Graph
from hwtrain.checkpoint._description import Measurement as Measurement
from hwtrain.checkpoint._dynapse import export_dynapse as export_dynapse
from hwtrain.checkpoint._dynapse import load_dynapse as load_dynapse
from hwtrain.checkpoint._errors import (
    HardwareCheckpointError as HardwareCheckpointError,
)
from hwtrain.checkpoint._hook import ExportHook as ExportHook
from hwtrain.checkpoint._manifest import Manifest as Manifest
from hwtrain.checkpoint._orbax import HardwareRestore as HardwareRestore
from hwtrain.checkpoint._orbax import HardwareSave as HardwareSave
from hwtrain.checkpoint._progress import show_progress as show_progress
from hwtrain.checkpoint._read_back import Conductances as Conductances
from hwtrain.checkpoint._read_back import read_conductances as read_conductances
from hwtrain.checkpoint._reader import HardwareCheckpoint as HardwareCheckpoint
from hwtrain.checkpoint._reader import load as load
from hwtrain.checkpoint._tiles import Tile as Tile
from hwtrain.checkpoint._tracing import trace_graph as trace_graph
from hwtrain.checkpoint._verification import verify as verify
from hwtrain.checkpoint._writer import export as export
