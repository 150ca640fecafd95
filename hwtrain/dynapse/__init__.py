"""Mixed-signal neuromorphic chips: the DynapSim neuron and its export."""

from hwtrain.dynapse.layout import Layout as Layout
from hwtrain.dynapse.layout import currents as currents
from hwtrain.dynapse.layout import logarithms as logarithms
from hwtrain.dynapse.linen import DynapSim as DynapSim
from hwtrain.dynapse.nnx import NnxDynapSim as NnxDynapSim
from hwtrain.physics.dynapsim import NeuronState as NeuronState
