"""The metadata of a GGUF file, read into the description of the decoder.

Keys and what they mean when they are absent are llama.cpp's (`llama-arch.cpp`, `llama-model.cpp`). A key that changes
the results and that the decoder does not follow is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from loradesk_engine.architectures.architecture import Architecture, Gguf, Windows
from loradesk_engine.errors import ConfigError, FileFormatError
from loradesk_engine.formats.config import ACTIVATIONS, ModelConfig, periodic_windows, token_ids
from loradesk_engine.formats.gguf_keys import Keys
from loradesk_engine.formats.gguf_rope import gguf_ropes
from loradesk_engine.ordering.modules import MAX_EXPERTS, linear_paths

WITHOUT_EFFECT: Mapping[str, Collection[Any]] = {
    "leading_dense_block_count": (0,),
    "use_parallel_residual": (False,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "expert_weights_norm": (True,),
    "expert_gating_func": (0, 1),  # 1: softmax
    "expert_group_scale": (0, 1),
    "moe_every_n_layers": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "moe_latent_size": (0,),
    "nextn_predict_layers": (0,),
    "n_deepstack_layers": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "router_logit_softcapping": (0,),
    "rescale_every_n_layers": (0,),
    "swin_norm": (False,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "activation_sparsity_scale": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.causal": (True,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attention.shared_kv_layers": (0,),
    "rope.dimension_sections": (0,),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
}
"""Keys that the decoder does not follow, and the values with which they change nothing."""
SAME = {
    "attention.value_length": "attention.key_length",
    "attention.key_length_swa": "attention.key_length",
    "attention.value_length_swa": "attention.key_length",
    "embedding_length_out": "embedding_length",
    "rope.dimension_count_swa": "rope.dimension_count",
}
"""Keys that the decoder does not follow, and others whose value they may have."""


def read_gguf_config(keys: Keys) -> ModelConfig:
    """The decoder that a file describes.

    Raises:
        ConfigError, FileFormatError: a key is missing, malformed or not supported; names file and key.
    """
    _refuse_unsupported(keys)
    family = _family(keys)
    gguf = family.gguf
    assert gguf is not None
    hidden = keys.integer("embedding_length", high=2**20)
    heads = keys.integer("attention.head_count", high=2**12)
    kv_heads = keys.integer("attention.head_count_kv", heads, high=2**12)
    if heads % kv_heads:
        raise keys.refuse("attention.head_count_kv", f"{heads} heads cannot share {kv_heads} key-value heads.")
    if keys.value("attention.key_length") is None and hidden % heads:
        raise keys.refuse("attention.head_count", f"{hidden} hidden values cannot be split over {heads} heads.")
    head_dim = keys.integer("attention.key_length", hidden // heads, high=2**12)
    layers = keys.integer("block_count", high=2**12)
    experts, experts_per_token = _experts(keys, family)
    rope, local_rope = gguf_ropes(keys, family.rope, head_dim)
    eps = "attention.layer_norm_epsilon" if family.norm == "layer" else "attention.layer_norm_rms_epsilon"
    return ModelConfig(
        architecture=family.classes[0],
        family=family,
        linear_paths=_linear_paths(keys, family, layers, experts),
        vocab_size=_vocabulary(keys),
        hidden_size=hidden,
        intermediate_size=keys.integer("feed_forward_length", high=2**22),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=keys.integer("context_length", high=2**26),
        norm_eps=keys.number(eps),
        activation=ACTIVATIONS[family.defaults[family.activation_key]],
        rope=rope,
        windows=_windows(keys, family, gguf, layers),
        attention_scale=_attention_scale(keys, family, gguf, hidden // heads, head_dim),
        norm_plus_one=False,  # the file holds such norms with the one added
        local_rope=local_rope,
        attention_cap=_cap(keys, "attn_logit_softcapping", family) if family.capped_attention else None,
        logits_cap=_cap(keys, "final_logit_softcapping", family) if family.capped_logits else None,
        qkv_bias=gguf.biases and keys.has("blk.0.attn_q.bias"),
        o_bias=gguf.biases and keys.has("blk.0.attn_output.bias"),
        mlp_bias=gguf.biases and keys.has("blk.0.ffn_up.bias"),
        lm_head_bias=family.lm_head_bias,
        experts=experts,
        experts_per_token=experts_per_token,
        embedding_scale=math.sqrt(hidden) if family.scaled_embedding else None,
        tie_embeddings=not keys.has("output.weight"),
        eos_token_ids=_ends(keys),
    )


def _family(keys: Keys) -> Architecture:
    """The family of the file's model: the metadata distinguishes those that llama.cpp calls by one name."""
    if len(keys.families) == 1:
        return keys.families[0]
    experts = bool(keys.value("expert_count", 0))
    window = keys.value("attention.sliding_window") not in (None, 0)
    found = [family for family in keys.families if (family.names.experts is not None) == experts]
    return next((family for family in found if (family.windows is not None) == window), found[0])


def _refuse_unsupported(keys: Keys) -> None:
    parts = keys.plain("split.count", 1)
    if parts not in (0, 1):  # llama-gguf-split leaves a 0 in what it merged
        raise ConfigError(
            f"The file is one of {parts} parts of a model.",
            file=keys.file.path,
            field="split.count",
            remedy="Merge the parts to one file with llama-gguf-split.",
        )
    neutral = dict(WITHOUT_EFFECT)
    if not any(family.names.experts is not None for family in keys.families):
        neutral["expert_count"] = (0,)
    if not any(family.capped_attention for family in keys.families):
        neutral["attn_logit_softcapping"] = (0,)
    if not any(family.capped_logits for family in keys.families):
        neutral["final_logit_softcapping"] = (0,)
    for key, allowed in neutral.items():
        for value in keys.every(key) or []:
            if value not in allowed:
                raise keys.refuse(key, f"{value!r} is not supported for the architecture {keys.architecture!r}.")
    head = keys.value("attention.key_length", _hidden_per_head(keys))
    for key, other in SAME.items():
        value, expected = keys.value(key), keys.value(other, head)
        if value is not None and value != expected:
            raise keys.refuse(key, f"{value!r} is not supported where {other} is {expected!r}.")
    theta = keys.value("rope.freq_base", 10_000.0)
    one_base = not any(family.rope.local_theta for family in keys.families)
    if one_base and keys.value("rope.freq_base_swa", theta) != theta:
        raise keys.refuse("rope.freq_base_swa", f"The architecture {keys.architecture!r} has one base for all layers.")


def _hidden_per_head(keys: Keys) -> int | None:
    """Hidden size / heads; None where the file does not hold them as numbers, which is refused later."""
    hidden, heads = keys.value("embedding_length"), keys.value("attention.head_count")
    return hidden // heads if type(hidden) is int and type(heads) is int and heads > 0 else None


def _vocabulary(keys: Keys) -> int:
    name, file = "token_embd.weight", keys.file.path
    embedding = keys.file.tensors.get(name)
    if embedding is None or len(embedding.shape) != 2:
        raise FileFormatError("The embedding is missing.", file=file, field=name)
    if not 1 <= embedding.shape[0] < 2**24:
        raise FileFormatError(f"A vocabulary of {embedding.shape[0]:,} is out of range.", file=file, field=name)
    return embedding.shape[0]


def _experts(keys: Keys, family: Architecture) -> tuple[int, int]:
    """How many experts there are, and how many of them serve a token; 0 and 0 without a mixture of experts."""
    if family.names.experts is None:
        return 0, 0
    experts = keys.integer("expert_count", high=MAX_EXPERTS + 1)
    chosen = keys.integer("expert_used_count", 2, high=2**12)
    if chosen > experts:
        raise keys.refuse("expert_used_count", f"{chosen} of {experts} experts cannot be chosen.")
    return experts, chosen


def _linear_paths(keys: Keys, family: Architecture, layers: int, experts: int) -> tuple[str, ...]:
    try:
        return linear_paths(family, layers, experts)
    except ConfigError as problem:
        raise keys.refuse("block_count", problem.problem, problem.remedy) from None


def _ends(keys: Keys) -> tuple[int, ...]:
    """The ids that end an answer."""
    ends: list[int] = []
    for name in ("eos", "eot", "eom"):
        key = f"tokenizer.ggml.{name}_token_id"
        default = 2 if name == "eos" and keys.plain("tokenizer.ggml.model") == "llama" else None
        ends += token_ids(keys.plain(key, default), keys.file.path, key)
    return tuple(ends)


def _attention_scale(keys: Keys, family: Architecture, gguf: Gguf, hidden_per_head: int, head_dim: int) -> float:
    """The factor of the products of queries and keys. Files do not hold Gemma 2's and 3's `query_pre_attn_scalar`."""
    given = keys.number("attention.scale", 0)
    if given < 0:
        raise keys.refuse("attention.scale", f"A number above 0 is expected, not {given!r}.")
    if given:
        return given
    if family.scale_key is None:
        return float(head_dim**-0.5)
    if keys.value("block_count") == gguf.wide_layers:
        return float(hidden_per_head**-0.5)
    return float(keys.integer("attention.key_length", family.defaults["head_dim"]) ** -0.5)


def _cap(keys: Keys, key: str, family: Architecture) -> float | None:
    """A soft cap. Where a file of the family need not have one, a 0 means none as well."""
    default = family.defaults[key]
    if default is None and keys.value(key) in (None, 0):
        return None
    return keys.positive(key, default)


def _windows(keys: Keys, family: Architecture, gguf: Gguf, layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer."""
    given = keys.value("attention.sliding_window", gguf.default_window)
    if given is None or given == 0:  # Phi-4's files say with a 0 that they have none
        return (None,) * layers
    which = family.windows
    if not gguf.windows or which is None:
        raise keys.refuse(
            "attention.sliding_window", f"A window is not supported for the architecture {keys.architecture!r}."
        )
    window = keys.integer("attention.sliding_window", gguf.default_window)
    key = "attention.sliding_window_pattern"
    pattern = keys.every(key)
    if pattern is not None and not which.mixed:
        raise keys.refuse(key, f"{keys.architecture!r} has a window on every layer.")
    if isinstance(keys.file.metadata.get(keys.name(key)), list | np.ndarray):
        if pattern is None or len(pattern) != layers:
            raise keys.refuse(key, f"A list of {layers} flags is expected.")
        return tuple(window if flag else None for flag in pattern)
    return periodic_windows(window, _period(keys, key, family, which), layers)


def _period(keys: Keys, key: str, family: Architecture, which: Windows) -> int | None:
    """Every how many layers one is without a window."""
    if isinstance(which.period, str):
        return keys.integer(key, family.defaults[which.period])
    if keys.value(key, which.period) != which.period:
        raise keys.refuse(key, f"{keys.value(key)!r} is not supported, only {which.period}.")
    return which.period
