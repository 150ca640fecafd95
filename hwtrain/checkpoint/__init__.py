"""Hardware-ready checkpoints: what a chip or a simulator can be programmed from."""

from hwtrain.checkpoint.description import Graph as Graph
from hwtrain.checkpoint.description import Measurement as Measurement
from hwtrain.checkpoint.errors import HardwareCheckpointError as HardwareCheckpointError
from hwtrain.checkpoint.hook import ExportHook as ExportHook
from hwtrain.checkpoint.manifest import Manifest as Manifest
from hwtrain.checkpoint.measured import Conductances as Conductances
from hwtrain.checkpoint.measured import read_conductances as read_conductances
from hwtrain.checkpoint.orbax import HardwareRestore as HardwareRestore
from hwtrain.checkpoint.orbax import HardwareSave as HardwareSave
from hwtrain.checkpoint.progress import show_progress as show_progress
from hwtrain.checkpoint.reader import HardwareCheckpoint as HardwareCheckpoint
from hwtrain.checkpoint.reader import load as load
from hwtrain.checkpoint.tiles import Tile as Tile
from hwtrain.checkpoint.tracing import trace_graph as trace_graph
from hwtrain.checkpoint.verification import verify as verify
from hwtrain.checkpoint.writer import export as export
