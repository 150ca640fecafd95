"""What NumPy draws for a weight modifier, to compare with what a model does.

The equations are written again: nothing here may use the functions that models use.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

_PCM = (0.26348, 1.965, -1.1731)
_PCM_G_MAX = 25.0

Sample = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]


def sample_of(modifier: Any) -> Sample:
    """Returns a function `(rng, w, a)` that modifies weights as configured, undropped.

    Args:
      modifier: a `WeightModifierParameter`.
    """
    kinds: dict[str, Callable[..., np.ndarray]] = {
        "add_normal": _add_normal,
        "mult_normal": _mult_normal,
        "discretize": _discretize,
        "discretize_add_normal": _discretize_add_normal,
        "dorefa": _dorefa,
        "poly": _poly,
        "prog_noise": _prog_noise,
        "pcm_noise": _pcm_noise,
    }
    change = kinds.get(modifier.type, lambda modifier, rng, w, a: w)

    def sample(rng: np.random.Generator, w: np.ndarray, a: np.ndarray) -> np.ndarray:
        if not modifier.rel_to_actual_wmax:
            a = np.full_like(a, modifier.assumed_wmax)
        return change(modifier, rng, w, np.where(a > 0, a, 1))

    return sample


def _add_normal(modifier, rng, w, a):
    return w + modifier.std_dev * a * rng.normal(size=w.shape)


def _mult_normal(modifier, rng, w, a):
    return w * (1 + modifier.std_dev * rng.normal(size=w.shape))


def _discretize(modifier, rng, w, a):
    return _rounded(modifier, rng, w, 2 * a * _step(modifier))


def _discretize_add_normal(modifier, rng, w, a):
    return _add_normal(modifier, rng, _discretize(modifier, rng, w, a), a)


def _dorefa(modifier, rng, w, a):
    squeezed = modifier.dorefa_clip * np.tanh(w) / np.tanh(a)
    return _rounded(modifier, rng, squeezed, _step(modifier))


def _poly(modifier, rng, w, a):
    coeffs = modifier.coeffs or [c / _PCM_G_MAX for c in _PCM]
    sigma = modifier.std_dev * _polynomial(coeffs, np.abs(w) / a)
    return w + a * sigma * rng.normal(size=w.shape)


def _prog_noise(modifier, rng, w, a):
    sigma = modifier.std_dev * _polynomial(modifier.coeffs or _PCM, np.abs(w) / a)
    noisy = w + a / modifier.g_max * sigma * rng.normal(size=w.shape)
    return np.where(w == 0, noisy, np.sign(w) * np.abs(noisy))


def _pcm_noise(modifier, rng, w, a):
    s, g_max = modifier.std_dev, modifier.g_max
    g = np.clip(w / a, -1, 1) * g_max
    g = np.where(np.abs(g) <= modifier.pcm_zero_thres * s * _PCM[0], 0, g)
    g = _stuck(modifier, rng, g)
    sigma = s * _polynomial(_PCM, np.abs(g) / g_max)
    written = np.abs(g) + sigma * rng.normal(size=w.shape)
    level = np.maximum(np.abs(written) / g_max, 1e-6)
    spread = np.clip(-0.0125 * np.log(level) - 0.0059, 0.008, 0.045)
    exponent = np.abs(spread * rng.normal(size=w.shape))
    t = modifier.pcm_t_inference + modifier.pcm_t0
    now = written * (t / modifier.pcm_t0) ** -exponent
    read = np.minimum(0.0088 / np.maximum(level**0.65, 1e-3), 0.2)
    read = s * read * np.sqrt(np.log((t + 250e-9) / 500e-9))
    now = now + np.abs(now) * read * rng.normal(size=w.shape)
    return np.sign(g) * np.abs(now) * a / g_max


def _stuck(modifier, rng, g):
    at_zero, at_most, anywhere = modifier.stuck
    u, level = rng.uniform(size=g.shape), rng.uniform(-1, 1, size=g.shape)
    most = modifier.g_max
    sign = np.where(g == 0, np.sign(level), np.sign(g))
    g = np.where(u < at_zero + at_most + anywhere, sign * np.abs(level) * most, g)
    g = np.where(u < at_zero + at_most, np.sign(level) * most, g)
    return np.where(u < at_zero, 0, g)


def _rounded(modifier, rng, w, step):
    if modifier.sto_round:
        return step * np.floor(w / step + rng.uniform(size=w.shape))
    return step * np.rint(w / step)


def _step(modifier) -> float:
    return 1 / modifier.res if modifier.res > 1 else modifier.res


def _polynomial(coeffs, x):
    return np.maximum(sum(c * x**k for k, c in enumerate(coeffs)), 0)
