"""DynapSim as an NNX recurrent cell."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hwtrain._plan.quantities import NODE_LEAVES
from hwtrain.dynapse._cell import advance, check_trainable
from hwtrain.dynapse._layout import Layout, quantity_names
from hwtrain.dynapse._neuron import NeuronState, resting_state


class NnxDynapSim(nnx.RNNCellBase):
    """Mixed-signal spiking neurons of a DynapSE2-like chip, for `nnx.RNN`.

    It has the same neurons and parameters as the Linen `DynapSim`.

    >>> layer = nnx.RNN(NnxDynapSim(3, rngs=nnx.Rngs(0)), return_carry=True)
    >>> state, spikes = layer(jnp.full((2, 20, 3), 4.0))
    >>> spikes.shape
    (2, 20, 3)

    Args:
      features: number of neurons N.
      layout: nominal quantities.
      dt_s: length of a step, s.
      trainable: names of the quantities that are trained; the others get no gradient.
      recurrent: whether the neurons are connected with each other.
      reference: compute as Rockpool does, instead of with the corrected physics.
      recurrent_init: initialiser of `w_rec`; by default LeCun's normal one.
      rngs: the stream `params` initialises `w_rec`.

    Raises:
      ValueError: for a name in `trainable` that is not a quantity.
    """

    _hwtrain_capacitances = NODE_LEAVES

    def __init__(
        self,
        features: int,
        *,
        layout: Layout | None = None,
        dt_s: float = 1e-3,
        trainable: tuple[str, ...] = (),
        recurrent: bool = True,
        reference: bool = False,
        recurrent_init: Any = None,
        rngs: nnx.Rngs,
    ):
        check_trainable(trainable, reference=reference)
        self.features = features
        self.layout = layout or Layout()
        self.dt_s = dt_s
        self.trainable = trainable
        self.reference = reference
        for name in quantity_names(reference=reference):
            setattr(self, f"log_{name}", nnx.Param(jnp.zeros(features)))
        init = recurrent_init or nnx.initializers.lecun_normal()
        self.w_rec = (
            nnx.Param(init(rngs.params(), (features, features))) if recurrent else None
        )

    def __call__(
        self, carry: NeuronState, inputs: jax.Array
    ) -> tuple[NeuronState, jax.Array]:
        """Returns the new state and the spikes, `[..., features]`."""
        logs = {
            f"log_{name}": getattr(self, f"log_{name}")[...]
            for name in quantity_names(reference=self.reference)
        }
        return advance(
            carry,
            inputs,
            logs,
            None if self.w_rec is None else self.w_rec[...],
            layout=self.layout,
            trainable=self.trainable,
            dt_s=self.dt_s,
            reference=self.reference,
            leaf=self._array,
            path=self._path,
        )

    def _array(self, name: str) -> jax.Array | None:
        variable = getattr(self, name, None)
        return None if variable is None else variable[...]

    def _path(self, name: str) -> str:
        named = {
            weight.array: weight.path for weight in getattr(self, "analog_raw", ())
        }
        return named.get(name, name)

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> NeuronState:
        """Returns neurons at rest. Nothing is drawn."""
        return resting_state((*input_shape[:-1], self.features), self.layout.Io)

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of the inputs that are features: 1."""
        return 1
