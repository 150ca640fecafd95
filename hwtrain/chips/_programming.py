"""A programmed chip: its conductances, and its parameters at any time.

Train, program, drift, compensate: training yields nominal weights. A chip receives
their conductances with programming noise; these drift with time, and a digital factor
for each tile undoes the mean drift.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._arrays import paths, tiling
from hwtrain._arrays.random import draw_key
from hwtrain._errors import InputError
from hwtrain._plan.constants import joined_plan, split_plan
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.nominal import check_nominal
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips import _conductances as conductances
from hwtrain.chips._clip_bounds import clipped, with_open_bounds
from hwtrain.chips._crossbar import on_crossbar, written
from hwtrain.chips._device_shapes import programmed_by
from hwtrain.chips._measured_tiles import MeasuredTiles
from hwtrain.chips._mismatched import apply_mismatch, deviated
from hwtrain.chips._tile_reads import (
    exact_responses,
    read_device,
    responses,
    weights_of,
    with_stuck_devices,
)
from hwtrain.devices._conversion import Params
from hwtrain.devices._programmed import Programmed, check_time
from hwtrain.weights.mapping import MAPPING_SCALE

Keys = dict[str, Any]
"""The keys of a weight's draws by effect: one, or one per device. Only the keys depend
on the weight's name, so that weights of one shape share a compilation."""

PROGRAMMED = ("g_prog", "nu", "xi", "life", "flicker", "pulses", "stuck")
"""Fields of `Programmed`, beside the target, that programming may set; which ones
depends on the hardware."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgrammedWeight:
    """The crossbars of one weight after programming.

    Attributes:
      devices: all random quantities of each of the converter's devices; arrays of the
        stored shape, in µS.
      params: the parameters of the nominal weights' conversion; see
        `conductances.targets`. Programming does not change them.
      scale: the mapping scale, broadcastable against the stored array.
      target: `[*stack, rows, columns]`, the weights to be written, without the chip's
        mismatch, in units of the crossbar.
      keys: keys of the frozen draws; see `keys_of_chip`.
    """

    devices: tuple[Programmed, ...]
    params: Params
    scale: ArrayLike
    target: jax.Array
    keys: Keys


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgrammedChip:
    """A programmed chip; `at` returns its parameters at a given time.

    Attributes:
      params: parameters with the chip's mismatch; the nominal ones are not changed.
      weights: the weights whose hardware has a noise model or stuck devices, by path.
      plan: the plan of the model.
      constants: traced constants of the hardware, by path of the weight.
    """

    params: Any
    weights: dict[str, ProgrammedWeight]
    plan: Plan = dataclasses.field(metadata={"static": True})
    constants: Mapping[str, tuple[jax.Array, ...]] = dataclasses.field(
        default_factory=dict
    )

    def at(self, t_s: ArrayLike, key: jax.Array | None = None) -> Any:
        r"""Returns the chip's parameters at a given time.

        .. math:: W(t) = s\,\alpha(t)\,w\big(g(t)\big)

        with :math:`w(g)` the weights that the converter recovers from the conductances
        by the scale of their targets, :math:`s` the mapping scale, and :math:`\alpha`
        the factor of the drift compensation, measured in the same read. The factor is
        digital, behind the ADC: a `mapping_scale` beside the weights becomes
        :math:`s\,\alpha(t)`, so that the crossbar holds :math:`w(g(t))`.

        Args:
          t_s: time since programming, in seconds; zero is just after. May be traced.
            It is a float32 (seven digits), or with `jax_enable_x64` a float64.
          key: key of the read noise, a new one for each read; `None` reads without
            noise.

        Returns:
          A tree like the parameters.

        Raises:
          ValueError: for a time that is negative, infinite or not a number, unless it
            is traced.
        """
        check_time(t_s)
        found, plan = {}, joined_plan(self.plan, self.constants)
        values = paths.leaves(self.params)
        for path, programmed in self.weights.items():
            weight = plan[path]
            keys = None if key is None else keys_of_read(weight, key)
            leaves = own_values(weight, values)
            found[path] = weight_at(weight, programmed, t_s, keys, leaves)
        kernels = {path: kernel for path, (kernel, _) in found.items()}
        factors = {path: factor for path, (_, factor) in found.items()}

        def now(path: str, leaf: jax.Array) -> jax.Array:
            return kernels[path].astype(leaf.dtype) if path in kernels else leaf

        params = compensated(paths.map_leaves(now, self.params), plan, factors)
        return with_open_bounds(params, plan)


def program_chip(params: Any, plan: Plan, key: jax.Array) -> ProgrammedChip:
    r"""Programs a model onto a chip.

    .. math:: W \to W_\text{chip} \to w = W_\text{chip} / s \to g(w)
        \to g_\text{prog}, \nu

    from nominal weights to those with mismatch, on the crossbar, as target conductances
    and as programmed ones. A pure function of the chip's key, each parameter's path,
    device and element; vectorise it over chips with `jax.vmap`.

    >>> import hwtrain
    >>> from flax import linen as nn
    >>> x = jnp.ones((1, 3))
    >>> analog = hwtrain.analogize(nn.Dense(4), hwtrain.presets.pcm())
    >>> params = analog.init(jax.random.key(0), x)["params"]
    >>> plan = hwtrain.plan(analog, params, x)
    >>> chip = program_chip(params, plan, hwtrain.chip_key(7))
    >>> after_a_day = chip.at(86_400.0, key=jax.random.key(1))
    >>> bool(abs(after_a_day["kernel"]).mean() < abs(params["kernel"]).mean())
    True

    Args:
      params: nominal parameters.
      plan: the plan; weights without a noise model and without stuck devices get only
        their mismatch.
      key: `chip_key(chip_seed)`.

    Raises:
      ValueError: if the parameters lack a weight of the plan, or are a chip's already.

    References:
      Joshi et al., Accurate deep neural network inference using computational
      phase-change memory, Nature Communications 2020.
    """
    check_nominal(plan, params, "program_chip")
    plan.check_effective()
    values = paths.leaves(params)
    weights = {}
    for weight in plan.weights:
        if weight.path not in values:
            raise InputError(
                f"the plan has {weight.path!r}, but the parameters do not; they have "
                f"{sorted(values)}. Pass the parameters that the plan was made from"
            )
        if weight.hardware.programs:
            weights[weight.path] = program_weight(
                weight,
                values[weight.path],
                weight.stored_scale(values),
                keys_of_chip(weight, key),
                weight.stored_bound(values),
            )
    chip = apply_mismatch(params, plan, key)
    plan, constants = split_plan(plan)
    return ProgrammedChip(params=chip, weights=weights, plan=plan, constants=constants)


def keys_of_chip(weight: AnalogWeight, key: jax.Array) -> Keys:
    """Returns the keys of all frozen draws for the crossbars of one weight.

    Args:
      weight: the plan of the array; its hardware has a converter.
      key: `chip_key(chip_seed)`.
    """
    return {
        "mismatch": draw_key(key, weight.path, "mismatch"),
        "programming": _of_devices(weight, key, "programming"),
        "stuck": _of_devices(weight, key, "stuck"),
        "compensation": draw_key(key, weight.path, "compensation"),
        "frozen_periphery": draw_key(key, weight.owner, "frozen_periphery"),
    }


def keys_of_read(weight: AnalogWeight, key: jax.Array) -> Keys:
    """Returns the keys of all draws in one read of a weight's crossbars.

    Args:
      weight: the plan of the array; its hardware has a converter.
      key: key of the read.
    """
    return {
        "read": _of_devices(weight, key, "read"),
        "compensation": draw_key(key, weight.path, "compensation"),
    }


def _of_devices(
    weight: AnalogWeight, key: jax.Array, effect: str
) -> tuple[jax.Array, ...]:
    parts = range(len(conductances.converter_of(weight).devices))
    return tuple(draw_key(key, weight.path, effect, part) for part in parts)


def program_weight(
    weight: AnalogWeight,
    kernel: jax.Array,
    scale: jax.Array | None,
    keys: Keys,
    bound: jax.Array | None = None,
) -> ProgrammedWeight:
    """Programs the crossbars of one weight; see `program_chip`.

    Args:
      weight: the plan of the array; its hardware has a converter.
      kernel: the stored array, nominal.
      scale: the stored mapping scale, if there is one.
      keys: the keys that `keys_of_chip` returned.
      bound: the learned clip bound, if there is one.
    """
    # In float32 whatever the model's dtype, as in an export.
    kernel = jnp.asarray(kernel, jnp.float32)
    wanted = written(weight, kernel, scale, bound)
    kernel = clipped(weight, kernel, bound)
    _, s = on_crossbar(weight, kernel, scale)
    target = weight.to_matrix(wanted / s)
    _, params = conductances.targets(weight, target)
    chip = deviated(weight, kernel, scale, keys["mismatch"], wanted) / s
    found = conductances.by_scale(weight, weight.to_matrix(chip), params)
    devices = tuple(
        _program_device(weight, weight.from_matrix(g), keys, part)
        for part, g in enumerate(found)
    )
    devices = _corrected(weight, devices, params, target, keys)
    return ProgrammedWeight(
        devices=devices, params=params, scale=s, target=target, keys=keys
    )


def _corrected(
    weight: AnalogWeight,
    devices: tuple[Programmed, ...],
    params: Params,
    target: jax.Array,
    keys: Keys,
) -> tuple[Programmed, ...]:
    """Returns the devices after their noise model has corrected their tiles."""
    model = weight.hardware.noise_model
    if model is None or not model.corrects:
        return devices
    if weight.own_leaves:
        names = ", ".join(leaf.name for leaf in weight.own_leaves)
        raise InputError(
            f"{weight.path}: {model.type!r} corrects devices by the outputs of their "
            f"tiles, but a stage reads the parameters {names}, which no chip has yet. "
            "Use the noise model within, or leave the stage out"
        )
    tiles = MeasuredTiles(
        weight=weight, params=params, target=target, frozen=keys["frozen_periphery"]
    )
    return model.correct(draw_key(keys["programming"][0], "", "tile"), devices, tiles)


def own_values(weight: AnalogWeight, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of users' parts beside a weight, by name.

    Args:
      weight: the plan of the array.
      leaves: the parameters by path.
    """
    return {x.name: leaves[weight.leaf(x)] for x in weight.own_leaves}


def weight_at(
    weight: AnalogWeight,
    programmed: ProgrammedWeight,
    t_s: ArrayLike,
    keys: Keys | None,
    leaves: Mapping[str, jax.Array] = {},  # noqa: B006 it is only read
) -> tuple[jax.Array, jax.Array | None]:
    """Returns one array of a chip at a given time, and its drift compensation.

    Args:
      weight: the plan of the array.
      programmed: its crossbars.
      t_s: time since programming, in seconds.
      keys: the keys that `keys_of_read` returned; `None` for a read without noise.
      leaves: the leaves that `own_values` returned.

    Returns:
      The stored array, float32, times the factors of the compensation; and the factors,
      `[*stack, row tiles, columns or column tiles]`, `None` without a compensation. See
      `ProgrammedChip.at`.
    """
    reads = [
        read_device(weight, device, t_s, None if keys is None else keys["read"][part])
        for part, device in enumerate(programmed.devices)
    ]
    w = weights_of(weight, reads, programmed.params)
    compensation = weight.hardware.drift_compensation
    if compensation is None:
        return weight.from_matrix(w) * programmed.scale, None
    fresh = [device.g_prog for device in programmed.devices]
    at_zero = weights_of(weight, fresh, programmed.params)
    now = None if keys is None else keys["compensation"]
    first, frozen = (programmed.keys[x] for x in ("compensation", "frozen_periphery"))
    respond = functools.partial(responses, weight, frozen=frozen, leaves=leaves)
    baseline = compensation.baseline(
        respond(at_zero, first),
        exact_responses(weight, programmed.target),
    )
    factor = compensation.factor(baseline, respond(w, now))
    if factor.ndim > w.ndim:  # one factor per column, padded to the largest tile
        factor = tiling.join(factor, weight.column_sizes, axis=-1)
    of_rows = tiling.expand_rows(weight.of_columns(factor), weight.row_sizes)
    return weight.from_matrix(w * of_rows) * programmed.scale, factor


def compensated(
    params: paths.Tree, plan: Plan, factors: Mapping[str, jax.Array | None]
) -> paths.Tree:
    r"""Multiplies a chip's mapping scales by the factors of the drift compensation.

    .. math:: s \to s\,\alpha

    Args:
      params: the chip's parameters.
      plan: the plan.
      factors: the factors that `weight_at` returned, by path of the weight.
    """
    scaled = {plan[p].leaf(MAPPING_SCALE): (plan[p], f) for p, f in factors.items()}

    def scale(path: str, leaf: jax.Array) -> jax.Array:
        weight, factor = scaled.get(path, (None, None))
        if weight is None or factor is None or not weight.hardware.converts:
            return leaf
        if leaf.shape[-1] not in (1, factor.shape[-1]):
            leaf, factor = weight.of_columns(leaf), weight.of_columns(factor)
        return leaf * factor

    return paths.map_leaves(scale, params)


@functools.lru_cache(maxsize=64)
def programmed_fields(hardware: Hardware) -> tuple[str, ...]:
    """Returns those of `PROGRAMMED` that are set for devices of a hardware.

    >>> from hwtrain import presets
    >>> programmed_fields(presets.pcm()), programmed_fields(Hardware())
    (('g_prog', 'nu'), ())
    """
    if not hardware.programs:
        return ()
    found = {"g_prog"} | ({"stuck"} if hardware.sticks else set())
    model = hardware.noise_model
    if model is not None:
        key, g = jax.random.key(0), jnp.ones(1)
        device = jax.eval_shape(lambda: programmed_by(model, key, g))
        found |= {name for name in PROGRAMMED if getattr(device, name) is not None}
    return tuple(name for name in PROGRAMMED if name in found)


def _program_device(
    weight: AnalogWeight, g_target: jax.Array, keys: Keys, part: int
) -> Programmed:
    """Programs device number `part` of the converter, for every weight."""
    model, stuck = weight.hardware.noise_model, weight.hardware.stuck
    device = Programmed(g_target=g_target, g_prog=g_target)
    if model is not None:
        device = programmed_by(model, keys["programming"][part], g_target)
    if stuck is None or not stuck.draws:
        return device
    states = stuck(keys["stuck"][part], g_target.shape)
    g_prog = with_stuck_devices(weight, device.g_prog, states)
    return dataclasses.replace(device, g_prog=g_prog, stuck=states)
