"""Phi-1, 1.5 and 2: attention and MLP side by side, biases everywhere."""

from loradesk_engine.architectures.architecture import COMMON_DEFAULTS, Architecture, Names, Rope

ARCHITECTURE = Architecture(
    model_type="phi",
    classes=("PhiForCausalLM",),
    defaults={
        **COMMON_DEFAULTS,
        "vocab_size": 51_200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
    },
    names=Names(
        attention_out="self_attn.dense",
        mlp_norm=None,
        mlp_in=("mlp.fc1",),
        mlp_out="mlp.fc2",
        final_norm="model.final_layernorm",
    ),
    norm="layer",
    norm_eps_key="layer_norm_eps",
    mlp="plain",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    lm_head_bias=True,
    rope=Rope(partial=True),
)
