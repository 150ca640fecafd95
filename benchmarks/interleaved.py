"""Timing of several variants in one interleaved run.

A round times each variant once, so that other load on the machine affects all of them.
Before that it runs the variant once, because the first run finds the caches and the
memory as the variant before left them: the largest would make the next one slower. The
medians over rounds are compared; quartiles and the fastest round, which other load
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
      rounds: number of rounds.
      rest: seconds before each variant, in which the threads of the one before may go
        to sleep, if they belong to another framework.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            time.sleep(rest)
            jax.block_until_ready(run())
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    first = statistics.median(next(iter(seconds.values())))
    return {name: _timing(values, first) for name, values in seconds.items()}


def _timing(values: list[float], first: float) -> Timing:
    median = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, (low, high), min(values), median / first)
