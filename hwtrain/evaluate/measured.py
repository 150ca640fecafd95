"""Chips of a checkpoint that were measured: they are evaluated as they are."""

from collections.abc import Sequence

from hwtrain.checkpoint import HardwareCheckpoint


def are_measured(
    checkpoint: HardwareCheckpoint,
    seeds: Sequence[int],
    times_s: Sequence[float] | None,
) -> bool:
    """Returns whether chips of a checkpoint are measured ones, all of them.

    Args:
      checkpoint: the checkpoint.
      seeds: the chips.
      times_s: times that are asked for.

    Raises:
      ValueError: if some are and some are not, or for times of measured chips.
    """
    measured = {chip.seed for chip in checkpoint.manifest.chips if chip.measured}
    asked = measured & set(seeds)
    if not asked:
        return False
    number = min(asked)
    if asked != set(seeds):
        drawn = sorted(set(seeds) - asked)
        raise ValueError(
            f"chip {number} was measured and chip {drawn[0]} would be drawn from its "
            "seed; evaluate them one after the other"
        )
    if times_s is not None:
        raise ValueError(
            f"chip {number} was measured, at one time; how it drifts is not known. "
            "Leave times_s out"
        )
    return True
