"""Llama 2 and 3, and what else has their class: SmolLM2, TinyLlama, DeepSeek's distilled models."""

from loradesk_engine.architectures.architecture import COMMON_DEFAULTS, Architecture, Gguf

ARCHITECTURE = Architecture(
    model_type="llama",
    classes=("LlamaForCausalLM",),
    defaults={
        **COMMON_DEFAULTS,
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
    },
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    gguf=Gguf("llama", permuted=True, biases=True, windows=True),
)
