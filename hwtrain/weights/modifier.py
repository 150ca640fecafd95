"""Modifies weights at every training step, by noise and rounding."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
from pydantic import model_validator

from hwtrain._arrays import polynomials, rounding
from hwtrain._errors import InputError
from hwtrain._parts.constant import replaced, with_straight_through
from hwtrain._parts.fields import (
    Deviation,
    NonNegative,
    Number,
    Positive,
    Share,
    Steps,
    configuration,
)
from hwtrain._parts.leaf import LeafSpec
from hwtrain._parts.part import Described
from hwtrain._parts.registry import register_types
from hwtrain._parts.texts import in_microsiemens
from hwtrain.weights import levels, noises
from hwtrain.weights._modifier_options import LEVELS, PCM, check
from hwtrain.weights._modifier_sample import sample_of
from hwtrain.weights.bases import in_modes
from hwtrain.weights.pcm import pcm_noise

_ROUNDING, _DROP = 1, 2

ON_LEVELS = LeafSpec(
    name="on_levels",
    when=("chip",),
    there=lambda weight, when: weight.hardware.rounds_chips,
    shapes=lambda weight: ((),),
    trained=None,
)
"""Marks weights of a chip that were rounded before its mismatch."""


@register_types("modifier")
@configuration
class WeightModifierParameter(Described):
    r"""Noise and rounding of the weights, drawn anew at every training step.

    .. math::
        \text{add_normal:}\quad & w' = w + \sigma A \xi \\
        \text{mult_normal:}\quad & w' = w (1 + \sigma \xi) \\
        \text{discretize:}\quad & w' = \Delta \lfloor w / \Delta \rceil, \quad
        \Delta = 2 A\,\text{res} \\
        \text{discretize_add_normal:}\quad & \text{the same, then } + \sigma A \xi \\
        \text{dorefa:}\quad & w' = \text{res}
        \lfloor c \tanh(w) / (\text{res} \tanh A) \rceil \\
        \text{poly:}\quad & w' = w + \sigma A \textstyle\sum_k c_k (|w|/A)^k\, \xi \\
        \text{prog_noise:}\quad & w' = \mathrm{sign}(w) |w + \sigma \tfrac{A}{g_\max}
        \textstyle\sum_k c_k (|w|/A)^k\, \xi| \\
        \text{pcm_noise:}\quad & \text{programming, drift and read noise of a
        phase-change device} \\
        \text{drop_connect, copy:}\quad & w' = w

    with :math:`\xi \sim N(0, 1)` for each weight and :math:`A` the largest absolute
    weight of its row tile. After any of them, a share `pdrop` of the weights is set to
    zero. The gradient of the modified weight is passed to the nominal one
    (straight-through). An option that has no effect on the type is an error.

    >>> WeightModifierParameter(type="add_normal", std_dev=0.1).std_dev
    0.1

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.

      Rasch et al., A flexible and fast PyTorch toolkit for simulating training and
      inference on analog crossbar arrays, AICAS 2021.
    """

    type: Literal[
        "none",
        "copy",
        "add_normal",
        "mult_normal",
        "discretize",
        "discretize_add_normal",
        "dorefa",
        "poly",
        "prog_noise",
        "pcm_noise",
        "drop_connect",
    ] = "none"
    """`"none"` turns the modifier off; `"copy"` applies `pdrop` only."""
    std_dev: Deviation = 0.0
    """Standard deviation, relative to A; for `mult_normal`, to the weight; for `poly`,
    `prog_noise` and `pcm_noise`, to the model's own. Zero turns the noise off."""
    per_column: bool = False
    """Take A from each column (output) instead of the whole tile."""
    rel_to_actual_wmax: bool = True
    """Take A from the weights; otherwise A is `assumed_wmax`."""
    assumed_wmax: Positive = 1.0
    """A, in units of the crossbar's weight, if `rel_to_actual_wmax` is false."""
    res: Steps = 0.0
    """Step of the levels relative to their range, 2 A; above 1, the number of steps.
    For `dorefa` the step itself, or its inverse."""
    sto_round: bool = False
    """Round stochastically, with the right mean, instead of half to even."""
    dorefa_clip: Positive = 0.6
    """c, the largest weight that `dorefa` returns."""
    pdrop: Share = 0.0
    """Share of the weights set to zero. Zero turns this off."""
    coeffs: tuple[Number, ...] | None = None
    """c_0, c_1, ...: for `poly` relative to A, for `prog_noise` in µS. `None` uses
    those of phase-change memory."""
    g_max: Positive = 25.0
    """Conductance of the largest weight, in µS."""
    pcm_zero_thres: NonNegative = 0.0
    """Conductances up to this many standard deviations of a device at zero become zero.
    Zero turns this off."""
    pcm_t_inference: NonNegative = 0.0
    """Time since programming, in seconds. Zero turns drift off."""
    pcm_t0: Positive = 20.0
    """Time between programming and the reference read, in seconds."""
    pcm_prob_at_reset: Share = 0.0
    """Probability of a device stuck at zero."""
    pcm_prob_at_gmax: Share = 0.0
    """Probability of a device stuck at g_max, of either sign."""
    pcm_prob_at_random: Share = 0.0
    """Probability of a device stuck at a random level."""
    reparameterized: bool = False
    """Use the true derivative at fixed random numbers instead of straight-through."""
    enable_during_test: bool = False
    """Modify the weights in `chip_mode` too. With a rounding type, a chip is programmed
    to the nearest levels, once: its mismatch and noise are not rounded."""
    per_batch_sample: bool = False
    """Draw weights for each example, an entry of the leading axis of a layer's input,
    instead of once per step. Costs a matrix of draws per example."""
    per_vector: bool = False
    """Draw weights for each input vector: each example, position and call. The noise is
    drawn at the output, so its cost grows with the output only: small for a dense layer
    of few vectors, large for a convolution, of which every position is a vector."""
    redraw: bool = False
    """Draw the weights of the step in the layer that multiplies by them, and redraw
    them in the backward pass instead of storing them: saves memory, and costs time
    unless new memory is expensive."""
    copy_last_column: bool = False
    """Leave the weights of the last input (a row here, a column in the reference) as
    they are and out of A, for an input of constant 1 that stands for a bias."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check(self)
        return self

    @property
    def in_layer(self) -> bool:
        """Whether the layer draws as it multiplies, rather than the model before."""
        return self.per_batch_sample or self.per_vector or self.redraw

    @property
    def acts(self) -> bool:
        """Whether the modifier changes anything; rounding acts without a draw."""
        return self.draws or self.type in LEVELS or self.type in PCM

    @property
    def draws(self) -> bool:
        """Whether the modifier draws anything and so needs a key."""
        return self.noisy or self.sto_round

    @property
    def noisy(self) -> bool:
        """Whether the modifier draws noise of adjustable strength."""
        if self.type == "none":
            return False
        aging = self.type in PCM and self.pcm_t_inference > 0
        return aging or any(
            value > 0 for value in (self.std_dev, self.pdrop, *self.stuck)
        )

    @property
    def unitless(self) -> bool:
        """Whether the modifier works in any common unit of the weights and A.

        Not with an A in units of the crossbar, and not with levels: in another unit,
        floating-point errors could change the level.
        """
        return self.rel_to_actual_wmax and self.type not in LEVELS

    @property
    def stuck(self) -> tuple[float, float, float]:
        """Probabilities of a device stuck at zero, at g_max and at random."""
        return (
            self.pcm_prob_at_reset,
            self.pcm_prob_at_gmax,
            self.pcm_prob_at_random,
        )

    @property
    def column_steps(self) -> float | None:
        """Number of steps between the levels that a learned bound per column spans.

        `None` if there are none: levels of the tile, and stochastic rounding, follow
        the weights instead.
        """
        linear = self.type in ("discretize", "discretize_add_normal")
        if not linear or self.sto_round or not self.per_column:
            return None
        return 1 / rounding.resolution(self.res) if self.rel_to_actual_wmax else None

    @property
    def rounds_chips(self) -> bool:
        """Whether the weights of a chip are programmed to levels."""
        return self.enable_during_test and self.type in LEVELS

    @property
    def levels(self) -> Self:
        """Its levels alone, to which a chip's weights are rounded when programmed."""
        return replaced(
            self,
            type="dorefa" if self.type == "dorefa" else "discretize",
            std_dev=0.0,
            pdrop=0.0,
            sto_round=False,
            per_batch_sample=False,
            redraw=False,
        )

    @property
    def without_levels(self) -> Self:
        """The same without its levels, for weights that are already rounded."""
        noisy = self.type == "discretize_add_normal"
        draws = noisy and self.std_dev > 0 or self.pdrop > 0
        return replaced(
            self,
            type="add_normal" if noisy else "copy",
            res=0.0,
            sto_round=False,
            dorefa_clip=WeightModifierParameter.dorefa_clip,
            per_column=self.per_column and noisy,
            rel_to_actual_wmax=self.rel_to_actual_wmax or not noisy,
            assumed_wmax=self.assumed_wmax if noisy else 1.0,
            per_batch_sample=self.per_batch_sample and draws,
            redraw=self.redraw and draws,
        )

    def describe(self) -> str:
        """Returns its type, its amounts and how it is drawn."""
        if not self.acts:
            return ""
        amounts = (("", "std_dev"), ("res ", "res"), ("drop ", "pdrop"))
        strength = ", ".join(
            f"{label}{getattr(self, name):g}"
            for label, name in amounts
            if getattr(self, name) > 0
        )
        what = f"{self.type} {strength}".rstrip()
        what += " per column" if self.per_column else ""
        for name in ("per_batch_sample", "per_vector", "copy_last_column"):
            what += f", {name}" if getattr(self, name) else ""
        return what + (", redrawn" if self.redraw else "")

    def describe_in(self, ctx: Any) -> Mapping[str, str]:
        """Returns its table cells: its description and modes, and its noise in µS."""
        if not self.acts:
            return {}
        cells = {ctx.column: in_modes(self.describe(), self.enable_during_test)}
        normal = self.type == "mult_normal" or (
            self.type == "add_normal" and self.rel_to_actual_wmax
        )
        if normal:
            cells |= in_microsiemens("weights", self.std_dev, ctx)
        return cells

    @property
    def changed_share(self) -> float:
        """The minimum share of weights that a step changes."""
        return self.pdrop if self._only_drops else 1.0

    @property
    def _only_drops(self) -> bool:
        return self.type in ("drop_connect", "copy") and self.pdrop > 0

    def proof(self, ctx: Any) -> None:
        """Declares its measured effect: the weights that NumPy draws likewise."""
        if self._only_drops:
            ctx.drops(self.pdrop)
        else:
            ctx.becomes(sample_of(self), drops=self.pdrop)

    def __call__(
        self,
        key: jax.Array | None,
        w: jax.Array,
        w_max: jax.Array,
        strength: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the modified weights.

        Args:
          key: a JAX key. May be `None` if `draws` is false.
          w: weights of any shape, in units of the crossbar.
          w_max: A, broadcastable against `w`. Not read if `rel_to_actual_wmax` is
            false.
          strength: factor on every standard deviation and probability, `[]` float32;
            `None` for 1.

        Raises:
          ValueError: if a draw has no key.
        """
        if not self.acts:
            return w
        if key is None:
            if self.draws:
                raise InputError(
                    f'a modifier of type "{self.type}" that draws needs a JAX key, got '
                    "None; pass jax.random.key(seed)"
                )
            # XLA keeps a draw that is multiplied by zero: any key will do.
            key = jax.random.key(0)
        if not self.reparameterized:
            # A constant's gradient is that of the modification at fixed random numbers.
            def change(w: jax.Array, w_max: jax.Array) -> jax.Array:
                true = replaced(self, reparameterized=True)
                return true._changed(key, w, w_max, strength)

            new = with_straight_through(self, change, w, w_max)
            if new is not None:
                return new
        return self._changed(key, w, w_max, strength)

    def _changed(
        self,
        key: jax.Array,
        w: jax.Array,
        w_max: jax.Array,
        strength: jax.Array | None,
    ) -> jax.Array:
        actual = w_max if self.rel_to_actual_wmax else None
        value = self._modify(key, w, actual, strength)
        if self.pdrop == 0:
            return value
        drop_key = jax.random.fold_in(key, _DROP)
        return noises.drop_connect(
            drop_key,
            value,
            pdrop=_scaled(self.pdrop, strength),
            reparameterized=self.reparameterized,
        )

    def sigma(self, w: Any, w_max: Any) -> Any:
        """Returns the standard deviation of a normal type, divided by `std_dev`."""
        match self.type:
            case "add_normal":
                return w_max
            case "mult_normal":
                return w
        coeffs = self.coeffs or polynomials.PCM_RELATIVE_COEFFICIENTS
        return noises.poly_sigma(w, w_max, coeffs=coeffs)

    def _modify(
        self,
        key: jax.Array,
        w: jax.Array,
        actual: jax.Array | None,
        strength: jax.Array | None,
    ) -> jax.Array:
        w_max = self.assumed_wmax if actual is None else actual
        gradient = {"reparameterized": self.reparameterized}
        noise = {"std_dev": _scaled(self.std_dev, strength), **gradient}
        if self.type in ("discretize", "discretize_add_normal"):
            rounding_key = jax.random.fold_in(key, _ROUNDING)
            w = levels.discretize(
                w,
                w_max,
                res=self.res,
                key=rounding_key if self.sto_round else None,
                **gradient,
            )
        match self.type:
            case "dorefa":
                rounding_key = jax.random.fold_in(key, _ROUNDING)
                return levels.dorefa(
                    w,
                    w_max,
                    res=self.res,
                    clip=self.dorefa_clip,
                    key=rounding_key if self.sto_round else None,
                    **gradient,
                )
            case "add_normal" | "discretize_add_normal" if self.std_dev > 0:
                return noises.add_normal(key, w, w_max, **noise)
            case "mult_normal" if self.std_dev > 0:
                return noises.mult_normal(key, w, **noise)
            case "poly" if self.std_dev > 0:
                coeffs = self.coeffs or polynomials.PCM_RELATIVE_COEFFICIENTS
                return noises.poly(key, w, w_max, coeffs=coeffs, **noise)
            case "prog_noise" if self.std_dev > 0:
                coeffs = self.coeffs or polynomials.PCM_COEFFICIENTS
                return noises.prog_noise(
                    key, w, w_max, coeffs=coeffs, g_max=self.g_max, **noise
                )
            case "pcm_noise":
                return pcm_noise(
                    key,
                    w,
                    w_max,
                    g_max=self.g_max,
                    t_inference_s=self.pcm_t_inference,
                    t0_s=self.pcm_t0,
                    zero_threshold=self.pcm_zero_thres,
                    prob_at_reset=_scaled(self.pcm_prob_at_reset, strength),
                    prob_at_gmax=_scaled(self.pcm_prob_at_gmax, strength),
                    prob_at_random=_scaled(self.pcm_prob_at_random, strength),
                    nu_scale=_scaled(1.0, strength),
                    **noise,
                )
            case _:
                return w


def _scaled(amount: float, strength: jax.Array | None) -> Any:
    """Scales an amount of noise by the strength; zero stays a static zero."""
    return amount if strength is None or amount == 0 else strength * amount
