"""Timing of several variants in one interleaved run.

A round times each variant once, so that other load on the machine affects all of them.
The medians over rounds are compared; quartiles and the fastest round, which other load
disturbed least, are reported too.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax


class Timing(NamedTuple):
    """Seconds of one variant over all rounds."""

    median: float
    quartiles: tuple[float, float]
    fastest: float
    ratio: float


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, rest: float = 0.0
) -> dict[str, Timing]:
    """Returns the timing of each variant, with its ratio to the first.

    Args:
      variants: functions that start the work and return arrays to wait for.
      rounds: number of rounds after the one that compiles.
      rest: seconds before each variant, in which the threads of the one before may go
        to sleep, if they belong to another framework.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            time.sleep(rest)
            start = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                seconds[name].append(time.perf_counter() - start)
    first = statistics.median(next(iter(seconds.values())))
    return {name: _timing(values, first) for name, values in seconds.items()}


def _timing(values: list[float], first: float) -> Timing:
    median = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, (low, high), min(values), median / first)
