"""Mistral 7B and its successors of the same class."""

from loradesk_engine.architectures import llama
from loradesk_engine.architectures.architecture import COMMON_DEFAULTS, Architecture, Windows

ARCHITECTURE = Architecture(
    model_type="mistral",
    classes=("MistralForCausalLM",),
    defaults={
        **COMMON_DEFAULTS,
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    windows=Windows(),
    gguf=llama.ARCHITECTURE.gguf,
)
