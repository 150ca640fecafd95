"""Checks that convolutions act the same when their windows are not observed."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from hwtrain._arrays.processes import together
from hwtrain._arrays.shared import gathered
from hwtrain._flax.functional import are_shared, as_function, compiled
from hwtrain._flax.observation import observed
from hwtrain._flax.signal_side import has_signal_side
from hwtrain._flax.weight_side import draws
from hwtrain._plan.plan import Plan
from hwtrain.evaluate._rerun import undisturbed
from hwtrain.evaluate._updates import Finding
from hwtrain.evaluate._watching import Step


def unwatched_effects(
    analog: Any,
    plan: Plan,
    steps: Sequence[Step],
    variables: Any,
    *example: Any,
    **kwargs: Any,
) -> Iterator[Finding]:
    """Yields whether convolutions act as measured at their windows.

    Where possible, layers use XLA's own convolution instead of windows, and an observer
    of windows does not see it. Both are compared for the same input: the outputs
    without noise, and the strength of the noise.

    Args:
      analog: the analog model.
      plan: its plan.
      steps: observed steps in train mode, with keys of seeds from 0 on.
      variables: Linen: its variables. NNX: its `params`, or `None` for its own.
      *example: arguments of a call.
      **kwargs: keyword arguments of the call.
    """
    if not any(w.window is not None and has_signal_side(w) for w in plan.weights):
        return

    shared = are_shared(analog, variables=variables, example=example, kwargs=kwargs)

    def runs(mode: str, keys: int) -> np.ndarray:
        """Returns outputs, `[keys, elements]`."""
        with together(shared):
            function, tree = as_function(analog, mode, variables)
        call, found = compiled(function, kwargs, shared), []
        for seed in range(keys):
            outputs = call(tree, jax.random.key(seed), *example)
            with together(shared):
                found.append(_flat(outputs))
        return np.stack(found)

    found = runs("eval", 1)
    with observed(undisturbed):
        expected = runs("eval", 1)
    error = _rms(found - expected) / max(_rms(expected), 1e-30)
    # Rounding may lead to the next level of a converter or of bfloat16.
    wrong = None if error < 0.05 else f"the outputs are off by {error:.0%}"
    yield "the model", "convolutions", wrong, f"as their windows within {error:.1e}"
    if not draws(plan, "train"):
        return
    watched = np.stack([_flat(step.outputs) for step in steps])
    outputs = runs("train", len(watched)), watched
    noise, expected = (_rms(y - y.mean(axis=0)) for y in outputs)
    strength = noise / max(expected, 1e-30)
    amount = f"{strength:.2f} x that of their windows"
    wrong = None if 0.5 < strength < 2 else f"their noise is {amount}"
    yield "the model", "noise of convolutions", wrong, amount


def _flat(outputs: Any) -> np.ndarray:
    arrays = gathered(jax.tree.leaves(outputs))
    return np.concatenate([array.astype(np.float32).ravel() for array in arrays])


def _rms(y: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(y))))
