"""Checks that a noise model programs, drifts and reads as strongly as configured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain.chips._device_shapes import programmed_by, read_by
from hwtrain.evaluate._distribution import MOST, as_drawn, drawn
from hwtrain.evaluate._updates import Finding

DAY_S = 86_400.0

_EFFECTS = "programming noise", "drift", "read noise"

_DEVICES = 4096

_ENOUGH = 256
"""Devices of which a correction can be told."""

Found = Mapping[str, tuple[str, str | None]]
"""By effect, the amount as text, and what is wrong or `None`."""

Known = dict[Any, Found]
"""What was found, by noise model."""


class DeviceProof:
    """Lets a noise model declare what is to be measured.

    Attributes:
      found: what is measured.
    """

    def __init__(self, model: Any, written: Sequence[np.ndarray], found: Found):
        """Takes devices that were programmed.

        Args:
          model: the noise model.
          written: targets and conductances of a chip's devices, in µS.
          found: what is known of the model already.
        """
        self._model, self._written = model, written
        self._corrected = False
        self.found = dict(found)

    def corrected(self) -> "DeviceProof":
        """Returns itself, for devices of a chip that `correct` has changed.

        Those that `program` returns are compared with NumPy's; the errors of those of
        the chip must differ from NumPy's.
        """
        self._corrected = True
        return self

    def behaves(self, sample: Callable[..., Any]) -> None:
        """Requires that devices are distributed as NumPy draws them.

        Args:
          sample: function `(rng, g, t_s)` of a NumPy generator, target conductances in
            µS and a time in seconds. It returns the conductance after programming, its
            change from just after programming until then, and the noise of a read then.
            It must not use the model's own functions, or it could not tell them from
            others.
        """
        if not self.found:
            self._compare(sample)
        target, written = self._written
        if target.size:
            some = np.random.default_rng(0).permutation(target.size)[:MOST]
            target, written = (
                np.asarray(target[some], np.float64),
                np.asarray(written[some], np.float64),
            )
            of = drawn(lambda rng, g: sample(rng, g, DAY_S)[0], target)
            if self._corrected:
                self.found["correction"] = _corrected(written - target, of - target)
            elif (np.abs(of - target) > 1e-6 * self._model.g_max).any():
                self._note(_EFFECTS[0], written, target, of)

    def _compare(self, sample: Callable[..., Any]) -> None:
        model = self._model
        g = np.linspace(0.05, 1, _DEVICES) * float(model.g_max)
        device, drift, noise = _devices(model, jnp.asarray(g, jnp.float32))
        draws = drawn(lambda rng, g: np.stack(sample(rng, g, DAY_S), 1), g)
        pairs = zip(_EFFECTS, (device, drift, noise), (g, 0 * g, 0 * g))
        for part, (effect, found, rest) in enumerate(pairs):
            of = draws[:, part]
            if (np.abs(of - rest) > 1e-6 * g).any():
                self._note(effect, found, rest, of)

    def _note(
        self, effect: str, found: np.ndarray, rest: np.ndarray, draws: np.ndarray
    ) -> None:
        before = self.found.get(effect)
        if before is None or before[1] is None:
            size = 3e-7 * np.maximum(np.abs(found), np.abs(rest))
            self.found[effect] = as_drawn(found, rest, draws, size)


def _corrected(found: np.ndarray, before: np.ndarray) -> tuple[str, str | None]:
    """Returns how the errors of corrected devices differ from those before.

    Args:
      found: the errors, in µS.
      before: NumPy's errors before a correction, `[draws, devices]`.
    """
    was = float(np.mean(before**2))
    if found.size < _ENOUGH or not was:
        return "nothing to compare", None
    ratio = float(np.mean(found**2)) / was
    # The standard error of a mean of squares, those of normal numbers or wider.
    spread = max(float(np.mean(before**4)) / was**2 - 1, 2.0)
    amount = f"errors {ratio**0.5:.2f} x those before"
    if abs(ratio - 1) > 4 * (spread / found.size) ** 0.5:
        return amount, None
    return amount, (
        "the devices are as before any correction; correct more often, with more "
        "examples or at a higher rate"
    )


def _devices(model: Any, g: jax.Array) -> tuple[np.ndarray, ...]:
    """Returns conductances after programming, their drift, and the noise of a read."""

    @jax.jit
    def read(g: jax.Array) -> tuple[jax.Array, ...]:
        device = programmed_by(model, jax.random.key(0), g)
        first, later = (read_by(model, device, t_s, None) for t_s in (0.0, DAY_S))
        noisy = read_by(model, device, DAY_S, jax.random.key(1))
        return device.g_prog, later - first, noisy - later

    return tuple(np.asarray(each, np.float64) for each in read(g))


def behaved(path: str, model: Any, tiles: Any, known: Known) -> list[Finding]:
    """Returns whether the devices of a chip are as their noise model is configured.

    Args:
      path: path of the weight.
      model: its noise model.
      tiles: the crossbars of a chip, from `HardwareCheckpoint.conductances`.
      known: what was found of each model before; this adds to it.
    """
    devices = [d for row in tiles for tile in row for d in tile.programmed.values()]
    targets, written = [np.zeros(0)], [np.zeros(0)]
    for device in devices:
        stuck = device.stuck
        some = np.ones(np.shape(device.g_prog), bool)
        some = some if stuck is None else np.asarray(stuck) == 0
        targets.append(np.asarray(device.g_target)[some])
        written.append(np.asarray(device.g_prog)[some])
    all_of_it = np.concatenate(targets), np.concatenate(written)
    proof = DeviceProof(model, all_of_it, known.get(model, {}))
    model.proof(proof)
    known.setdefault(model, proof.found)
    return [
        (path, effect, wrong, amount) for effect, (amount, wrong) in proof.found.items()
    ]
