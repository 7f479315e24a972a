"""Qwen3: norms of each head's query and key."""

from dataclasses import replace

from loradesk_engine.architectures import qwen2
from loradesk_engine.architectures.architecture import Gguf, Names

ARCHITECTURE = replace(
    qwen2.ARCHITECTURE,
    model_type="qwen3",
    classes=("Qwen3ForCausalLM",),
    defaults={**qwen2.ARCHITECTURE.defaults, "head_dim": 128, "attention_bias": False},
    names=Names(q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    gguf=Gguf("qwen3", biases=True),
)
