"""Drift of weights during training, as a step function of an explicit state."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hwtrain._arrays.random import normal
from hwtrain._errors import InputError
from hwtrain._parts.fields import (
    Deviation,
    Exponent,
    NonNegative,
    Number,
    Positive,
    configuration,
)
from hwtrain._parts.part import Described

_RATIO_FLOOR = 1e-7


class DriftState(NamedTuple):
    """State of drifting weights. All fields but `now` have the weights' shape.

    Attributes:
      start: the weight when it was last set.
      previous: the weight that the last step returned.
      set_at: time at which the weight was last set, in units of t_0.
      nu: the weight's drift exponent.
      now: `[]`, the current time, in units of t_0.
    """

    start: jax.Array
    previous: jax.Array
    set_at: jax.Array
    nu: jax.Array
    now: jax.Array


def begin(w: jax.Array, nu: ArrayLike) -> DriftState:
    """Returns the state of weights that have just been set.

    >>> begin(jnp.ones(3), 0.1).now
    Array(0., dtype=float32)

    Args:
      w: weights, of any shape.
      nu: drift exponent, a single one or one per weight.
    """
    # Copies, because a buffer can be donated only once and the weights may be, too.
    return DriftState(
        start=jnp.array(w),
        previous=jnp.array(w),
        set_at=jnp.zeros(w.shape, jnp.float32),
        nu=jnp.broadcast_to(jnp.asarray(nu, jnp.float32), w.shape),
        now=jnp.zeros((), jnp.float32),
    )


def drifted(
    state: DriftState,
    w: jax.Array,
    dt_s: ArrayLike,
    *,
    t0_s: float,
    reset_tol: ArrayLike,
    nu: ArrayLike | None = None,
    offset: ArrayLike = 0.0,
) -> tuple[jax.Array, DriftState]:
    r"""Lets weights drift for a time step.

    .. math:: w(t) = (w_0 + b) \max\Big(\frac{t - t_\text{set}}{t_0}, 1\Big)^{-\nu} - b

    A weight that was changed since the last step starts anew at the end of this step.
    Nothing drifts before :math:`t_0`.

    >>> w = jnp.array([1.0])
    >>> w, state = drifted(begin(w, 0.1), w, 1000.0, t0_s=1.0, reset_tol=1e-7)
    >>> print(f"{w[0]:.3f}")
    0.501

    Args:
      state: the state, from `begin` or from the last step.
      w: the current weights, of any shape.
      dt_s: time since the last step, in seconds. May be traced.
      t0_s: t_0, in seconds.
      reset_tol: a weight counts as changed if it differs by more than this from the
        value that the last step returned. Smaller changes are lost, because the device
        is not written.
      nu: exponents for this step; `None` uses the state's.
      offset: b, the negated weight of zero conductance.

    Returns:
      `(w, state)`: the weights after drift, and the state.

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """
    now = state.now + jnp.asarray(dt_s, jnp.float32) / t0_s
    changed = jnp.abs(state.previous - w) > reset_tol
    set_at = jnp.where(changed, now, state.set_at)
    start = jnp.where(changed, w, state.start)
    exponent = state.nu if nu is None else nu
    decay = jnp.maximum(now - set_at, 1) ** -jnp.asarray(exponent)
    drifted = jnp.where(changed, w, start * decay + offset * (decay - 1))
    drifted = drifted.astype(w.dtype)
    return drifted, DriftState(start, drifted, set_at, state.nu, now)


def state_dependent(
    nu: ArrayLike, g: jax.Array, *, nu_k: float, log_g0: float
) -> jax.Array:
    r"""Returns exponents that decrease with the conductance.

    .. math:: \nu' = \nu - k \ln \max(|g| / g_0,\ 10^{-7})

    >>> print(f"{state_dependent(0.1, jnp.array(25.0), nu_k=0.01, log_g0=0.0):.3f}")
    0.068

    Args:
      nu: exponent at g_0.
      g: conductance; only its magnitude matters.
      nu_k: k. Zero turns this off.
      log_g0: natural logarithm of g_0, in the unit of `g`.
    """
    ratio = jnp.maximum(jnp.abs(g) * jnp.exp(-log_g0), _RATIO_FLOOR)
    return jnp.asarray(nu) - nu_k * jnp.log(ratio)


_EXPONENT, _NOISE = range(2)


def _described(drift: Any) -> str:
    times = f"from {drift.t_0:g} s, {drift.dt_s:g} s per step"
    return f"{drift.type}, nu {drift.nu:g} {times}" if drift.acts else ""


@configuration
class SimpleDriftParameter(Described):
    r"""Power-law drift of the weights during training.

    .. math:: w(t) = w_0 \max\Big(\frac{t - t_\text{set}}{t_0}, 1\Big)^{-\nu}

    with :math:`t_\text{set}` the time when the weight was last changed.

    An update of a weight by at most `reset_tol` does not write the device: the update
    is lost, and the weight goes on drifting from where it was.

    >>> import jax.numpy as jnp
    >>> drift, w = SimpleDriftParameter(nu=0.1), jnp.array([1.0])
    >>> w, state = drift.step(drift.begin(w), w, 1000.0)
    >>> print(f"{w[0]:.3f}")
    0.501

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """

    type: Literal["simple"] = "simple"
    """Identifies this kind of drift in a configuration."""
    nu: Exponent = 0.0
    """Drift exponent. Zero turns drift off."""
    t_0: Positive = 1.0
    """Time after which a weight starts to drift, in seconds."""
    reset_tol: NonNegative = 1e-7
    """A weight that changes by more than this starts to drift anew. In units of the
    crossbar."""
    dt_s: Positive = 1.0
    """Time between two training steps, in seconds."""

    @property
    def acts(self) -> bool:
        """Whether weights drift at all."""
        return self.nu > 0

    @property
    def draws(self) -> bool:
        """Whether anything is drawn: always false."""
        return False

    def describe(self) -> str:
        """Returns its type, exponent and times."""
        return _described(self)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the weights that NumPy computes."""
        ctx.becomes(lambda rng, w: w * max(ctx.elapsed, 1) ** -self.nu)

    def begin(self, w: jax.Array, key: jax.Array | None = None) -> DriftState:
        """Returns the state of weights that have just been set.

        Args:
          w: weights, of any shape.
          key: ignored.
        """
        del key
        return begin(w, self.nu)

    def step(
        self,
        state: DriftState,
        w: jax.Array,
        dt_s: ArrayLike,
        key: jax.Array | None = None,
        *,
        scale: ArrayLike = 1.0,
    ) -> tuple[jax.Array, DriftState]:
        """Returns the weights after a time step of drift, and the new state.

        Args:
          state: the state, from `begin` or from the last step.
          w: the current weights.
          dt_s: time since the last step, in seconds. May be traced.
          key: ignored.
          scale: the unit of `reset_tol`: the mapping scale, if `w` is a kernel.
        """
        del key
        return drifted(state, w, dt_s, t0_s=self.t_0, reset_tol=self.reset_tol * scale)


@configuration
class DriftParameter(Described):
    r"""Drift of the weights during training, with variation between devices and steps.

    .. math::
        w &= \rho\, (g - g_\text{off}) + w_\text{off} \\
        g(t) &= g_0 \max\Big(\frac{t - t_\text{set}}{t_0}, 1\Big)^{-\nu} \\
        \nu &= \nu_i (1 + \sigma_\nu \xi) - k \ln (|g| / G_0), \qquad
        \nu_i = \nu_0 (1 + \sigma_\text{dtod}\, \xi_i)

    with noise after each step, :math:`w' = w + \sigma_w \xi`, that does not accumulate.

    An update of at most `reset_tol` is lost.

    >>> import jax.numpy as jnp
    >>> drift, w = DriftParameter(nu=0.1, nu_dtod=0.3), jnp.ones(10_000)
    >>> state = drift.begin(w, jax.random.key(0))
    >>> print(f"{state.nu.std():.2f}")
    0.03

    References:
      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """

    type: Literal["device"] = "device"
    """Identifies this kind of drift in a configuration."""
    nu: Exponent = 0.0
    """Drift exponent, nu_0."""
    t_0: Positive = 1.0
    """Time after which a weight starts to drift, in seconds."""
    reset_tol: NonNegative = 1e-7
    """A weight that changes by more than this starts to drift anew. In units of the
    crossbar."""
    dt_s: Positive = 1.0
    """Time between two training steps, in seconds."""
    nu_dtod: Deviation = 0.0
    """Relative spread of the exponent over devices. Zero: all equal."""
    nu_std: Deviation = 0.0
    """Relative spread of the exponent over steps. Zero: constant."""
    wg_ratio: Positive = 1.0
    """Weight per unit of conductance, rho."""
    g_offset: Number = 0.0
    """Conductance of the weight `w_offset`."""
    w_offset: Number = 0.0
    """Weight of the conductance `g_offset`."""
    nu_k: Number = 0.0
    """Decrease of the exponent with the logarithm of conductance. Zero: constant."""
    log_g0: Number = 0.0
    """Natural logarithm of the conductance at which the exponent is nu."""
    w_noise_std: Deviation = 0.0
    """Noise on the weight after each step. Zero turns it off."""

    @property
    def acts(self) -> bool:
        """Whether weights change at all."""
        return self.nu > 0 or self.nu_k != 0 or self.w_noise_std > 0

    @property
    def draws(self) -> bool:
        """Whether anything is drawn, so that a key is needed."""
        return self.nu_dtod > 0 or self.nu_std > 0 or self.w_noise_std > 0

    def describe(self) -> str:
        """Returns its type, exponent and times."""
        return _described(self)

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the weights that NumPy draws likewise."""

        def sample(rng: np.random.Generator, w: np.ndarray) -> np.ndarray:
            of_device, of_step, noise = rng.normal(size=(3, *w.shape))
            nu = self.nu * (1 + self.nu_dtod * of_device) * (1 + self.nu_std * of_step)
            g = (w - self.w_offset) / self.wg_ratio + self.g_offset
            level = np.maximum(np.abs(g) / np.exp(self.log_g0), 1e-7)
            g = g * max(ctx.elapsed, 1) ** -(nu - self.nu_k * np.log(level))
            now = self.wg_ratio * (g - self.g_offset) + self.w_offset
            return now + self.w_noise_std * noise

        ctx.becomes(sample)

    def begin(self, w: jax.Array, key: jax.Array | None = None) -> DriftState:
        """Returns the state of weights that have just been set, with drawn exponents.

        Args:
          w: weights, of any shape.
          key: a JAX key. May be `None` if `draws` is false.

        Raises:
          ValueError: if a draw has no key.
        """
        self._check_key(key)
        if key is None or self.nu_dtod == 0:
            return begin(w, self.nu)
        return begin(w, self.nu * (1 + self.nu_dtod * normal(key, w.shape)))

    def step(
        self,
        state: DriftState,
        w: jax.Array,
        dt_s: ArrayLike,
        key: jax.Array | None = None,
        *,
        scale: ArrayLike = 1.0,
    ) -> tuple[jax.Array, DriftState]:
        """Returns the weights after a time step of drift, and the new state.

        Args:
          state: the state, from `begin` or from the last step.
          w: the current weights.
          dt_s: time since the last step, in seconds. May be traced.
          key: a JAX key, a new one for each step. May be `None` if `draws` is false.
          scale: the unit of weights in this configuration: the mapping scale, if `w` is
            a kernel.

        Raises:
          ValueError: if a draw has no key.
        """
        self._check_key(key)
        nu = state.nu
        if self.nu_std > 0 and key is not None:
            xi = normal(jax.random.fold_in(key, _EXPONENT), w.shape)
            nu = nu * (1 + self.nu_std * xi)
        if self.nu_k != 0:
            g = (w / scale - self.w_offset) / self.wg_ratio + self.g_offset
            nu = state_dependent(nu, g, nu_k=self.nu_k, log_g0=self.log_g0)
        w, state = drifted(
            state,
            w,
            dt_s,
            t0_s=self.t_0,
            reset_tol=self.reset_tol * scale,
            nu=nu,
            offset=(self.wg_ratio * self.g_offset - self.w_offset) * scale,
        )
        if self.w_noise_std == 0 or key is None:
            return w, state
        xi = normal(jax.random.fold_in(key, _NOISE), w.shape)
        w = w + (self.w_noise_std * scale * xi).astype(w.dtype)
        return w, state._replace(previous=w)

    def _check_key(self, key: jax.Array | None) -> None:
        if self.draws and key is None:
            raise InputError(
                "a drift with nu_dtod, nu_std or w_noise_std above zero draws, and "
                "needs a JAX key: pass jax.random.key(seed), another one for each step"
            )
