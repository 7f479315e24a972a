"""Gemma 2: norms on both sides of attention and MLP, soft caps, a window on every other layer."""

from loradesk_engine.architectures.architecture import Architecture, Gguf, Names, Windows
from loradesk_engine.architectures.gemma import GEMMA_DEFAULTS

ARCHITECTURE = Architecture(
    model_type="gemma2",
    classes=("Gemma2ForCausalLM",),
    defaults={
        **GEMMA_DEFAULTS,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    names=Names(
        attention_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        out_norm="post_feedforward_layernorm",
    ),
    norm_plus_one=True,
    activation_key="hidden_activation",
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    scale_key="query_pre_attn_scalar",
    scaled_embedding=True,
    capped_attention=True,
    capped_logits=("Gemma2ForCausalLM",),
    windows=Windows(mixed=True, period=2),
    gguf=Gguf("gemma2", windows=True, default_window=4096, wide_layers=46),
)
