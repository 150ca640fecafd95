"""What surrounds a tile, in the units that the matrix multiplication computes in."""

import dataclasses

import jax
import numpy as np

from hwtrain.physics.converters import Converter
from hwtrain.physics.ir_drop import G_RATIO
from hwtrain.physics.management import Management
from hwtrain.physics.random import draw_name, fold_in, stable_hash

READ_EFFECTS = (
    "input_noise",
    "input_stochastic_rounding",
    "weight_noise",
    "read",
    "output_noise",
    "output_stochastic_rounding",
)
"""What is drawn at a read; `"weight_noise"` is that of weights drawn in the layer."""

_NAMES = np.array(
    [stable_hash(draw_name("", name)) for name in READ_EFFECTS], np.uint32
)


def read_keys(key: jax.Array) -> jax.Array:
    """Returns the keys of a read: of every effect, the key of its draw.

    >>> keys = read_keys(jax.random.split(jax.random.key(0), 5))
    >>> keys.shape == (5, len(READ_EFFECTS))
    True

    Args:
      key: JAX keys, of any shape.

    Returns:
      JAX keys, with an axis of `READ_EFFECTS` at the end.
    """
    return fold_in(key[..., None], _NAMES)


def effect_key(keys: jax.Array, effect: str) -> jax.Array:
    """Returns the key of one effect, out of those of a read."""
    return keys[..., READ_EFFECTS.index(effect)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Periphery:
    """The periphery of a tile; `Periphery()` is ideal.

    All values are in normalised units: inputs divided by the input range and the
    management's scale, weights by the mapping scale.

    >>> Periphery().dac.step is None
    True

    Attributes:
      dac: the converter of the inputs.
      inp_noise: standard deviation of the noise on the inputs, after the DAC.
      inp_asymmetry: share by which negative inputs are weaker.
      adc: the converter of the outputs.
      out_noise: standard deviation of the noise on the outputs, before the ADC.
      out_noise_std: its spread over the outputs of a chip, relative.
      out_asymmetry: share by which negative outputs are weaker.
      out_scale: factor on the outputs after the ADC.
      out_nonlinearity: strength of the outputs' saturation.
      out_nonlinearity_std: its spread over the outputs of a chip, relative.
      slope_calibration: calibration of the saturated outputs' slope.
      w_noise: strength of the read noise of the weights.
      w_noise_type: `"none"`, `"additive_constant"` or `"pcm_read"`.
      ir_drop: strength of the IR drop.
      ir_drop_g_ratio: conductance of the wire over the largest of a device.
      r_series: series resistance.
      v_offset_std: spread of the voltage offset over the outputs of a chip.
      v_offset_w_min: the weight of a device that is off.
      management: the scales around the tile.
    """

    dac: Converter = Converter()
    inp_noise: float = 0.0
    inp_asymmetry: float = 0.0
    adc: Converter = Converter()
    out_noise: float = 0.0
    out_noise_std: float = 0.0
    out_asymmetry: float = 0.0
    out_scale: float = 1.0
    out_nonlinearity: float = 0.0
    out_nonlinearity_std: float = 0.0
    slope_calibration: float = 0.0
    w_noise: float = 0.0
    w_noise_type: str = "none"
    ir_drop: float = 0.0
    ir_drop_g_ratio: float = G_RATIO
    r_series: float = 0.0
    v_offset_std: float = 0.0
    v_offset_w_min: float = -1.0
    management: Management = Management()

    @property
    def offsets(self) -> bool:
        """Whether outputs are read at an offset or through a series resistance."""
        return self.v_offset_std > 0 or self.r_series > 0
