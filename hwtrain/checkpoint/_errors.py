"""The error for a checkpoint that cannot be written or trusted."""

from hwtrain._errors import InputError

_LONGEST = 4000


class HardwareCheckpointError(InputError):
    """A hardware-ready checkpoint cannot be written, or a path does not hold one.

    The message names the file and the tensor, the expected and the actual value, and
    the way out. It is one line, whatever the file contains.
    """

    def __init__(self, message: str):
        line = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode()
            for c in message[:_LONGEST]
        )
        super().__init__(line if len(message) <= _LONGEST else f"{line}...")
