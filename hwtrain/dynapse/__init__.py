"""Mixed-signal neuromorphic chips: the DynapSim neuron and its export."""
