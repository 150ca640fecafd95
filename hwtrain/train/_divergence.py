"""Detects on the device that a training has diverged, and reports it in one line."""

from typing import Any

import jax
import jax.numpy as jnp

from hwtrain._errors import InputError


class DivergedError(InputError):
    """A loss or a parameter is NaN or infinite; the message says where and when."""


def first_bad(so_far: jax.Array, step: jax.Array, values: Any) -> jax.Array:
    """Returns the number of the first update that produced a NaN or an infinity.

    >>> none = jnp.zeros((), jnp.int32)
    >>> int(first_bad(none, jnp.int32(7), {"loss": jnp.float32(jnp.nan)}))
    7

    Args:
      so_far: `[]` int32, the result before this update: 0 for none.
      step: `[]` int32, the number of this update, counted from 1.
      values: arrays that this update produced; only floating-point ones are checked.
    """
    finite = [
        jnp.isfinite(leaf).all()
        for leaf in jax.tree.leaves(values)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    fine = (so_far > 0) | jnp.stack(finite).all()
    return jnp.where(fine, so_far, step)


def diverged(
    number: int, *, title: str, saved: int | None, rate: float
) -> DivergedError:
    """Returns the error for a training that diverged at update `number`.

    Args:
      number: from `first_bad`.
      title: the model and its seed.
      saved: step of its newest checkpoint; `None` for none.
      rate: its learning rate.
    """
    kept = (
        f"its checkpoint of step {saved} is kept" if saved else "it has no checkpoint"
    )
    return DivergedError(
        f"{title}: the loss or a parameter is NaN or infinite from update {number} on, "
        f"so it is neither saved nor evaluated; {kept}. Train again with less than "
        f"training.learning_rate={rate:g}, with --out or --overwrite"
    )
