"""Observes the multiplications of an analog model's layers from outside the model."""

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.typing import DTypeLike

from hwtrain._errors import InputError
from hwtrain._flax.linen.flax_internals import (
    checks_what_is_constant,
    refuses_callbacks,
    unchecked_scans,
)
from hwtrain._plan.weight import AnalogWeight


class Multiplication(NamedTuple):
    """A multiplication that a layer is about to do: the arguments of `analog_matmul`.

    Attributes:
      weight: the plan of the matrix.
      mode: the mode.
      leaves: the leaves beside the matrix in this step.
      x: `[..., rows]`.
      w: `[rows, columns]`.
      product: the product to use, called like `jax.lax.dot_general`.
      dtype: dtype of the result; `None` for that of a plain multiplication.
    """

    weight: AnalogWeight
    mode: str
    leaves: Mapping[str, jax.Array]
    x: jax.Array
    w: jax.Array
    product: Any
    dtype: DTypeLike | None

    def plain(self) -> jax.Array:
        """Returns the product as a digital layer computes it."""
        return self.product(self.x, self.w, (((self.x.ndim - 1,), (0,)), ((), ())))


Observer = Callable[[Multiplication], jax.Array]

Collector = Callable[[AnalogWeight, jax.Array, jax.Array], None]


NoiseObserver = Callable[[str, jax.Array], None]


ResultObserver = Callable[[Any, jax.Array, jax.Array], None]


class _Watching(NamedTuple):
    """The active observers of multiplications, noise and results, and collector."""

    observer: Observer | None = None
    collector: Collector | None = None
    noise: NoiseObserver | None = None
    results: ResultObserver | None = None


_NOBODY = _Watching()

_watching: contextvars.ContextVar[_Watching] = contextvars.ContextVar(
    "hwtrain_watching", default=_NOBODY
)


# Part of every jit cache key, because unobserved traces must not be reused here.
_trace: Any = jax.make_user_context(default_value=None)
_fresh = itertools.count()


def observed(observer: Observer | None) -> contextlib.AbstractContextManager[None]:
    """Lets an observer compute every multiplication of analog layers, while tracing.

    Args:
      observer: takes the multiplication and returns its result; `None` for none.
    """
    return _watched(observer=observer)


def collected(collector: Collector) -> contextlib.AbstractContextManager[None]:
    """Passes the arrays that layers multiply by to a collector, while tracing.

    Args:
      collector: takes the plan of an array, the leaf in place of a chip's weights, and
        the array.
    """
    return _watched(collector=collector)


def noise_observed(observer: NoiseObserver) -> contextlib.AbstractContextManager[None]:
    """Passes the noise of neurons to an observer, while tracing.

    Args:
      observer: takes the path of a capacitance, and the effect of its noise current in
        a step, over its configured deviation.
    """
    return _watched(noise=observer)


def results_observed(
    observer: ResultObserver,
) -> contextlib.AbstractContextManager[None]:
    """Passes the results of modules that digital units store, while tracing.

    Args:
      observer: takes the module's entry in the plan, an array as the module computed
        it, and as it is stored.
    """
    return _watched(results=observer)


@contextlib.contextmanager
def _watched(**changed: Any) -> Iterator[None]:
    token = _watching.set(_watching.get()._replace(**changed))
    try:
        with _trace(("watched", next(_fresh))), unchecked_scans():
            yield
    finally:
        _watching.reset(token)


def tell(take: Callable[..., None], *values: Any) -> None:
    """Calls a function with the values that a program computes.

    Args:
      take: called with the values when the program runs.
      *values: trees of the program's arrays.

    Raises:
      ValueError: in the body of an `nn.scan` in which Flax forbids callbacks.
    """
    if checks_what_is_constant() and refuses_callbacks():
        raise InputError(
            "this version of Flax rejects callbacks, which watch the layers (and "
            "jax.debug.print), in the body of an nn.scan that returns constants. Let "
            "it return them along an axis, or as a carry"
        )
    jax.debug.callback(take, *values)


def observer() -> Observer | None:
    """Returns the active observer, or `None`."""
    return _watching.get().observer


def noise_observer() -> NoiseObserver | None:
    """Returns the active observer of noise of neurons, or `None`."""
    return _watching.get().noise


def result_observer() -> ResultObserver | None:
    """Returns the active observer of stored results, or `None`."""
    return _watching.get().results


def collector() -> Collector | None:
    """Returns the active collector, or `None`."""
    return _watching.get().collector
