"""The error of an artifact that cannot be written or trusted."""


class HardwareCheckpointError(ValueError):
    """A hardware-ready checkpoint cannot be written, or what lies there is not one.

    The message names the file and the tensor, what was expected, what came, and the way
    out.
    """
