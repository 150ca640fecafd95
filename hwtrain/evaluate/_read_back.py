"""Checks which chips of a checkpoint were measured; these are evaluated as measured."""

from collections.abc import Sequence

from hwtrain._errors import InputError
from hwtrain.checkpoint import HardwareCheckpoint


def are_measured(
    checkpoint: HardwareCheckpoint,
    seeds: Sequence[int],
    times_s: Sequence[float] | None,
) -> bool:
    """Returns whether the given chips of a checkpoint are all measured ones.

    A user with measured chips wants these, not other chips of the same nominal weights.
    So if a checkpoint holds a measured chip, no chip is drawn that it does not hold.

    Args:
      checkpoint: the checkpoint.
      seeds: the chips.
      times_s: the requested times.

    Raises:
      ValueError: if only some chips are measured, if a checkpoint with measured chips
        does not hold a chip, or if times are requested for measured chips.
    """
    measured = {chip.seed for chip in checkpoint.manifest.chips if chip.measured}
    missing = sorted(set(seeds) - set(checkpoint.chip_seeds))
    if measured and missing:
        held = ", ".join(map(str, checkpoint.chip_seeds))
        raise InputError(
            f"{checkpoint.directory} holds no chip {missing[0]}; it holds {held}, of "
            f"which chip {min(measured)} was measured; to draw chips from their seeds, "
            "pass checkpoint.variables"
        )
    asked = measured & set(seeds)
    if not asked:
        return False
    number = min(asked)
    if asked != set(seeds):
        drawn = sorted(set(seeds) - asked)
        raise InputError(
            f"chip {number} was measured and chip {drawn[0]} would be drawn from its "
            "seed; evaluate them one after the other"
        )
    if times_s is not None:
        raise InputError(
            f"chip {number} was measured, at one time; how it drifts is not known. "
            "Leave times_s out"
        )
    return True
