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
    results_observed,
    tell,
)
from hwtrain.evaluate import _bench as bench
from hwtrain.evaluate import _stored_proof as stored_proof
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
      results: by path of a module, readings of each array that it returned and that a
        digital unit stored.
    """

    outputs: np.ndarray
    readings: dict[str, list[bench.Readings]]
    noise: dict[str, list[np.ndarray]]
    results: dict[str, list[stored_proof.Readings]]


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
    results: dict[str, list[stored_proof.Readings]] = {}

    def observe(call: Multiplication) -> jax.Array:
        path = call.weight.path

        def take(found: bench.Readings) -> None:
            readings.setdefault(path, []).append(jax.tree.map(np.asarray, found))

        tell(take, bench.read(call))
        return undisturbed(call)

    def hear(path: str, effects: jax.Array) -> None:
        tell(lambda found: noise.setdefault(path, []).append(np.ravel(found)), effects)

    def keep(output: Any, y: jax.Array, found: jax.Array) -> None:
        def take(found: stored_proof.Readings) -> None:
            seen = jax.tree.map(np.asarray, found)
            results.setdefault(output.path, []).append(seen)

        tell(take, stored_proof.read(output, y, found))

    def watched(tree: Any, keys: Iterable[jax.Array], *example: Any) -> list[Step]:
        steps = []
        for key in keys:
            readings.clear()
            noise.clear()
            results.clear()
            leaves = jax.tree.leaves(program(tree, key, *example))
            with together(shared):
                outputs = np.concatenate([np.ravel(leaf) for leaf in gathered(leaves)])
                jax.effects_barrier()
            steps.append(Step(outputs, dict(readings), dict(noise), dict(results)))
        return steps

    with observed(observe), noise_observed(hear), results_observed(keep):
        yield watched
