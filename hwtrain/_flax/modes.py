"""Makes models analog, Linen or NNX, and returns their plans and modes."""

from collections.abc import Sequence
from typing import Any, TypeVar, overload

from flax import linen as nn
from flax import nnx

from hwtrain._errors import InputError
from hwtrain._flax import loops
from hwtrain._flax.linen import kept_leaves
from hwtrain._flax.linen import root as linen_root
from hwtrain._flax.nnx import root as nnx_root
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.rules import Rule, assignment

LinenModel = TypeVar("LinenModel", bound=nn.Module)
NnxModel = TypeVar("NnxModel", bound=nnx.Module)
Model = TypeVar("Model", nn.Module, nnx.Module)


@overload
def analogize(
    model: LinenModel,
    hardware_or_rules: Hardware | Rule | Sequence[Rule | Hardware],
    *,
    rngs: None = None,
    name: str | None = None,
) -> LinenModel: ...


@overload
def analogize(
    model: NnxModel,
    hardware_or_rules: Hardware | Rule | Sequence[Rule | Hardware],
    *,
    rngs: nnx.Rngs | None = None,
    name: str | None = None,
) -> NnxModel: ...


def analogize(
    model: Any,
    hardware_or_rules: Hardware | Rule | Sequence[Rule | Hardware],
    *,
    rngs: nnx.Rngs | None = None,
    name: str | None = None,
) -> Any:
    """Returns the model made ready for analog hardware, in train mode.

    The model itself is not changed. The result is of the same framework and a subclass
    of the same class, with the same parameter paths and initial values. Beside each
    analog kernel, `params` gets the leaves that its hardware needs (`input_range`,
    `probe`, `mapping_scale`).

    Linen:

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from hwtrain import WeightModifierParameter
    >>> noise = WeightModifierParameter(type="add_normal", std_dev=0.1)
    >>> analog = analogize(nn.Dense(4), Hardware(modifier=noise))
    >>> variables = analog.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> y = analog.apply(variables, jnp.ones((1, 3)),
    ...                  rngs={"mismatch": jax.random.key(1)})

    NNX:

    >>> analog = analogize(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), Hardware(modifier=noise),
    ...                    rngs=nnx.Rngs(mismatch=1))
    >>> y = analog(jnp.ones((1, 3)))

    Args:
      model: a Linen or an NNX module.
      hardware_or_rules: one `Hardware` for every layer that can be analog, or rules, of
        which the first match applies; layers that no rule matches stay digital, unless
        the rules end with a `Hardware`, which is theirs.
      rngs: NNX only: holds the stream `mismatch` for the draws of a step. Linen takes
        it in `apply(..., rngs={"mismatch": key})`.
      name: prefix of all paths, for a model inside another: the path of its parameters
        there.

    Raises:
      ValueError: if the model is neither Linen nor NNX or already analog, for a rule
        that applies nowhere (in Linen raised by `init` or `apply`, when the layers are
        known), or for `rngs` without a stream `mismatch`.
    """
    assigned = assignment(hardware_or_rules, name)
    loops.install()
    kept_leaves.install()
    if isinstance(model, nn.Module):
        if rngs is not None:
            raise InputError(
                "analogize(..., rngs=) is for NNX; a Linen model takes the stream in "
                'apply(..., rngs={"mismatch": key})'
            )
        return linen_root.analogize_linen(model, assigned)
    if isinstance(model, nnx.Module):
        return nnx_root.analogize_nnx(model, assigned, rngs)
    raise InputError(
        "analogize takes a flax.linen.Module or a flax.nnx.Module; got "
        f"{type(model).__name__}"
    )


def plan(
    analog: Any, variables: Any = None, *example: Any, rngs: Any = None, **kwargs: Any
) -> Plan:
    """Returns the plan of an analog model: the role of each parameter.

    >>> import jax, jax.numpy as jnp
    >>> analog = analogize(nn.Dense(4), Hardware())
    >>> variables = analog.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> plan(analog, variables, jnp.ones((1, 3)))["kernel"].shape
    (3, 4)

    Args:
      analog: from `analogize`.
      variables: Linen: the variables, or `params` alone, with or without the leaves
        that `analogize` adds.
      *example: arguments of a call; only shapes and dtypes matter. NNX needs none; with
        them, derived weights are found at once instead of at the first call.
      rngs: Linen: rngs of the call, if the model needs other streams.
      **kwargs: keyword arguments of the call; `method=` selects another method than
        `__call__`, and for Linen `mutable=` is accepted as in Flax's `apply`.

    Raises:
      ValueError: if the model is not analog, for a Linen model without variables or
        example, for a rule that applies nowhere, or for a layer that multiplies by
        weights that no crossbar can hold.
    """
    method = kwargs.pop("method", "__call__")
    method = getattr(method, "__name__", method)
    if isinstance(analog, nnx.Module):
        return nnx_root.plan_of(analog, example, kwargs, method)
    linen_root.assigned(analog)
    if variables is None or not (example or kwargs):
        raise InputError(
            "the layers of a Linen model are known only by a call: write "
            "plan(analog, variables, *example)"
        )
    kwargs.pop("mutable", None)  # an abstract call may write anything
    return linen_root.plan_of(analog, variables, example, kwargs, method, rngs or {})


def train_mode(analog: Model) -> Model:
    """Returns the model with all its training noise, as after `analogize`.

    Linen: a clone. NNX: the model itself, changed in place; `.train()` does the same.
    """
    return _in_mode(analog, "train")


def chip_mode(analog: Model) -> Model:
    """Returns the model as a chip runs it at inference.

    Training noise is off, unless `enable_during_test`; read noise is on. Linen: a
    clone. NNX: the model itself, changed in place.
    """
    return _in_mode(analog, "chip")


def eval_mode(analog: Model) -> Model:
    """Returns the deterministic twin, with ranges and clips but without noise.

    It consists of plain JAX operations, so forward-mode differentiation works. Linen: a
    clone. NNX: the model itself, changed in place; `.eval()` does the same.
    """
    return _in_mode(analog, "eval")


def _in_mode(analog: Any, mode: str) -> Any:
    if isinstance(analog, nnx.Module):
        return nnx_root.set_mode(analog, mode)
    return linen_root.with_mode(analog, mode)
