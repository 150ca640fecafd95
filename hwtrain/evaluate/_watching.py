"""Runs steps of an analog model while observing its layers."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hwtrain._arrays.processes import together
from hwtrain._arrays.shared import gathered
from hwtrain._flax.functional import compiled
from hwtrain._flax.observation import (
    Multiplication,
    noise_observed,
    observed,
    tell,
)
from hwtrain.evaluate import _bench as bench
from hwtrain.evaluate._rerun import undisturbed


@dataclasses.dataclass(frozen=True)
class Step:
    """The observations of one step.

    Attributes:
      outputs: the model's outputs in one vector.
      readings: by weight path, the readings of each call of its layer. Of several
        processes, one has them.
      noise: by path of a neuron's capacitance, the effects of its noise current at each
        call, over their configured deviation.
    """

    outputs: np.ndarray
    readings: dict[str, list[bench.Readings]]
    noise: dict[str, list[np.ndarray]]


@contextlib.contextmanager
def watching(
    function: Callable[..., Any], kwargs: Mapping[str, Any], shared: bool = False
) -> Iterator[Callable[..., list[Step]]]:
    """Yields a function that runs a model's steps and observes its layers.

    All steps share one program.

    Args:
      function: from `as_function`, in train mode.
      kwargs: keyword arguments of every call.
      shared: whether all processes call it together.
    """
    program, readings, noise = compiled(function, kwargs, shared), {}, {}

    def observe(call: Multiplication) -> jax.Array:
        path = call.weight.path

        def take(found: bench.Readings) -> None:
            readings.setdefault(path, []).append(jax.tree.map(np.asarray, found))

        tell(take, bench.read(call))
        return undisturbed(call)

    def hear(path: str, effects: jax.Array) -> None:
        tell(lambda found: noise.setdefault(path, []).append(np.ravel(found)), effects)

    def watched(tree: Any, keys: Iterable[jax.Array], *example: Any) -> list[Step]:
        steps = []
        for key in keys:
            readings.clear()
            noise.clear()
            leaves = jax.tree.leaves(program(tree, key, *example))
            with together(shared):
                outputs = np.concatenate([np.ravel(leaf) for leaf in gathered(leaves)])
                jax.effects_barrier()
            steps.append(Step(outputs, dict(readings), dict(noise)))
        return steps

    with observed(observe), noise_observed(hear):
        yield watched
