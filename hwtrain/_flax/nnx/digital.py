"""NNX layers that stay digital, and layers that rewrite the weights of others."""

from flax import nnx

from hwtrain.sockets._table import add_rewriting, keep_digital

keep_digital(
    (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm),
    "normalisation is digital",
)


keep_digital(
    (nnx.MultiHeadAttention,),
    "its projections are layers of their own, its scores are digital",
)


add_rewriting((nnx.WeightNorm, nnx.SpectralNorm))
