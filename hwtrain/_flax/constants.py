"""Models and plans with traced numbers in their hardware."""

from typing import Any, TypeVar

from flax import linen as nn
from flax import nnx

from hwtrain._errors import InputError
from hwtrain._flax.linen import root as linen_root
from hwtrain._flax.nnx import root as nnx_root
from hwtrain._plan.constants import Constants, with_values
from hwtrain._plan.plan import Plan
from hwtrain._plan.traceable import OF_A_CHIP

T = TypeVar("T", nn.Module, nnx.Module, Plan)


def with_constants(analog_or_plan: T, constants: Constants) -> T:
    r"""Returns an analog model, or a plan, with traced numbers in its hardware.

    A number of a `Hardware` is static: changing it needs another program. A traced
    number is an argument of the program, so that `jax.vmap` maps over noise strengths,
    `jax.grad` returns the gradient of a loss with respect to a device's constant, and a
    new value needs no recompilation.

    >>> import jax, jax.numpy as jnp
    >>> import hwtrain
    >>> noisy = hwtrain.IOParameters(out_noise=0.1)
    >>> analog = hwtrain.analogize(nn.Dense(4), hwtrain.Hardware(forward=noisy))
    >>> x, key = jnp.ones((1, 3)), jax.random.key(1)
    >>> variables = analog.init(jax.random.key(0), x)
    >>> def outputs(noise):
    ...     model = with_constants(analog, {"forward.out_noise": noise})
    ...     return model.apply(variables, x, rngs={"mismatch": key})
    >>> jax.vmap(outputs)(jnp.array([0.0, 0.1, 0.2])).shape
    (3, 1, 4)
    >>> jax.grad(lambda noise: outputs(noise).sum())(0.1).shape
    ()

    A key is the path of the number, as in TOML: `"forward.out_noise"`,
    `"modifier.std_dev"`, or `"forward.stages.telegraph.sigma"` for a stage of your own
    (`"forward.stages.1.sigma"` by its index). It applies to every analog weight whose
    hardware has the number. A pattern before a colon, `"encoder/.*:forward.out_noise"`,
    restricts it to the layers, or the arrays, whose whole path matches
    (`re.fullmatch`). A value has the shape of the number: `()`, or `(n,)` for a tuple.

    The configuration decides whether an effect is on, and every other choice that a
    number makes, such as whether `res` is a step or a number of steps, or which
    conductance default coefficients belong to. A number that turns its effect off there
    (0, or 1 for `out_scale`) cannot be traced. Neither can bits, sizes, names, the
    numbers that the optimiser uses (`clip`, `remap`, `drift`, `input_range`,
    `nm_decay`), the number of reads of bound management (`max_bm_factor`,
    `max_bm_res`), the curves and factors of a `CustomPairConductanceConverter`, and an
    `acceptance_range`.

    Gradients are taken at fixed random numbers; weights keep their straight-through
    gradient, and the gradient for the size of a level is straight-through as well.
    Shares of drawn elements (`pdrop`, `stuck`, ...) and `weight_scaling_omega` have no
    gradient, and differentiating them raises an error; the scales of iterative bound
    management are constant to gradients.

    A model uses `modifier`, `forward` and `mapping`. The parts that make a chip
    (`mismatch`, `converter`, `noise_model`, `stuck`, `drift_compensation`, and
    `mapping`) are used by `apply_mismatch`, `program_chip` and `ProgrammedChip.at`,
    which take a plan:

    >>> params = variables["params"]
    >>> plan = hwtrain.plan(
    ...     hwtrain.analogize(nn.Dense(4), hwtrain.presets.pcm()), params, x)
    >>> def kernel(scale):
    ...     scaled = with_constants(plan, {"noise_model.prog_noise_scale": scale})
    ...     chip = hwtrain.program_chip(params, scaled, hwtrain.chip_key(0))
    ...     return chip.at(0.0)["kernel"]
    >>> jax.vmap(kernel)(jnp.array([0.5, 1.0])).shape
    (2, 3, 4)

    Args:
      analog_or_plan: from `analogize` or `hwtrain.plan`; it is not changed. A returned
        NNX model shares its variables and streams.
      constants: arrays by key. `g_max` of a converter and of its noise model are the
        same number, so give both.

    Returns:
      An object of the same kind. Create it where its values are traced: to every cache,
      each one is new. A plan with traced numbers has no hash.

    Raises:
      ValueError: for a key that matches no number that is on, or the same one twice;
        for a value of another shape, or one that the configuration would reject. In
        Linen, this is raised in `apply`, when the layers are known.
    """
    if isinstance(analog_or_plan, Plan):
        return with_values(analog_or_plan, constants, OF_A_CHIP)
    if isinstance(analog_or_plan, nnx.Module):
        return nnx_root.with_constants(analog_or_plan, constants)
    if isinstance(analog_or_plan, nn.Module):
        return linen_root.with_constants(analog_or_plan, constants)
    given: Any = analog_or_plan
    raise InputError(
        "with_constants takes an analog model, Linen or NNX, or a Plan; got "
        f"{type(given).__name__}"
    )


def check_none(analog: Any, taker: str) -> None:
    """Raises for a model with traced constants, where the configured numbers count.

    Args:
      analog: the model.
      taker: the public function that got it, for the message.
    """
    of_nnx = getattr(analog, "analog_constants", ())
    given = getattr(analog, "_hwtrain_constants", of_nnx)
    if given:
        raise InputError(
            f"{taker} measures the numbers of the configuration, and this model has "
            f"others for {', '.join(map(repr, given))} (hwtrain.with_constants): pass "
            "the model without them"
        )
