"""Selects a robust objective by configuration."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import jax
from pydantic import Field, model_validator

from hwtrain._errors import InputError
from hwtrain._parts.fields import (
    Deviation,
    Positive,
    PositiveDeviation,
    Share,
    configuration,
)
from hwtrain._parts.part import Part
from hwtrain._parts.registry import register_types
from hwtrain._parts.slot import OpenSlot
from hwtrain._plan.plan import Plan
from hwtrain.objectives._adversarial import Distance, adversarial, mean_square
from hwtrain.objectives._chips import of_chips
from hwtrain.objectives._perturbations import (
    Loss,
    gaussian,
    multiplicative,
    sharpness_aware,
)

_CHIPS = ("mean_of_chips", "worst_of_chips", "cvar_of_chips")


# The types that use each option.
_EFFECTIVE = {
    "std_dev": ("gaussian", "multiplicative"),
    "per_column": ("gaussian",),
    "rho": ("sharpness_aware",),
    "chips": _CHIPS,
    "share": ("cvar_of_chips",),
    "mismatch_level": ("adversarial",),
    "attack_steps": ("adversarial",),
    "initial_std": ("adversarial",),
    "beta_robustness": ("adversarial",),
    "noisy_forward_std": ("adversarial",),
}


@register_types("objective")
@configuration
class ObjectiveParameter:
    r"""The objective that training minimises instead of the loss.

    .. math::
        \text{gaussian:}\quad & L(W + \sigma A \xi) \\
        \text{multiplicative:}\quad & L(W (1 + \sigma \xi)) \\
        \text{sharpness_aware:}\quad & L(\theta + \rho\, g / \|g\|) \\
        \text{adversarial:}\quad & L(\theta) + \beta\, D(f(\theta), f(\theta^*)) \\
        \text{mean_of_chips, worst_of_chips, cvar_of_chips:}\quad & \text{of the losses
        of several chips, the mean, the largest, and the mean of the largest share}

    See the functions of the same names in `hwtrain.objectives`. Setting an option that
    the type does not use is an error.

    >>> ObjectiveParameter(type="worst_of_chips", chips=8).chips
    8
    """

    type: Literal[
        "gaussian",
        "multiplicative",
        "sharpness_aware",
        "adversarial",
        "mean_of_chips",
        "worst_of_chips",
        "cvar_of_chips",
    ]
    """The objective."""
    std_dev: Deviation = 0.0
    """Standard deviation of the noise: for `gaussian` relative to the largest weight,
    for `multiplicative` to each weight."""
    per_column: bool = False
    """Take the largest weight of each column (output) instead of the tile."""
    rho: Positive = 0.05
    """Distance of the perturbation of `sharpness_aware`, in units of the parameters."""
    chips: Annotated[int, Field(gt=0, le=10_000)] = 4
    """Chips drawn at each step."""
    share: Share = 0.5
    """Share of the chips that counts, the worst ones."""
    mismatch_level: PositiveDeviation = 0.025
    """Largest relative deviation of a parameter under attack."""
    attack_steps: Annotated[int, Field(gt=0, le=10_000)] = 10
    """Gradient steps of the attack."""
    initial_std: Deviation = 1e-3
    """Relative standard deviation of the attack's starting point."""
    beta_robustness: Positive = 0.25
    """Weight of the term that measures how far the attack moves the outputs."""
    noisy_forward_std: Deviation = 0.0
    """Relative noise on the parameters in the loss term. Zero turns it off."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in dataclasses.fields(self):
            types = _EFFECTIVE.get(field.name)
            value = getattr(self, field.name)
            if types and self.type not in types and value != field.default:
                raise InputError(
                    f'{field.name}={value} does nothing with type="{self.type}"; leave '
                    f"it out, or use a type that takes it: {', '.join(types)}"
                )
        if self.type in ("gaussian", "multiplicative") and self.std_dev == 0:
            raise InputError(
                f'type="{self.type}" needs a standard deviation: write std_dev=0.1'
            )
        if self.type == "cvar_of_chips" and self.share == 0:
            raise InputError("share must be above 0; 1 counts all chips, got 0")
        return self


class Objective(Part):
    """Base class of your own objectives, minimised instead of the loss."""

    @abc.abstractmethod
    def of(
        self,
        loss: Loss,
        plan: Plan,
        *,
        outputs: Callable[..., jax.Array] | None = None,
        has_aux: bool = False,
    ) -> Loss:
        """Returns the function to minimise, with the same arguments as the loss.

        Args:
          loss: `loss(params, key, *batch) -> []`, a pure function.
          plan: the plan of the model.
          outputs: `outputs(params, key, *batch)`, the model's outputs.
          has_aux: whether the loss also returns auxiliary data.
        """


AnyObjective = Annotated[ObjectiveParameter | Objective, OpenSlot("objective")]
"""A configuration's objective."""


def robust(
    loss: Loss,
    plan: Plan,
    objective: "ObjectiveParameter | Objective",
    *,
    outputs: Callable[..., jax.Array] | None = None,
    distance: Distance = mean_square,
    has_aux: bool = False,
) -> Loss:
    """Returns a robust version of the loss, with the same arguments.

    >>> import jax.numpy as jnp
    >>> quadratic = lambda params, key: 0.5 * jnp.sum(params["w"] ** 2)
    >>> sharp = ObjectiveParameter(type="sharpness_aware", rho=0.5)
    >>> minimised = robust(quadratic, Plan(()), sharp)
    >>> print(jax.grad(minimised)({"w": jnp.array([3.0, 4.0])}, jax.random.key(0))["w"])
    [3.3 4.4]

    Args:
      loss: `loss(params, key, *batch) -> []`, a pure function, of a Linen or an NNX
        model, which draws all its random numbers of a step from the key.
      plan: the plan of the model.
      objective: the objective and its options, or an `Objective` of your own.
      outputs: `outputs(params, key, *batch)`, the model's outputs; only `adversarial`
        needs it.
      distance: distance between outputs, for `adversarial`.
      has_aux: whether the loss also returns auxiliary data.

    Raises:
      ValueError: if `outputs` is missing, or chips would not differ.
    """
    if isinstance(objective, Objective):
        return objective.of(loss, plan, outputs=outputs, has_aux=has_aux)
    options: dict[str, Any] = {
        name: getattr(objective, name)
        for name, types in _EFFECTIVE.items()
        if objective.type in types
    }
    match objective.type:
        case "gaussian":
            return gaussian(loss, plan, **options)
        case "multiplicative":
            return multiplicative(loss, plan, **options)
        case "sharpness_aware":
            return sharpness_aware(loss, plan, **options, has_aux=has_aux)
        case "adversarial":
            if outputs is None:
                raise InputError(
                    'type="adversarial" compares outputs: write robust(..., '
                    "outputs=lambda params, key, *batch: model.apply(...))"
                )
            more = {"distance": distance, "has_aux": has_aux}
            return adversarial(loss, plan, outputs, **options, **more)
        case "worst_of_chips":
            options["share"] = 1 / objective.chips
    return of_chips(loss, plan, **options, has_aux=has_aux)
