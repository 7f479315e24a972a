"""A config.json for peers that read no GGUF metadata, from the engine's own description of the decoder."""

from __future__ import annotations

from typing import Any

from loradesk_engine.formats.config import ACTIVATIONS, ModelConfig


def config_json(config: ModelConfig) -> dict[str, Any]:
    """The sizes of a decoder under the keys of config.json. It is enough for speed: the rope is the default one."""
    family = config.family
    values: dict[str, Any] = {
        "architectures": [config.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope.theta,
        "sliding_window": next((window for window in config.windows if window is not None), None),
        "tie_word_embeddings": config.tie_embeddings,
        family.norm_eps_key: config.norm_eps,
        family.activation_key: next(name for name, kind in ACTIVATIONS.items() if kind == config.activation),
    }
    biases = ((config.qkv_bias, family.qkv_bias), (config.o_bias, family.o_bias), (config.mlp_bias, family.mlp_bias))
    values |= {key: bias for bias, key in biases if isinstance(key, str)}
    if config.experts:
        values |= {"num_local_experts": config.experts, "num_experts_per_tok": config.experts_per_token}
    return values
