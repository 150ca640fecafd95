"""A model whose parameters get new mismatch at every step."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar, overload

from flax import linen as nn
from flax import nnx

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.linen.root import analogize_linen
from hwtrain._flax.nnx.root import analogize_nnx
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.quantities import quantity_of
from hwtrain._plan.rules import Assignment, Rule
from hwtrain.dynapse._generator import mismatch_generator
from hwtrain.weights import WeightModifierParameter

LinenModel = TypeVar("LinenModel", bound=nn.Module)
NnxModel = TypeVar("NnxModel", bound=nnx.Module)


@overload
def with_mismatch(
    model: LinenModel,
    prototype: paths.Tree,
    percent_deviation: float | Mapping[str, float] = 0.30,
    sigma_rule: float = 3.0,
    *,
    stream: str = "mismatch",
    rngs: None = None,
) -> LinenModel: ...


@overload
def with_mismatch(
    model: NnxModel,
    prototype: paths.Tree,
    percent_deviation: float | Mapping[str, float] = 0.30,
    sigma_rule: float = 3.0,
    *,
    stream: str = "mismatch",
    rngs: nnx.Rngs | None = None,
) -> NnxModel: ...


def with_mismatch(
    model: Any,
    prototype: paths.Tree,
    percent_deviation: float | Mapping[str, float] = 0.30,
    sigma_rule: float = 3.0,
    *,
    stream: str = "mismatch",
    rngs: nnx.Rngs | None = None,
) -> Any:
    r"""Returns a model whose selected parameters get new mismatch at every step.

    .. math:: \theta' = \theta (1 + \sigma \xi), \quad
        \sigma = \text{percent_deviation} / \text{sigma_rule}

    and for the logarithms of a DynapSim :math:`\theta' = \theta + \sigma \xi`. The
    nominal parameters do not change, and get the gradient at the deviated ones. It is
    `analogize` with a weight modifier for each selected parameter, so `train_mode` (the
    default), `chip_mode` and `eval_mode` (no deviation), `plan` and `inspect` work as
    there, and a draw depends only on the step's key and the path.

    >>> import jax, jax.numpy as jnp
    >>> from hwtrain import select
    >>> x, plain = jnp.ones((1, 3)), nn.Dense(4)
    >>> variables = plain.init(jax.random.key(0), x)
    >>> model = with_mismatch(plain, select(variables["params"], "kernel"))
    >>> y = model.apply(variables, x, rngs={"mismatch": jax.random.key(1)})
    >>> bool((y == plain.apply(variables, x)).any())
    False

    Args:
      model: a plain Linen or NNX model.
      prototype: a tree of booleans over its parameters.
      percent_deviation: as for `mismatch_generator`. Zero turns the mismatch off.
      sigma_rule: as for `mismatch_generator`.
      stream: name of the rng stream for the draws of a step.
      rngs: NNX only: holds this stream. Linen takes it in `apply(..., rngs=)`.

    Raises:
      ValueError: if the model is analog or neither Linen nor NNX, or as for
        `mismatch_generator` and `analogize`. In Linen, a selected path that the model
        does not have is only detected in `apply`.

    References:
      Büchel et al., Supervised training of spiking neural networks for robust
      deployment on mixed-signal neuromorphic processors, Scientific Reports 2021.
    """
    generator = mismatch_generator(prototype, percent_deviation, sigma_rule)
    variables = all(path.startswith("params/") for path, _ in generator.deviations)
    rules = tuple(
        Rule(
            params=re.escape(path.removeprefix("params/") if variables else path),
            hardware=_hardware(path, deviation / sigma_rule),
        )
        for path, deviation in generator.deviations
        if deviation is not None
    )
    assigned = Assignment(rules=rules, stream=stream)
    if isinstance(model, nn.Module):
        if rngs is not None:
            raise InputError(
                "with_mismatch(..., rngs=) is for NNX; a Linen model takes the stream "
                f'in apply(..., rngs={{"{stream}": key}})'
            )
        return analogize_linen(model, assigned)
    if isinstance(model, nnx.Module):
        return analogize_nnx(model, assigned, rngs)
    raise InputError(
        "with_mismatch takes a flax.linen.Module or a flax.nnx.Module; got "
        f"{type(model).__name__}"
    )


def _hardware(path: str, std_dev: float) -> Hardware:
    """Returns hardware whose weight modifier gives one parameter's mismatch."""
    if quantity_of(path.rpartition("/")[2]) is None:
        modifier = WeightModifierParameter(type="mult_normal", std_dev=std_dev)
    else:
        modifier = WeightModifierParameter(
            type="add_normal", std_dev=std_dev, rel_to_actual_wmax=False
        )
    return Hardware(modifier=modifier)
