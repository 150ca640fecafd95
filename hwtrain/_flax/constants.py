"""Models and plans whose hardware has traced numbers."""

from typing import Any, TypeVar

from flax import linen as nn
from flax import nnx

from hwtrain._flax.linen import root as linen_root
from hwtrain._flax.nnx import root as nnx_root
from hwtrain._plan.constants import Constants, with_values
from hwtrain._plan.plan import Plan
from hwtrain._plan.traceable import OF_A_CHIP

T = TypeVar("T", nn.Module, nnx.Module, Plan)


def with_constants(analog_or_plan: T, constants: Constants) -> T:
    r"""Returns an analog model, or a plan, with traced numbers in its hardware.

    A number of a `Hardware` is static: another one is another program. Here it is a
    value of the program, so that `jax.vmap` maps over noise strengths, `jax.grad` gives
    the gradient of a loss to a constant of a device, and nothing compiles anew when it
    changes.

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
    `"modifier.std_dev"`, and `"forward.stages.telegraph.sigma"` for a stage of one's
    own (`"forward.stages.1.sigma"` by its place). It reaches every analog weight whose
    hardware has it. Behind a pattern and a colon, `"encoder/.*:forward.out_noise"`, it
    reaches the layers, or the arrays, whose whole path matches (`re.fullmatch`). A
    value has the shape of the number: `()`, or `(n,)` for a tuple of them.

    Whether an effect is on is decided by the configuration, and so is what else a
    number decides, such as whether `res` is a step or the number of steps, or which
    conductance default coefficients belong to. A number that turns an effect off there
    (0, or 1 of `out_scale`) cannot be traced, nor can bits, sizes, names, what the
    optimiser reads (`clip`, `remap`, `drift`, `input_range`, `nm_decay`), how often
    bound management reads again (`max_bm_factor`, `max_bm_res`), the curves and factors
    of a `CustomPairConductanceConverter`, and an `acceptance_range`.

    Gradients are those at fixed random numbers; weights keep their straight-through
    gradient, and that of the size of a level is the straight-through one too. Shares of
    elements that are drawn (`pdrop`, `stuck`, ...) and `weight_scaling_omega` have
    none, and say so when they are differentiated; the scales of iterative bound
    management are constants to gradients.

    A model reads `modifier`, `forward` and `mapping`. What makes a chip (`mismatch`,
    `converter`, `noise_model`, `stuck`, `drift_compensation`, and `mapping`) is read by
    `apply_mismatch`, `program_chip` and `ProgrammedChip.at`, which take a plan:

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
      analog_or_plan: what `analogize` or `hwtrain.plan` returned; it is not changed.
        An NNX model that is returned shares its variables and streams.
      constants: arrays by key. `g_max` of a converter and of its noise model are one
        number, and given both.

    Returns:
      The same kind of thing. Make it where its values are traced: each is another one
      to every cache. A plan with traced numbers has no hash.

    Raises:
      ValueError: for a key that reaches no number that is on, or twice the same; and
        for a value of another shape, or one that the configuration would refuse.
        Linen: when the model is applied, because only then are its layers known.
    """
    if isinstance(analog_or_plan, Plan):
        return with_values(analog_or_plan, constants, OF_A_CHIP)
    if isinstance(analog_or_plan, nnx.Module):
        return nnx_root.with_constants(analog_or_plan, constants)
    if isinstance(analog_or_plan, nn.Module):
        return linen_root.with_constants(analog_or_plan, constants)
    given: Any = analog_or_plan
    raise ValueError(
        "with_constants takes an analog model, Linen or NNX, or a Plan; got "
        f"{type(given).__name__}"
    )
