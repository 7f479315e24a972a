"""Gemma 3: the text model, alone or in the models that also see images."""

from dataclasses import replace

from loradesk_engine.architectures import gemma2
from loradesk_engine.architectures.architecture import Gguf, Rope, Windows

_DEFAULTS = {
    **gemma2.ARCHITECTURE.defaults,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
}
del _DEFAULTS["attn_logit_softcapping"]  # the class ignores it

ARCHITECTURE = replace(
    gemma2.ARCHITECTURE,
    model_type="gemma3_text",
    classes=("Gemma3ForCausalLM",),
    image_classes=("Gemma3ForConditionalGeneration",),
    defaults=_DEFAULTS,
    names=replace(gemma2.ARCHITECTURE.names, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
    capped_attention=False,
    capped_logits=("Gemma3ForCausalLM",),  # transformers leaves it out with images
    windows=Windows(mixed=True, period="sliding_window_pattern"),
    rope=Rope(local_theta="rope_local_base_freq"),
    gguf=Gguf("gemma3", windows=True, wide_layers=62),
)
