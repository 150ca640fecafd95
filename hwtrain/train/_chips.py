"""The hardware of all layers of a run, as its evaluation and its export take it."""

import dataclasses
from typing import Any

from hwtrain._errors import InputError
from hwtrain._plan.hardware import Hardware
from hwtrain.train._config import (
    Config,
    RuleParameter,
    assigned,
    has_deviation,
)


def exports(config: Config) -> bool:
    """Whether there are conductances to export."""
    return all(chip.converter is not None for chip in config.chips)


def chip_seeds(config: Config) -> list[int]:
    """Returns the seed of the exported chip, if anything on a chip is frozen."""
    frozen = any(chip.frozen for chip in config.chips)
    return [config.export.chip_seed] if frozen else []


def chips_of(config: Config, mismatch_std: float | None) -> Any:
    """Returns the hardware of all layers with another spread of its mismatch.

    Args:
      config: the configuration.
      mismatch_std: see `chip_hardware`; `None` for the hardware as it is. Hardware
        without a mismatch stays without.
    """
    if mismatch_std is None:
        return config.assigned

    def one(hardware: Hardware) -> Hardware:
        level = 0.0 if hardware.mismatch is None else mismatch_std
        return chip_hardware(hardware, level)

    rules: list[RuleParameter] = []
    for rule in config.rules:
        changed = None if rule.hardware is None else one(rule.hardware)
        rules.append(dataclasses.replace(rule, hardware=changed))
    return assigned(one(config.hardware), tuple(rules))


def chip_hardware(hardware: Hardware, mismatch_std: float) -> Hardware:
    """Returns the hardware with another standard deviation of its mismatch.

    Args:
      hardware: the hardware.
      mismatch_std: the standard deviation; 0 if the hardware has no mismatch. A
        mismatch of a user's own without a field `std_dev` stays as it is.
    """
    if hardware.mismatch is None:
        if mismatch_std:
            raise InputError(
                f"expected a mismatch_std of 0, because the hardware has no mismatch; "
                f"got {mismatch_std:g}"
            )
        return hardware
    if not has_deviation(hardware.mismatch):
        return hardware
    changes: dict[str, Any] = {"std_dev": mismatch_std}
    mismatch = dataclasses.replace(hardware.mismatch, **changes)
    return dataclasses.replace(hardware, mismatch=mismatch)
