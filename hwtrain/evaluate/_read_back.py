"""Chips of a checkpoint that were measured: they are evaluated as they are."""

from collections.abc import Sequence

from hwtrain.checkpoint import HardwareCheckpoint


def are_measured(
    checkpoint: HardwareCheckpoint,
    seeds: Sequence[int],
    times_s: Sequence[float] | None,
) -> bool:
    """Returns whether chips of a checkpoint are measured ones, all of them.

    Who has measured chips means these, and not others of the same nominal weights: so
    of a checkpoint that holds one, no chip is drawn that it does not hold.

    Args:
      checkpoint: the checkpoint.
      seeds: the chips.
      times_s: times that are asked for.

    Raises:
      ValueError: if some are and some are not, for chips that a checkpoint with
        measured ones does not hold, or for times of measured chips.
    """
    measured = {chip.seed for chip in checkpoint.manifest.chips if chip.measured}
    missing = sorted(set(seeds) - set(checkpoint.chip_seeds))
    if measured and missing:
        held = ", ".join(map(str, checkpoint.chip_seeds))
        raise ValueError(
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
