"""The metadata of a GGUF file as the config.json that Hugging Face would have written, and the decoder it describes.

Keys and what they mean when they are absent are llama.cpp's (`llama-arch.cpp`, `llama-model.cpp`). A key that changes
the results and that the decoder does not follow is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from loradesk_engine.errors import ConfigError, FileFormatError
from loradesk_engine.files import finite_number
from loradesk_engine.formats.config import ModelConfig, parse_config
from loradesk_engine.formats.gguf_keys import ARCHITECTURES, Keys
from loradesk_engine.formats.gguf_rope import gguf_rope

RENAMED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
}
"""Hugging Face's names -> those after the architecture's, for values that both have."""
ELSEWHERE = {
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "layer_types": "attention.sliding_window_pattern",
    "query_pre_attn_scalar": "attention.key_length",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope_theta": "rope.freq_base",
    "partial_rotary_factor": "rope.dimension_count",
    "rope_parameters": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "attention_factor": "rope.scaling.attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
"""The same for what is worked out from other values, to name the file's key in errors."""
TENSORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}

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
WINDOWED = ("gemma2", "gemma3", "phi3", "starcoder2", "llama")


def read_gguf_config(keys: Keys) -> tuple[dict[str, Any], ModelConfig]:
    """What config.json would say, for the ordering file's check, and the decoder.

    Raises:
        ConfigError, FileFormatError: a key is missing, malformed or not supported; names file and key.
    """
    _refuse_unsupported(keys)
    values = _values(keys)
    try:
        config = parse_config(values, keys.file.path)
    except ConfigError as problem:
        raise _named(problem, keys) from None
    config = replace(config, norm_plus_one=False)  # a GGUF file holds Gemma's norms with the one added
    if keys.architecture in ("llama", "qwen2", "qwen3"):  # each bias by itself, where Hugging Face has one switch
        config = replace(
            config,
            qkv_bias=keys.has("blk.0.attn_q.bias"),
            o_bias=keys.has("blk.0.attn_output.bias"),
            mlp_bias=keys.has("blk.0.ffn_up.bias"),
        )
    scale = keys.value("attention.scale", 0)
    if scale != 0:
        found = finite_number(scale)
        if found is None or found < 0:
            raise keys.refuse("attention.scale", f"A number above 0 is expected, not {scale!r}.")
        config = replace(config, attention_scale=found)
    return {key: value for key, value in values.items() if value is not None}, config


def _named(problem: ConfigError, keys: Keys) -> ConfigError:
    """An error about config.json as one about the file: with the name that its key has there."""
    field = problem.field or ""
    key = RENAMED.get(field, ELSEWHERE.get(field))
    if key is not None:
        field = keys.name(key)
    elif field == "eos_token_id":
        field = f"tokenizer.ggml.{field}"
    else:
        field = TENSORS.get(field, "token_embd.weight" if field == "vocab_size" else field)
    return ConfigError(problem.problem, file=problem.file, field=field or "header", remedy=problem.remedy)


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
    if keys.architecture != "llama":
        neutral["expert_count"] = (0,)
    if keys.architecture != "gemma2":
        neutral["attn_logit_softcapping"] = (0,)
    if keys.architecture not in ("gemma2", "gemma3"):
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
    if keys.architecture != "gemma3" and keys.value("rope.freq_base_swa", theta) != theta:
        raise keys.refuse("rope.freq_base_swa", f"The architecture {keys.architecture!r} has one base for all layers.")


def _values(keys: Keys) -> dict[str, Any]:
    """config.json as Hugging Face would write it; `parse_config` checks the values. What the file lacks is null, not
    left out: the defaults of Hugging Face's classes are not llama.cpp's.
    """
    embedding = keys.file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FileFormatError("The embedding is missing.", file=keys.file.path, field="token_embd.weight")
    pieces = keys.plain("tokenizer.ggml.model") == "llama"
    ends = (("eos", 2 if pieces else None), ("eot", None), ("eom", None))
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[keys.architecture]],
        "_name_or_path": keys.plain("general.basename"),
        "vocab_size": embedding.shape[0],
        **{name: keys.value(key) for name, key in RENAMED.items()},
        "tie_word_embeddings": not keys.has("output.weight"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "use_bias": keys.has("blk.0.ffn_up.bias"),
        "eos_token_id": [token for end in ends if (token := _token(keys, *end)) is not None],
        **gguf_rope(keys, _hidden_per_head(keys)),
        **_windows(keys),
    }
    if keys.architecture == "llama":
        experts = keys.value("expert_count", 0)
        if experts:
            values |= {"num_local_experts": experts, "num_experts_per_tok": keys.value("expert_used_count", 2)}
        if experts or values["sliding_window"] is not None:
            values["architectures"] = ["MixtralForCausalLM" if experts else "MistralForCausalLM"]
    if keys.architecture.startswith("gemma"):
        values |= {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
    if keys.architecture == "starcoder2":
        values["hidden_act"] = "gelu_pytorch_tanh"
    if keys.architecture == "gemma2":
        values |= {
            "attn_logit_softcapping": keys.value("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": keys.value("final_logit_softcapping", 30.0),
        }
    if keys.architecture == "gemma3":
        values["final_logit_softcapping"] = keys.value("final_logit_softcapping") or None
    if keys.architecture in ("gemma2", "gemma3"):
        values["query_pre_attn_scalar"] = _scalar(keys)
    return values


def _token(keys: Keys, name: str, default: int | None) -> Any:
    return keys.plain(f"tokenizer.ggml.{name}_token_id", default)


def _hidden_per_head(keys: Keys) -> int | None:
    """Hidden size / heads; None where the file does not hold them as numbers, which the config's check tells."""
    hidden, heads = keys.value("embedding_length"), keys.value("attention.head_count")
    return hidden // heads if type(hidden) is int and type(heads) is int and heads > 0 else None


def _scalar(keys: Keys) -> Any:
    """Gemma 2's and 3's `query_pre_attn_scalar`, which files do not hold: the 27B models, known by their layers, divide
    by hidden size / heads, the others by the head's size."""
    if keys.value("block_count") == {"gemma2": 46, "gemma3": 62}[keys.architecture]:
        return _hidden_per_head(keys)
    return keys.value("attention.key_length", 256)


def _windows(keys: Keys) -> dict[str, Any]:
    """`sliding_window`, and which layers have it where the architecture mixes them."""
    gemma2 = keys.architecture == "gemma2"
    window = keys.value("attention.sliding_window", 4096 if gemma2 else None)
    if window is None or window == 0:  # Phi-4's files say with a 0 that they have none
        return {"sliding_window": None}
    if keys.architecture not in WINDOWED:
        raise keys.refuse(
            "attention.sliding_window", f"A window is not supported for the architecture {keys.architecture!r}."
        )
    pattern = keys.every("attention.sliding_window_pattern")
    if pattern is None:
        return {"sliding_window": window}
    if keys.architecture not in ("gemma2", "gemma3"):
        raise keys.refuse("attention.sliding_window_pattern", f"{keys.architecture!r} has a window on every layer.")
    if isinstance(keys.file.metadata[keys.name("attention.sliding_window_pattern")], list | np.ndarray):
        kinds = ["sliding_attention" if flag else "full_attention" for flag in pattern]  # one for each layer
        return {"sliding_window": window, "layer_types": kinds}
    if gemma2 and pattern != [2]:
        raise keys.refuse("attention.sliding_window_pattern", f"{pattern[0]!r} is not supported, 2 is.")
    return {"sliding_window": window, "sliding_window_pattern": pattern[0]}
