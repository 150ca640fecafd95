"""DynapSim as a Linen recurrent cell."""

from typing import Any

import jax
from flax import linen as nn
from flax.core import meta

from hwtrain._arrays import paths
from hwtrain._plan.quantities import NODE_LEAVES
from hwtrain.dynapse._cell import advance, check_trainable
from hwtrain.dynapse._layout import Layout, quantity_names
from hwtrain.dynapse._neuron import NeuronState, resting_state


class DynapSim(nn.RNNCellBase):
    """Mixed-signal spiking neurons of a DynapSE2-like chip, for `nn.RNN` or `nn.scan`.

    A step takes weighted input spikes, `[..., features]`, and returns spikes of that
    shape; see `hwtrain.dynapse._neuron.step` for the equations. `params` holds `w_rec`,
    `[features, features]`, and for every current, capacitance and constant a leaf
    `log_NAME`, `[features]`: the logarithm of its ratio to the nominal value, initially
    zero. So mismatch, decay and update steps are relative to nominal values.

    >>> import jax, jax.numpy as jnp
    >>> layer = nn.RNN(DynapSim(features=3), return_carry=True)
    >>> x = jnp.full((2, 20, 3), 4.0)
    >>> variables = layer.init(jax.random.key(0), x)
    >>> state, first = layer.apply(variables, x)
    >>> state, second = layer.apply(variables, x, initial_carry=state)
    >>> first.shape, bool((second > 0).any())
    ((2, 20, 3), True)

    Attributes:
      features: number of neurons N.
      layout: nominal quantities.
      dt_s: length of a step, s.
      trainable: names of the quantities that are trained; the others get no gradient.
      recurrent: whether the neurons are connected with each other.
      reference: compute as Rockpool does, instead of with the corrected physics.
      recurrent_init: initialiser of `w_rec`; by default LeCun's normal one.
    """

    features: int
    layout: Layout = Layout()
    dt_s: float = 1e-3
    trainable: tuple[str, ...] = ()
    recurrent: bool = True
    reference: bool = False
    recurrent_init: Any = None

    _hwtrain_capacitances = NODE_LEAVES

    @nn.compact
    def __call__(
        self, carry: NeuronState, inputs: jax.Array
    ) -> tuple[NeuronState, jax.Array]:
        """Returns the new state and the spikes, `[..., features]`.

        Raises:
          ValueError: for inputs of another width, or a name in `trainable` that is not
            a quantity.
        """
        check_trainable(self.trainable, reference=self.reference)
        size = (self.features,)
        logs = {
            f"log_{name}": self.param(f"log_{name}", nn.initializers.zeros, size)
            for name in quantity_names(reference=self.reference)
        }
        w_rec = None
        if self.recurrent:
            init = self.recurrent_init or nn.initializers.lecun_normal()
            w_rec = self.param("w_rec", init, (*size, *size))
        return advance(
            carry,
            inputs,
            logs,
            w_rec,
            layout=self.layout,
            trainable=self.trainable,
            dt_s=self.dt_s,
            reference=self.reference,
            leaf=lambda name: meta.unbox(self.variables["params"].get(name)),
            path=lambda name: paths.join([*self.path, name]),
        )

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> NeuronState:
        """Returns neurons at rest. Nothing is drawn from `rng`."""
        return resting_state((*input_shape[:-1], self.features), self.layout.Io)

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of the inputs that are features: 1."""
        return 1
