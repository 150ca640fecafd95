"""Linen layers that stay digital, and layers that rewrite the weights of others."""

from flax import linen as nn

from hwtrain.sockets._table import add_rewriting, keep_digital

keep_digital(
    (nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm),
    "normalisation is digital",
)


keep_digital(
    (nn.MultiHeadDotProductAttention,),
    "its projections are layers of their own, its scores are digital",
)


add_rewriting((nn.WeightNorm, nn.SpectralNorm))
