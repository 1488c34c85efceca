"""FLOPs of the decoder, counted from its shape, and the peak FLOP/s of devices.

A product of [m, k] and [k, n] counts 2mkn. Attention counts the full square of positions, not the causal half, so a
kernel that skips the upper half shows a higher utilisation. Only matrix products are counted, as is usual for model
FLOPs utilisation (MFU): recomputation, norms, softmax, activation functions and the optimiser are left out. At d_model
256 XLA's count of the unrolled model, which includes the elementwise operations of forward and backward pass, is 0.7 %
(LLaMA) to 1.4 % (Chinchilla) higher; the difference falls as the model gets wider.
"""

from jaxlab.model.families import parameters

# Dense bf16 FLOP/s of one device, by `device_kind`; vendors' data sheets.
PEAK = {
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
}


def forward_per_token(m, context: int) -> dict[str, int]:
    """FLOPs of the forward pass for one token, by part; m: keys of `config.model`, context: tokens in a sequence."""
    count = parameters(m)
    return {
        "linears": 2 * (count["block_matrices"] - count["total"] + count["active"]),
        "attention": 4 * context * m.num_heads * m.head_dim * m.num_layers,
        "head": 2 * m.vocab_size * m.d_model,
    }


def training_per_token(m, context: int) -> int:
    """FLOPs of training on one token: the forward pass, and twice that for the backward pass."""
    return 3 * sum(forward_per_token(m, context).values())


def peak(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of a device, by the longest name in PEAK with which `device_kind` begins; else None."""
    names = [name for name in PEAK if device_kind.startswith(name)]
    return PEAK[max(names, key=len)] if names else None
