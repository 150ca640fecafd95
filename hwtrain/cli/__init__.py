"""The command `hwtrain`."""

from hwtrain.cli.command_line import main as main
from hwtrain.cli.command_line import run as run
