"""Qwen2 and 2.5: biases on queries, keys and values."""

from loradesk_engine.architectures.architecture import COMMON_DEFAULTS, Architecture, Gguf, Windows

ARCHITECTURE = Architecture(
    model_type="qwen2",
    classes=("Qwen2ForCausalLM",),
    defaults={
        **COMMON_DEFAULTS,
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32_768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "eos_token_id": None,
    },
    qkv_bias=True,
    windows=Windows(mixed=True, switch="use_sliding_window", first="max_window_layers"),
    gguf=Gguf("qwen2", biases=True),
)
