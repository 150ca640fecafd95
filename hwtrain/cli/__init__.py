"""The command `hwtrain`."""

from hwtrain.cli._command_line import main as main
from hwtrain.cli._command_line import run as run
