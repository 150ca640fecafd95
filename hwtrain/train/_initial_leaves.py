"""Leaves of hardware in the checkpoint that a model starts from."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._flax.weight_side import local
from hwtrain._parts.leaf import LeafSpec
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.train._functional import Functional
from hwtrain.train._initial_checks import cast
from hwtrain.train._initial_files import Arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """A leaf of the hardware-aware model, which a checkpoint may hold.

    Attributes:
      weight: the plan of its weights.
      spec: its declaration.
      owner: the path of its weights in the model.
      like: its initial value, or the shape and dtype of it.
    """

    weight: AnalogWeight
    spec: LeafSpec
    owner: str
    like: Any

    def checked(
        self, value: np.ndarray, kernel: np.ndarray, name: str, source: str
    ) -> np.ndarray:
        """Returns a value in the leaf's dtype, after checking that it fits.

        Args:
          value: the value.
          kernel: its weights.
          name: its path, for messages.
          source: the checkpoint, for messages.
        """
        ways = (
            "take the hardware of the checkpoint, such as hardware.toml beside an "
            "analog.safetensors, or weights alone: plain.safetensors beside it, or "
            f'skip = ["{re.escape(name)}"]'
        )
        if np.shape(value) != np.shape(self.like):
            raise InputError(
                f"{source}: expected {name} of shape {np.shape(self.like)}, for the "
                f"tiles of this hardware, got {np.shape(value)}; {ways}"
            )
        found = cast(value, self.like, name, source)
        fault = self.spec.fits(self.weight, found, kernel) if self.spec.fits else ""
        if fault:
            raise InputError(f"{source}: {name} {fault}; {ways}")
        return found


def leaves_of(model: Functional, plan: Plan) -> dict[str, Beside]:
    """Returns the leaves that the hardware-aware model may start with, by path.

    Args:
      model: the hardware-aware model.
      plan: its plan.
    """
    shapes = paths.leaves(jax.eval_shape(model.init, 0)[0])
    return {
        path: Beside(
            weight=weight,
            spec=spec,
            owner=local(plan, weight.path),
            like=shapes[path],
        )
        for weight in plan.weights
        for spec in weight.leaves()
        if spec.exported == "tensor"
        and (path := local(plan, weight.leaf(spec))) in shapes
    }


def in_kernels(
    values: Arrays, found: Arrays, leaves: Mapping[str, Beside]
) -> dict[str, np.ndarray]:
    """Returns the weights that include the effect of their learned leaves, by path.

    Args:
      values: the loaded weights by path.
      found: the loaded leaves by path.
      leaves: what `leaves_of` returned.
    """
    kernels: dict[str, np.ndarray] = {}
    for name, value in found.items():
        leaf = leaves[name]
        if leaf.spec.in_kernel is not None:
            kernel = kernels.get(leaf.owner, values[leaf.owner])
            merged = leaf.spec.in_kernel(
                leaf.weight, jnp.asarray(kernel), jnp.asarray(value)
            )
            kernels[leaf.owner] = np.asarray(merged)
    return kernels
