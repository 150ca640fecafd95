"""What NumPy draws for noise models, to compare with what a chip does.

The equations are written again: nothing here may use the functions that chips use.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Draws = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The programmed conductance, its drift until a time, and the noise of a read then."""

Sample = Callable[[np.random.Generator, np.ndarray, float], Draws]
"""Draws devices from a generator, their target conductances in µS, and a time in s."""

Curve = Callable[[np.ndarray], Any]


def power_law(
    model: Any,
    sigma: Curve,
    mean: Curve,
    std: Curve,
    read: Callable[[np.ndarray, np.ndarray, float], Any],
    *,
    signed: bool = False,
) -> Sample:
    """Returns a sample of devices that drift with a power law.

    Args:
      model: the noise model, for its `t_0`.
      sigma: programming noise in µS at a target conductance in µS.
      mean: mean exponent at a target conductance.
      std: standard deviation of the exponent at a target conductance.
      read: function of target conductance, conductance and time; noise of a read in µS.
      signed: whether exponents may be negative.
    """

    def sample(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Draws:
        written = np.maximum(g + sigma(g) * rng.normal(size=g.shape), 0)
        nu = mean(g) + std(g) * rng.normal(size=g.shape)
        nu = nu if signed else np.abs(nu)
        now = written * ((t_s + model.t_0) / model.t_0) ** -nu
        noise = read(g, now, t_s) * rng.normal(size=g.shape)
        return written, now - written, np.maximum(now + noise, 0) - now

    return sample


def growth(t_s: float, t_read: float) -> float:
    """Returns the growth of 1/f noise from a first read to a later one."""
    return float(np.sqrt(np.log(max((t_s + t_read) / (2 * t_read), 1))))


def as_pcm(model: Any, mean: Curve | None = None, std: Curve | None = None) -> Sample:
    """Returns a sample of phase-change devices.

    Args:
      model: the noise model.
      mean: mean drift exponent at a target conductance; `None` for the fit.
      std: its standard deviation; `None` for the fit.
    """
    fitted = model.prog_coeff == (0.26348, 1.9650, -1.1731)
    reference = model.prog_coeff_g_max_reference or (25.0 if fitted else model.g_max)

    def fit(slope: float, offset: float, low: float, high: float) -> Curve:
        return lambda g: np.clip(slope * np.log(_level(model, g)) + offset, low, high)

    def read(g: np.ndarray, now: np.ndarray, t_s: float) -> np.ndarray:
        q, power, most = model.read_coeff
        level = np.minimum(q / _level(model, g) ** power, most)
        return (
            model.read_noise_scale * level * now * growth(t_s + model.t_0, model.t_read)
        )

    return power_law(
        model,
        _polynomial(model, reference),
        _scaled(model.drift_scale, mean or fit(*model.drift_mean_coeff)),
        _scaled(model.drift_scale, std or fit(*model.drift_std_coeff)),
        read,
    )


def as_hermes(model: Any) -> Sample:
    """Returns a sample of the devices of the Hermes chip."""
    one = model.num_devices == 1
    fitted = (
        (0.15781817, 2.32443916, -2.16310839, 0.68841818)
        if one
        else (0.16603222, 4.71806468, -8.48101252, 4.68961419)
    )
    reference = model.prog_coeff_g_max_reference
    if reference is None:
        reference = model.g_max
        if model.prog_coeff == fitted:
            reference = 10.35 if one else 20.7

    def curve(below: float, low: tuple[float, ...], high: tuple[float, ...]) -> Curve:
        slope, offset, least, most = low

        def value(g: np.ndarray) -> np.ndarray:
            a = _level(model, g)
            small = np.clip(slope * np.log(a) + offset, least, most)
            return np.where(a < below, small, _sum(a, high))

        return value

    mean = curve(model.drift_mean_start, model.drift_mean_log, model.drift_mean_coeff)
    std = curve(model.drift_std_start, model.drift_std_log, model.drift_std_coeff)
    level = curve(model.read_start, model.read_log, model.read_coeff)

    def read(g: np.ndarray, now: np.ndarray, t_s: float) -> np.ndarray:
        grown = growth(t_s + model.t_0, model.t_read)
        return model.read_noise_scale * level(g) * now * grown

    sigma = _polynomial(model, reference)
    scale = model.drift_scale
    return power_law(model, sigma, _scaled(scale, mean), _scaled(scale, std), read)


def as_state_independent(model: Any) -> Sample:
    """Returns a sample of devices whose noise does not depend on the conductance."""

    def read(g: np.ndarray, now: np.ndarray, t_s: float) -> np.ndarray:
        grown = growth(t_s + model.t_0, model.t_read)
        return model.read_noise_scale * now / model.g_max * grown

    return power_law(
        model,
        _polynomial(model, model.g_max),
        lambda g: model.drift_scale * model.drift_nu_mean,
        lambda g: model.drift_scale * model.drift_nu_std,
        read,
    )


def as_measured(model: Any) -> Sample:
    """Returns a sample of devices with measured curves."""

    def curve(scale: float, values: tuple[float, ...]) -> Curve:
        return lambda g: scale * np.interp(g, model.g_lst, values)

    level = curve(model.read_noise_scale, model.read_level_lst)
    return power_law(
        model,
        curve(model.prog_noise_scale, model.sigma_lst),
        curve(model.drift_scale, model.nu_mean_lst),
        curve(model.drift_scale, model.nu_std_lst),
        lambda g, now, t_s: level(g) * now,
        signed=True,
    )


def as_cmo(model: Any) -> Sample:
    """Returns a sample of CMO/HfOx ReRAM."""
    mean, (start, spread) = model.drift_mean_coeff, model.drift_std_coeff

    def sample(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Draws:
        sigma = model.prog_noise_scale * np.maximum(_sum(g, model.prog_coeff), 0)
        written = np.maximum(g + sigma * rng.normal(size=g.shape), 0)
        xi = rng.normal(size=g.shape)

        def relaxed(log_t: float) -> np.ndarray:
            moved = mean * log_t + (spread * log_t + start) * xi
            return written + model.drift_scale * moved

        now = relaxed(np.log(max(t_s, 1)))
        level = np.maximum(np.log10(np.maximum(now, 1e-6)), 0)
        grown = growth(max(t_s, 1), model.t_read)
        read = model.read_coeff * model.read_noise_scale * grown
        noisy = now + read * level * rng.normal(size=g.shape)
        ends = model.g_min, model.g_max
        drift = np.clip(now, *ends) - np.clip(relaxed(0.0), *ends)
        return written, drift, np.clip(noisy, *ends) - np.clip(now, *ends)

    return sample


def as_wan2022(model: Any) -> Sample:
    """Returns a sample of the ReRAM of the NeuRRAM chip."""
    factor = model.noise_scale * model.g_max / model.coeff_g_max_reference

    def sample(rng: np.random.Generator, g: np.ndarray, t_s: float) -> Draws:
        knots = [np.maximum(_sum(g / model.g_max, c), 0) for c in model.spread_coeff]
        log_t, known = np.log(max(t_s, model.times_s[0])), np.log(model.times_s)
        each = np.stack(knots, -1).reshape(-1, len(knots))
        sigma = np.array([np.interp(log_t, known, y) for y in each]).reshape(g.shape)
        xi = rng.normal(size=g.shape)
        written = np.maximum(g + factor * knots[0] * xi, 0)
        drift = np.maximum(g + factor * sigma * xi, 0) - written
        return written, drift, np.zeros_like(g)

    return sample


def _level(model: Any, g: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(g) / model.g_max, 1e-7)


def _polynomial(model: Any, reference: float) -> Curve:
    factor = model.prog_noise_scale * model.g_max / reference
    return lambda g: factor * np.maximum(_sum(g / model.g_max, model.prog_coeff), 0)


def _scaled(scale: float, curve: Curve) -> Curve:
    return lambda g: scale * curve(g)


def _sum(x: np.ndarray, coeffs: tuple[float, ...]) -> np.ndarray:
    return np.asarray(sum(c * x**k for k, c in enumerate(coeffs)))
