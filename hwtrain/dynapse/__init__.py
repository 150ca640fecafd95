"""Mixed-signal neuromorphic chips: the DynapSim neuron, its mismatch, its export."""

from hwtrain.dynapse._biases import computed_table as computed_table
from hwtrain.dynapse._deployed import deploy_layers as deploy_layers
from hwtrain.dynapse._deployed import deployed_layers as deployed_layers
from hwtrain.dynapse._deployment import Deployment as Deployment
from hwtrain.dynapse._generator import MismatchGenerator as MismatchGenerator
from hwtrain.dynapse._generator import mismatch_generator as mismatch_generator
from hwtrain.dynapse._layout import Layout as Layout
from hwtrain.dynapse._layout import currents as currents
from hwtrain.dynapse._layout import logarithms as logarithms
from hwtrain.dynapse._linen import DynapSim as DynapSim
from hwtrain.dynapse._neuron import NeuronState as NeuronState
from hwtrain.dynapse._nnx import NnxDynapSim as NnxDynapSim
from hwtrain.dynapse._prototypes import (
    dynamic_mismatch_prototype as dynamic_mismatch_prototype,
)
from hwtrain.dynapse._prototypes import (
    frozen_mismatch_prototype as frozen_mismatch_prototype,
)
from hwtrain.dynapse._prototypes import select as select
from hwtrain.dynapse._spatial import SpatialCorrelation as SpatialCorrelation
from hwtrain.dynapse._with_mismatch import with_mismatch as with_mismatch
from hwtrain.weights.noise_current import shot_noise_density as shot_noise_density
