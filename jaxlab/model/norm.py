"""LayerNorm and RMSNorm, chosen by the config, computed in float32."""

from flax import linen as nn


def norm(c, name: str) -> nn.Module:
    """The family's norm over the last axis, [..., d] -> [..., d]; statistics and output in float32."""
    if c.norm == "layer":
        return nn.LayerNorm(epsilon=c.norm_eps, use_bias=c.use_bias, name=name)
    return nn.RMSNorm(epsilon=c.norm_eps, name=name)
