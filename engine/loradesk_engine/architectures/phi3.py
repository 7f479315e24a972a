"""Phi-3, 3.5 and 4-mini: fused linears, longrope."""

from loradesk_engine.architectures.architecture import COMMON_DEFAULTS, Architecture, Gguf, Names, Rope, Windows

ARCHITECTURE = Architecture(
    model_type="phi3",
    classes=("Phi3ForCausalLM",),
    defaults={
        **COMMON_DEFAULTS,
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
        "eos_token_id": 32_000,
        "sliding_window": None,
    },
    names=Names(qkv=("self_attn.qkv_proj",), mlp_in=("mlp.gate_up_proj",)),
    order=("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    quantized=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.gate_up_proj"),
    mlp="fused",
    windows=Windows(),
    rope=Rope(partial=True, yarn_is_longrope=True),
    gguf=Gguf("phi3", windows=True),
)
