"""StarCoder2: layer norms with biases, an MLP without a gate."""

from loradesk_engine.architectures.architecture import COMMON_DEFAULTS, Architecture, Gguf, Names, Windows

ARCHITECTURE = Architecture(
    model_type="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    defaults={
        **COMMON_DEFAULTS,
        "vocab_size": 49_152,
        "hidden_size": 3072,
        "intermediate_size": 12_288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "sliding_window": None,
        "use_bias": True,
        "eos_token_id": 50_256,
        "tie_word_embeddings": True,
    },
    names=Names(mlp_in=("mlp.c_fc",), mlp_out="mlp.c_proj"),
    norm="layer",
    norm_eps_key="norm_epsilon",
    mlp="plain",
    qkv_bias="use_bias",
    o_bias="use_bias",
    mlp_bias="use_bias",
    windows=Windows(),
    gguf=Gguf("starcoder2", biases=True, windows=True),
)
