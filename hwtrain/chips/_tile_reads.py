"""Reads of a weight's crossbars: of devices, and of tiles through their periphery."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hwtrain._arrays import tiling
from hwtrain._arrays.random import fold_in
from hwtrain._plan.weight import AnalogWeight
from hwtrain.chips import _conductances as conductances
from hwtrain.chips._device_shapes import read_by
from hwtrain.chips._mismatched import frozen_periphery
from hwtrain.devices._conversion import Params
from hwtrain.devices._programmed import Programmed
from hwtrain.devices.stuck import with_stuck
from hwtrain.periphery._read_keys import read_keys
from hwtrain.periphery.mvm import tile_outputs, tile_responses


def read_device(
    weight: AnalogWeight,
    device: Programmed,
    t_s: ArrayLike,
    key: jax.Array | None,
) -> jax.Array:
    """Returns one device of every weight as read, in µS.

    Args:
      weight: the plan of the array.
      device: the devices, of the stored shape.
      t_s: time since programming, in seconds.
      key: key of the read; `None` for a read without noise.
    """
    model = weight.hardware.noise_model
    if model is None:
        return device.g_prog
    g = read_by(model, device, t_s, key)
    return g if device.stuck is None else with_stuck_devices(weight, g, device.stuck)


def with_stuck_devices(
    weight: AnalogWeight, g: jax.Array, states: jax.Array
) -> jax.Array:
    """Returns conductances in µS with those of stuck devices at their ends.

    Args:
      weight: the plan of the array.
      g: conductances, in µS.
      states: states of the devices, as in `hwtrain.devices.stuck`.
    """
    converter = conductances.converter_of(weight)
    return with_stuck(g, states, g_min=converter.g_min, g_max=converter.g_max)


def weights_of(
    weight: AnalogWeight, stored: Sequence[jax.Array], params: Params
) -> jax.Array:
    """Returns the weights that conductances hold, `[*stack, rows, columns]`.

    Args:
      weight: the plan of the array.
      stored: conductances of the stored shape for each device, in µS.
      params: the parameters of the nominal weights' conversion.
    """
    matrices = [weight.to_matrix(g) for g in stored]
    return conductances.back_to_weights(weight, matrices, params)


def responses(
    weight: AnalogWeight,
    w: jax.Array,
    key: jax.Array | None,
    *,
    frozen: jax.Array,
    leaves: Mapping[str, jax.Array],
) -> jax.Array:
    """Returns the responses of each tile to its rows driven by 1, one at a time.

    Padding adds zeros to the response now and to the baseline alike, so that their
    ratio is that of the tile.

    Args:
      weight: the plan of the array.
      w: `[*stack, rows, columns]`, in units of the crossbar.
      key: key of this read of the periphery; `None` for a read without noise.
      frozen: key of the frozen properties of the periphery.
      leaves: the leaves of users' stages by name, `[*stack, ...]`.

    Returns:
      `[*stack, row tiles, column tiles, rows, columns]`.
    """
    chip, compensation = weight.hardware, weight.hardware.drift_compensation
    if compensation is None or compensation.readout == "exact" or not chip.converts:
        return exact_responses(weight, w)
    return _of_each(weight, tile_responses, (w,), key, frozen, leaves)


def outputs(
    weight: AnalogWeight,
    w: jax.Array,
    inputs: jax.Array,
    key: jax.Array | None,
    *,
    frozen: jax.Array,
) -> jax.Array:
    """Returns the outputs of each tile, through its periphery if it has one.

    Args:
      weight: the plan of the array; its stages have no leaves.
      w: `[*stack, rows, columns]`, in units of the crossbar.
      inputs: `[*stack, batch, row tiles, rows]`, normalised.
      key: key of this read of the periphery; `None` for a read without noise.
      frozen: key of the frozen properties of the periphery.

    Returns:
      `[*stack, batch, row tiles, column tiles, columns]`, in units of the crossbar.
    """
    return _of_each(weight, tile_outputs, (w, inputs), key, frozen, {})


def _of_each(
    weight: AnalogWeight,
    function: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    key: jax.Array | None,
    frozen: jax.Array,
    leaves: Mapping[str, jax.Array],
) -> jax.Array:
    """Calls a function of one matrix on tiles for each matrix of a stack."""
    chip, depth = weight.hardware, len(weight.stack)
    sizes = {"row_sizes": weight.row_sizes, "column_sizes": weight.column_sizes}
    of_chip = frozen_periphery(weight, frozen).reshape(-1, 2)

    def of_one(
        number: jax.Array, chip_key: jax.Array, leaves: Any, *arrays: jax.Array
    ) -> jax.Array:
        keys = None if key is None else read_keys(fold_in(key, number))
        chip_key = jax.random.wrap_key_data(chip_key, impl="threefry2x32")
        return function(
            *arrays, chip.stages, leaves=leaves, keys=keys, chip_key=chip_key, **sizes
        )

    flat = [x.reshape(-1, *x.shape[depth:]) for x in arrays]
    each = {k: x.reshape(-1, *x.shape[depth:]) for k, x in leaves.items()}
    found = jax.vmap(of_one)(jnp.arange(len(flat[0])), of_chip, each, *flat)
    return found.reshape(*weight.stack, *found.shape[1:])


def exact_responses(weight: AnalogWeight, w: jax.Array) -> jax.Array:
    """Returns the responses of each tile without a periphery: its weights."""
    columns = tiling.cut(w, weight.column_sizes, -1)
    tiles = tiling.cut(columns, weight.row_sizes, -3)
    return jnp.swapaxes(tiles, -3, -2)
