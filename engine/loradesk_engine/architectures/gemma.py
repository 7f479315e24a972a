"""Gemma 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loradesk_engine.architectures.architecture import COMMON_DEFAULTS, Architecture, Gguf

GEMMA_DEFAULTS: Mapping[str, Any] = {
    **COMMON_DEFAULTS,
    "vocab_size": 256_000,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "attention_bias": False,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}


class Gemma(Architecture):
    """Gemma 1, whose first configs name another activation than the model was trained with."""

    def activation(self, values: Mapping[str, Any]) -> Any:
        """The first configs say "gelu" and mean the approximation; later ones have a second key for what they mean."""
        name = values.get("hidden_act")
        return values.get("hidden_activation") or ("gelu_pytorch_tanh" if name == "gelu" else name)


ARCHITECTURE = Gemma(
    model_type="gemma",
    classes=("GemmaForCausalLM",),
    defaults={
        **GEMMA_DEFAULTS,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
    },
    norm_plus_one=True,
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    scaled_embedding=True,
    gguf=Gguf("gemma"),
)
