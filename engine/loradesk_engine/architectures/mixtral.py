"""Mixtral: Mistral with a mixture of experts.

The experts carry the names that they have on the hub and in classic transformers. transformers 5 fuses them into two
parameters without linears; existing adapters and ordering files have the names below.
"""

from dataclasses import replace

from loradesk_engine.architectures import mistral
from loradesk_engine.architectures.architecture import Experts, Names

_EXPERTS = Experts(
    router="block_sparse_moe.gate",
    folder="block_sparse_moe.experts",
    gate="w1",
    up="w3",
    down="w2",
    order=("w1", "w2", "w3"),
)
ARCHITECTURE = replace(
    mistral.ARCHITECTURE,
    model_type="mixtral",
    classes=("MixtralForCausalLM",),
    defaults={
        **mistral.ARCHITECTURE.defaults,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    mlp="experts",
    names=Names(experts=_EXPERTS),
)
