"""The coefficients of any noise model, fitted to measurements, with their intervals."""

import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._parts.constant import Constant, replaced
from hwtrain.devices._agreement import Agreement, agreements
from hwtrain.devices.bases import NoiseModel
from hwtrain.devices.measurements import Measurements

_NODES = 1024
_STEPS = 100
_CONVERGED = 1e-3
"""What a step may still promise in log-likelihood: less is under 5 % of an error."""

_STUCK = 0.05
"""The same where float32 lets no step improve the likelihood."""

_UNDETERMINED = 1e-7
"""Eigenvalue of the scaled information below which a direction is not measured."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NoiseModelFit:
    """A noise model that was fitted to measurements; `fit_noise_model` returns it.

    Attributes:
      model: the model with the fitted coefficients.
      intervals: by field, `[..., 2]`: bounds of each of its coefficients. Infinite for
        one about which the measurements say nothing.
      confidence: the probability that an interval covers the true value.
      devices: number of devices.
      agreement: how the model agrees with the means and the spreads of the devices, in
        which a wrong family shows. Empty if no target has eight devices or more that
        were read at the same times.
    """

    model: Any
    intervals: Mapping[str, np.ndarray]
    confidence: float
    devices: int
    agreement: tuple[Agreement, ...] = ()

    def rows(self) -> list[tuple[str, float, float, float]]:
        """Returns the name, value and bounds of each coefficient."""
        found = []
        for name, bounds in self.intervals.items():
            value = np.asarray(getattr(self.model, name), np.float64)
            for place in itertools.product(*map(range, value.shape)):
                label = name + "".join(f"[{n}]" for n in place)
                found.append((label, float(value[place]), *map(float, bounds[place])))
        return found

    def tables(self) -> Iterator[Table | str]:
        """Yields the coefficients with their units and intervals, and the agreement."""
        title = f"{self.model.type}, {self.devices} devices"
        table = Table("coefficient", title=title, title_justify="left")
        for column in ("value", f"{self.confidence:.0%} from", "to"):
            table.add_column(column, justify="right")
        table.add_column("unit")
        for name, *numbers in self.rows():
            shown = (
                f"{x:.5g}" if math.isfinite(x) else "not measured" for x in numbers
            )
            unit = self.model.units.get(name.partition("[")[0], "")
            table.add_row(escape(name), *shown, unit)
        yield table
        for found in self.agreement:
            yield str(found)
        if not self.agreement:
            yield "no target has eight devices or more that were read at the same times"

    def __repr__(self) -> str:
        """Returns one line."""
        return f"NoiseModelFit({self.model.type}, {self.devices} devices)"

    def __str__(self) -> str:
        """Returns the table as text."""
        console = Console(file=io.StringIO(), width=120, color_system=None)
        for part in self.tables():
            console.print(part, highlight=False, markup=False, soft_wrap=True)
        return console.file.getvalue()  # type: ignore[attr-defined]


def fit_noise_model(
    model: NoiseModel,
    measurements: Measurements,
    *,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> NoiseModelFit:
    r"""Fits coefficients of a noise model of any family to measurements.

    The reads of a device at its times are taken as normal, with the mean m and the
    covariance S over devices that the model has,

    .. math::
        \hat\theta = \arg\max_\theta \sum_d -\tfrac12 \ln |S| - \tfrac12
        (g_d - m)^T S^{-1} (g_d - m), \qquad
        \operatorname{cov} \hat\theta = F^{-1} \Big(\sum_d s_d s_d^T\Big) F^{-1},

    F the information and :math:`s_d` the gradient of a device's term. m and S are
    moments over 1024 evenly spread devices; of a model without read noise, whose reads
    of one device all say the same, S is diagonal. Means and variances are the model's
    even where its devices are not normal, so the estimate is consistent, and these
    intervals, unlike those of the information alone, hold for any distribution. A
    bootstrap over devices would agree, at the price of hundreds of fits.

    A fit of the wrong family has intervals too: `agreement` says how far the best model
    is from the measurements. Coefficients in µS are those at the model's own `g_max`.

    >>> import hwtrain as hw
    >>> rng = np.random.default_rng(0)
    >>> target = np.repeat([60.0, 120.0, 180.0], 200)
    >>> g = target + (4 - 0.01 * target) * rng.normal(size=600)
    >>> measured = hw.devices.Measurements(
    ...     g_target_us=target, t_s=np.zeros(600), g_us=g, repeat=np.arange(600))
    >>> fit = fit_noise_model(hw.ReRamMiloNoiseModel(), measured)
    >>> for name, value, low, high in fit.rows():
    ...     print(f"{name} {value:.3f} ({low:.3f} to {high:.3f})")
    prog_coeff[0] 3.893 (3.454 to 4.333)
    prog_coeff[1] -0.009 (-0.012 to -0.006)
    >>> [found.probability > 0.05 for found in fit.agreement]
    [True, True]

    Args:
      model: a model of the family, from whose values the fit starts. Its other fields,
        such as `g_max` and `t_0`, stay.
      measurements: measurements from `read_measurements`.
      names: the fields to fit; `None`: those in `to_fit` of the family.
      confidence: of the intervals.

    Raises:
      ValueError: for a field that is no number, fewer than ten devices, and a fit that
        does not converge.
    """
    names = tuple(type(model).to_fit if names is None else names)
    _check(model, names, confidence)
    model = model.with_fixed_units()
    groups = _groups(measurements)
    devices = sum(len(reads) for _, _, reads in groups)
    if devices < 10:
        raise InputError(
            f"intervals need ten devices or more, got {devices}; a device is a pair of "
            "a target and a repeat"
        )
    start = np.concatenate([np.ravel(getattr(model, name)) for name in names])
    theta, spread, known = _maximum(model, names, start.astype(np.float64), groups)
    fitted = _with_numbers(model, names, theta)
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    bounds = np.stack([theta - reach, theta + reach], -1)
    bounds[~known] = -np.inf, np.inf
    intervals, at = {}, 0
    for name in names:
        shape = np.shape(getattr(model, name))
        size = int(np.prod(shape))
        intervals[name] = bounds[at : at + size].reshape(*shape, 2)
        at += size
    return NoiseModelFit(
        model=fitted,
        intervals=intervals,
        confidence=confidence,
        devices=devices,
        agreement=agreements(_moments_of(model, names, groups, theta), groups),
    )


def _check(model: NoiseModel, names: tuple[str, ...], confidence: float) -> None:
    kind = type(model).__name__
    if not 0 < confidence < 1:
        raise InputError(f"confidence should be between 0 and 1, got {confidence}")
    if not names:
        raise InputError(
            f"{kind} does not say what to fit: give names=(...), or the class a to_fit"
        )
    inside: Any = model
    while inside is not None:
        own = (_place(type(inside), name) for name in ("program", "programmed_from"))
        if next(own) < next(own):
            what = f"{type(inside).__name__} overrides program, but not programmed_from"
            if type(inside).__module__.startswith("hwtrain."):
                raise InputError(
                    f"{what}: its devices are not functions of normal numbers, so it "
                    "has no fit. Fit the noise model inside, and give it the result"
                )
            raise InputError(
                f"{what}, which a fit needs: define it, and let program call it"
            )
        inside = getattr(inside, "noise_model", None)
    for name in names:
        value = getattr(model, name, None)
        if not isinstance(value, float | tuple):
            raise InputError(f"{kind} has no number {name!r} to fit")


def _place(kind: type, method: str) -> int:
    """Returns how far up the classes a method is defined."""
    return next(n for n, at in enumerate(kind.__mro__) if method in vars(at))


Group = tuple[float, np.ndarray, np.ndarray]
"""A target, the times of the reads, and `[devices, times]`, the reads of devices."""


def _groups(measurements: Measurements) -> list[Group]:
    """Returns the devices that were read at the same times, by target."""
    devices: dict[tuple[float, int], list[tuple[float, float]]] = {}
    columns = (getattr(measurements, name) for name in ("g_target_us", "repeat"))
    for target, repeat, t_s, g in zip(*columns, measurements.t_s, measurements.g_us):
        devices.setdefault((float(target), int(repeat)), []).append((t_s, g))
    found: dict[tuple[float, tuple[float, ...]], list[np.ndarray]] = {}
    for (target, _), reads in devices.items():
        times, g = np.array(sorted(reads), np.float64).T
        found.setdefault((target, tuple(times)), []).append(g)
    return [(g, np.array(t), np.array(reads)) for (g, t), reads in found.items()]


def _maximum(
    model: NoiseModel, names: tuple[str, ...], theta: np.ndarray, groups: list[Group]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the estimate, its standard errors, and which numbers are measured."""
    moments = functools.partial(_moments_of, model, names, groups)
    found = _Likelihood(moments(theta), groups)
    for _ in range(_STEPS):
        step, gain = found.step()
        if gain < _CONVERGED:
            return theta, *found.errors()
        for half in range(12):
            new = theta + step / 2**half
            if not _allowed(model, names, new):
                continue
            next_found = _tried(moments(new), groups)
            if next_found is not None and next_found.value > found.value:
                break
        else:
            if gain < _STUCK:
                return theta, *found.errors()
            break
        theta, found = new, next_found
    raise InputError(
        f"the fit of {', '.join(names)} did not converge: the measurements hardly "
        "determine them together, or the best value is at a bound of a field. Start "
        f"from a closer {type(model).__name__}, or give fewer names"
    )


class _Likelihood:
    """The normal likelihood of measurements, its gradients and its information."""

    def __init__(self, moments: list[Any], groups: list[Group]) -> None:
        scores, information, value = [], 0.0, 0.0
        for (mean, cov, d_mean, d_cov), (_, _, reads) in zip(moments, groups):
            inverse, off = _inverse(cov), reads - mean
            white = off @ inverse
            value -= len(off) * np.linalg.slogdet(cov)[1] / 2
            value -= np.sum(white * off) / 2
            change = np.einsum("ij,jkp->pik", inverse, d_cov)
            of_spread = np.einsum("dj,jkp,dk->dp", white, d_cov, white)
            scores.append(white @ d_mean + (of_spread - np.trace(change.T)) / 2)
            each = d_mean.T @ inverse @ d_mean
            each += np.einsum("pij,qji->pq", change, change) / 2
            information = information + len(off) * each
        self.value = value
        self.scores = np.concatenate(scores)
        size = np.sqrt(np.maximum(np.diag(np.asarray(information)), 1e-300))
        values, vectors = np.linalg.eigh(information / np.outer(size, size))
        kept = values > _UNDETERMINED * values[-1]
        inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
        self.inverse = inverse / np.outer(size, size)
        self.known = np.abs(vectors[:, ~kept]).max(axis=1, initial=0) < 1e-3

    def step(self) -> tuple[np.ndarray, float]:
        """Returns the step of Fisher's scoring, and the gain that it promises."""
        slope = self.scores.sum(0)
        step = np.where(self.known, self.inverse @ slope, 0)
        return step, float(slope @ step) / 2

    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the standard errors, and which numbers are measured."""
        count = len(self.scores)
        inside = self.scores.T @ self.scores * count / (count - 1)
        return np.sqrt(np.diag(self.inverse @ inside @ self.inverse)), self.known


def _inverse(cov: np.ndarray) -> np.ndarray:
    try:
        # The factors exist only of a matrix that is positive, and not nan.
        root = np.linalg.inv(np.linalg.cholesky(cov))
    except np.linalg.LinAlgError:
        raise InputError(
            "the model that the fit starts from gives some reads no spread, so that "
            "no measurement differs from it: give it programming or read noise"
        ) from None
    return root.T @ root


def _tried(moments: list[Any], groups: list[Group]) -> _Likelihood | None:
    try:
        return _Likelihood(moments, groups)
    except ValueError:
        return None


def _moments_of(
    model: NoiseModel, names: tuple[str, ...], groups: list[Group], theta: np.ndarray
) -> list[Any]:
    """Returns mean, covariance and their derivatives, of each group of devices."""
    compute = _compiled(model, names)
    found = []
    for target, times, _ in groups:
        values = compute(*(np.float32(x) for x in (theta, target, times)))
        found.append([np.asarray(x, np.float64) for x in values])
    return found


@functools.lru_cache(maxsize=8)
def _compiled(model: NoiseModel, names: tuple[str, ...]) -> Callable[..., Any]:
    xi = _spread_numbers(model.normals)

    def moments(theta: jax.Array, target: jax.Array, times: jax.Array) -> Any:
        traced = _with_traced(model, names, theta)
        devices = traced.programmed_from(list(xi), jnp.full(_NODES, target))
        each = functools.partial(jax.vmap, in_axes=(None, 0))
        g = each(traced.mean_at)(devices, times)

        def noise(devices: Any, t_s: jax.Array) -> jax.Array:
            return jnp.broadcast_to(traced.read_sigma(devices, t_s), (_NODES,))

        read = jnp.mean(each(noise)(devices, times) ** 2, axis=1)
        mean = g.mean(axis=1)
        off = g - mean[:, None]
        cov = off @ off.T / _NODES
        alone = jnp.where(jnp.any(read > 0), 1.0, jnp.eye(len(times)))
        return mean, cov * alone + jnp.diag(read)

    def both(theta: jax.Array, target: jax.Array, times: jax.Array) -> Any:
        of = functools.partial(moments, target=target, times=times)
        return *of(theta), *jax.jacfwd(of)(theta)

    return jax.jit(both)


def _spread_numbers(count: int) -> np.ndarray:
    """Returns evenly spread standard normal numbers, `[count, 1024]`, uncorrelated."""
    root = 2.0
    for _ in range(64):  # of x^(count + 1) = x + 1
        root = (1 + root) ** (1 / (count + 1))
    steps = (1 / root) ** np.arange(1, count + 1)
    places = (0.5 + np.outer(steps, np.arange(_NODES))) % 1
    xi = np.vectorize(NormalDist().inv_cdf)(np.clip(places, 1e-6, 1 - 1e-6))
    xi = xi - xi.mean(axis=1, keepdims=True)
    white = np.linalg.inv(np.linalg.cholesky(xi @ xi.T / _NODES))
    return (white @ xi).astype(np.float32)


def _shaped(like: Any, numbers: Any, make: Callable[[Any, Any], Any]) -> Any:
    """Returns numbers, in order, in the nested tuples of a field."""
    if isinstance(like, tuple):
        return tuple(_shaped(x, numbers, make) for x in like)
    return make(like, next(numbers))


def _with_traced(model: Any, names: tuple[str, ...], theta: jax.Array) -> Any:
    numbers = iter(theta)
    changes = {}
    for name in names:
        make = lambda old, new, name=name: Constant(name, old, value=new)  # noqa: E731
        changes[name] = _shaped(getattr(model, name), numbers, make)
    return replaced(model, **changes)


def _with_numbers(model: Any, names: tuple[str, ...], theta: np.ndarray) -> Any:
    numbers = iter(theta.tolist())
    values = {n: _shaped(getattr(model, n), numbers, lambda _, x: x) for n in names}
    return dataclasses.replace(model, **values)


def _allowed(model: Any, names: tuple[str, ...], theta: np.ndarray) -> bool:
    try:
        _with_numbers(model, names, theta)
    except ValueError:
        return False
    return True
