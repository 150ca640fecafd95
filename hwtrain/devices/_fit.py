"""Fits of device curves to measurements."""

import dataclasses

import numpy as np

from hwtrain._errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceCurves:
    """Properties of devices, fitted at each target conductance.

    Attributes:
      g_target: `[targets]`, increasing, in µS.
      sigma: `[targets]`, programming noise, in µS.
      nu_mean: `[targets]`, mean drift exponent.
      nu_std: `[targets]`, standard deviation of the drift exponent over devices.
      read_level: `[targets]`, read noise relative to the conductance.
    """

    g_target: np.ndarray
    sigma: np.ndarray
    nu_mean: np.ndarray
    nu_std: np.ndarray
    read_level: np.ndarray


def fit_curves(
    g_target: np.ndarray,
    t_s: np.ndarray,
    g: np.ndarray,
    repeat: np.ndarray,
    *,
    t0_s: float,
) -> DeviceCurves:
    r"""Fits programming noise, drift and read noise to measured conductances.

    The reads of each device, identified by target and repeat, are fitted by least
    squares with

    .. math:: \ln g(t) = \ln g_\text{prog} - \nu \ln \frac{t + t_0}{t_0} + q \xi.

    At each target, the programming noise is the root mean square of
    :math:`g_\text{prog} - g`, and q that of the residuals. The contribution of read
    noise is subtracted from the variances of :math:`g_\text{prog}` and of :math:`\nu`
    over devices.

    >>> t_s = np.tile([0.0, 180.0, 1980.0], 2)
    >>> g = np.repeat([11.0, 9.0], 3) * ((t_s + 20) / 20) ** -0.05
    >>> curves = fit_curves(np.full(6, 10.0), t_s, g, np.repeat([0, 1], 3), t0_s=20.0)
    >>> print(curves.sigma.round(3), curves.nu_mean.round(3))
    [1.] [0.05]

    Args:
      g_target: `[reads]`, target conductance of the device that was read, in µS.
      t_s: `[reads]`, time since programming, in seconds.
      g: `[reads]`, measured conductance, in µS. A device that ever read zero or less is
        left out of the fit.
      repeat: `[reads]`, number of the device among those with this target.
      t0_s: time of the reference read after programming, in seconds.

    Raises:
      ValueError: if a device was read at fewer than three times, or a target has fewer
        than two devices to fit.
    """
    targets = np.unique(g_target)
    rows = []
    for target in targets:
        at = g_target == target
        devices = []
        for name in np.unique(repeat[at]):
            of = at & (repeat == name)
            devices.append(_fit_device(target, name, t_s[of], g[of], t0_s))
        fitted = [device for device in devices if device is not None]
        if len(fitted) < 2:
            raise InputError(
                f"each target needs two devices that always read above zero; target "
                f"{target:g} µS has {len(fitted)} of {len(devices)}. Measure more "
                "repeats, or leave the target out"
            )
        rows.append(_at_target(target, np.asarray(fitted)))
    sigma, nu_mean, nu_std, level = np.asarray(rows).T
    return DeviceCurves(
        g_target=targets,
        sigma=sigma,
        nu_mean=nu_mean,
        nu_std=nu_std,
        read_level=level,
    )


def _fit_device(
    target: float, name: int, t_s: np.ndarray, g: np.ndarray, t0_s: float
) -> tuple[float, ...] | None:
    """Returns g_prog, its variance, nu, its variance, and the residual variance."""
    times = len(np.unique(t_s))
    if times < 3:
        raise InputError(
            "each device must be read at three times or more, to tell drift from read "
            f"noise; repeat {name} of target {target:g} µS was read at {times}"
        )
    if (g <= 0).any():
        return None
    x, y = np.log((t_s + t0_s) / t0_s), np.log(g)
    centred = x - x.mean()
    square = np.sum(centred**2)
    slope = np.sum(centred * y) / square
    intercept = y.mean() - slope * x.mean()
    residual = np.sum((y - intercept - slope * x) ** 2) / (len(x) - 2)
    g_prog = np.exp(intercept)
    g_variance = g_prog**2 * residual * (1 / len(x) + x.mean() ** 2 / square)
    return g_prog, g_variance, -slope, residual / square, residual


def _at_target(target: float, devices: np.ndarray) -> tuple[float, ...]:
    g_prog, g_variance, nu, nu_variance, residual = devices.T
    sigma_square = np.mean((g_prog - target) ** 2) - g_variance.mean()
    nu_square = np.var(nu, ddof=1) - nu_variance.mean()
    return (
        float(np.sqrt(max(sigma_square, 0))),
        float(nu.mean()),
        float(np.sqrt(max(nu_square, 0))),
        float(np.sqrt(residual.mean())),
    )
