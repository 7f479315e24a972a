"""config.json of a model, read into one frozen description of the decoder.

Every feature is a field that defaults to off, so that one decoder serves all architectures. A value that the decoder
does not know is refused by name, never ignored. Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`)
and transformers 5 (`rope_parameters`, `layer_types`). A key that is left out means what it means there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from loradesk_engine.errors import ConfigError
from loradesk_engine.files import read_json_object
from loradesk_engine.formats.bnb import BnbConfig, read_bnb_config
from loradesk_engine.formats.defaults import DEFAULTS
from loradesk_engine.formats.fields import Fields
from loradesk_engine.formats.rope import RopeConfig, read_ropes
from loradesk_engine.ordering.modules import ARCHITECTURES, linear_modules, text_part

T = TypeVar("T")
MlpType = Literal["gated", "fused", "plain", "experts"]


@dataclass(frozen=True)
class ModelConfig:
    """The decoder of a model.

    Attributes:
        architecture: first of `architectures`, as Hugging Face names the class.
        linear_paths: every linear in the order in which that class registers them, `lm_head` last.
        norm: root mean square, or layer norm with a bias.
        norm_plus_one: the norms' weights are stored less one (Gemma).
        rope: of the layers that see everything; `local_rope` of those with a window where they differ (Gemma 3).
        windows: for each layer, how many tokens a token sees, itself included; None: all before it.
        attention_scale: factor of the products of queries and keys.
        attention_cap, logits_cap: cap * tanh(x / cap) on them (Gemma 2).
        fused_qkv: one linear for queries, keys and values (Phi-3).
        qk_norm: RMS norm of each head's query and key before rope (Qwen 3, Gemma 3).
        parallel: attention and MLP read the same norm and are added together (Phi-2).
        post_norms: further norms on what attention and MLP give (Gemma 2 and 3).
        mlp: `gated`, `fused` (gate and up in one), `plain`, or `experts` (Mixtral).
        experts, experts_per_token: of a mixture of experts.
        embedding_scale: factor of the embeddings, rounded to the model's type.
        tie_embeddings: the output layer is the embedding matrix.
        eos_token_ids: ids that end an answer.
        bnb: how bitsandbytes quantizes the linears, if it does.
    """

    architecture: str
    linear_paths: tuple[str, ...] = field(repr=False)
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    norm_eps: float
    activation: Literal["silu", "gelu", "gelu_tanh"]
    rope: RopeConfig
    windows: tuple[int | None, ...]
    attention_scale: float
    norm: Literal["rms", "layer"] = "rms"
    norm_plus_one: bool = False
    local_rope: RopeConfig | None = None
    attention_cap: float | None = None
    logits_cap: float | None = None
    fused_qkv: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    qk_norm: bool = False
    parallel: bool = False
    post_norms: bool = False
    mlp: MlpType = "gated"
    experts: int = 0
    experts_per_token: int = 0
    embedding_scale: float | None = None
    tie_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bnb: BnbConfig | None = None


ACTIVATIONS: dict[str, Literal["silu", "gelu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
CAPPED = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")  # transformers leaves it out of Gemma 3 with images
GEMMAS = ("gemma", "gemma2", "gemma3_text")


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The decoder that a model folder's config.json describes.

    Raises:
        ConfigError: the file is missing or malformed, or describes something the decoder does not support.
    """
    path = Path(folder) / "config.json"
    config = parse_config(read_json_object(path, error=ConfigError), path)
    generation = Path(folder) / "generation_config.json"
    if generation.is_file():  # chat models name their end-of-turn token here
        extra = token_ids(read_json_object(generation, error=ConfigError).get("eos_token_id"), generation)
        config = replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + extra)))
    return config


def parse_config(values: Mapping[str, Any], file: str | os.PathLike[str]) -> ModelConfig:
    """The same from a parsed config.json; `file` is for the error messages."""
    architecture, family = _architecture(Fields(values, file))
    values = _in_file(file, text_part, values)
    fields = Fields({**DEFAULTS[family], **values}, file)
    _refuse_unsupported(fields)

    gemma = family in GEMMAS
    hidden = fields.integer("hidden_size", high=2**20)
    heads = fields.integer("num_attention_heads", high=2**12)
    kv_heads = fields.integer("num_key_value_heads", heads, high=2**12)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"{heads} heads cannot share {kv_heads} key-value heads.")
    if fields.values.get("head_dim") is None and hidden % heads:
        raise fields.refuse("num_attention_heads", f"{hidden} hidden values cannot be split over {heads} heads.")
    head_dim = fields.integer("head_dim", hidden // heads, high=2**12)
    layers = fields.integer("num_hidden_layers", high=2**12)
    layer_norm = family in ("phi", "starcoder2")
    norm_eps = {"phi": "layer_norm_eps", "starcoder2": "norm_epsilon"}.get(family, "rms_norm_eps")
    qkv_bias, o_bias, mlp_bias = _biases(fields, family)
    scale_of = fields.positive("query_pre_attn_scalar") if family in ("gemma2", "gemma3_text") else head_dim
    rope, local_rope = read_ropes(fields, family, head_dim)
    mlp: dict[str, MlpType] = {"phi3": "fused", "phi": "plain", "starcoder2": "plain", "mixtral": "experts"}
    experts = fields.integer("num_local_experts", high=2**12) if family == "mixtral" else 0
    experts_per_token = fields.integer("num_experts_per_tok", high=2**12) if experts else 0
    if experts_per_token > experts:
        raise fields.refuse("num_experts_per_tok", f"{experts_per_token} of {experts} experts cannot be chosen.")
    return ModelConfig(
        architecture=architecture,
        # the values are the text part's already, where there is one
        linear_paths=_in_file(file, linear_modules, {**fields.values, "text_config": fields.values}),
        vocab_size=fields.integer("vocab_size", high=2**24),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", high=2**22),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=fields.integer("max_position_embeddings", high=2**26),
        norm_eps=fields.number(norm_eps),
        activation=_activation(fields, family),
        rope=rope,
        windows=_windows(fields, family, layers),
        attention_scale=scale_of**-0.5,
        norm="layer" if layer_norm else "rms",
        norm_plus_one=gemma,
        local_rope=local_rope,
        attention_cap=fields.optional("attn_logit_softcapping") if family == "gemma2" else None,
        logits_cap=fields.optional("final_logit_softcapping") if architecture in CAPPED else None,
        fused_qkv=family == "phi3",
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        lm_head_bias=family == "phi",
        qk_norm=family in ("qwen3", "gemma3_text"),
        parallel=family == "phi",
        post_norms=family in ("gemma2", "gemma3_text"),
        mlp=mlp.get(family, "gated"),
        experts=experts,
        experts_per_token=experts_per_token,
        embedding_scale=math.sqrt(hidden) if gemma else None,
        tie_embeddings=fields.boolean("tie_word_embeddings", False),
        eos_token_ids=token_ids(fields.values.get("eos_token_id"), file),
        bnb=read_bnb_config(values, file),
    )


def _architecture(fields: Fields) -> tuple[str, str]:
    """The model class that the config names, and its model type."""
    architectures = fields.values.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise fields.refuse("architectures", "The model class is missing.", "Is this a model's config.json?")
    family = ARCHITECTURES.get(architectures[0])
    if family is None:
        supported = ", ".join(sorted(ARCHITECTURES))
        what = "a multimodal model, which is not supported" if "text_config" in fields.values else "not supported"
        raise fields.refuse("architectures", f"{architectures[0]} is {what}.", f"Supported: {supported}.")
    return architectures[0], family


def _biases(fields: Fields, family: str) -> tuple[bool, bool, bool]:
    """Whether queries, keys and values, the attention's output and the MLP have biases. Each class looks at keys of its
    own, or at none."""
    if family == "qwen2":
        return True, False, False
    if family == "phi":
        return True, True, True
    if family == "starcoder2":
        return (fields.boolean("use_bias", True),) * 3
    if family in ("mistral", "mixtral", "phi3"):
        return False, False, False
    attention = fields.boolean("attention_bias", False)
    return attention, attention, family == "llama" and fields.boolean("mlp_bias", False)


def _in_file(file: str | os.PathLike[str], read: Callable[[Mapping[str, Any]], T], values: Mapping[str, Any]) -> T:
    """What `read` makes of a config; its errors get the file's name."""
    try:
        return read(values)
    except ConfigError as problem:
        raise ConfigError(problem.problem, file=file, field=problem.field, remedy=problem.remedy) from None


def _refuse_unsupported(fields: Fields) -> None:
    for flag in ("qk_layernorm", "use_bidirectional_attention"):
        if fields.values.get(flag):
            raise fields.refuse(flag, f"{flag} = {fields.values[flag]!r} is not supported.")


def _activation(fields: Fields, family: str) -> Literal["silu", "gelu", "gelu_tanh"]:
    field = "hidden_activation" if family in ("gemma2", "gemma3_text") else "hidden_act"
    name = fields.values.get(field)
    if family == "gemma":
        # its first configs say "gelu" and mean the approximation; later ones have a second key for what they mean
        second = fields.values.get("hidden_activation")
        name = second or ("gelu_pytorch_tanh" if name == "gelu" else name)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise fields.refuse(
            field, f"The activation {name!r} is not supported.", f"Supported: {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


def _windows(fields: Fields, family: str, layers: int) -> tuple[int | None, ...]:
    """Which layers have a sliding window: all, none, those that `layer_types` names, or the older way to say it."""
    if family in ("llama", "gemma", "phi") or fields.values.get("sliding_window") is None:
        return (None,) * layers
    if family.startswith("qwen") and not fields.boolean("use_sliding_window", False):
        return (None,) * layers
    window = fields.integer("sliding_window")
    if family in ("mistral", "mixtral", "phi3", "starcoder2"):
        return (window,) * layers
    kinds = fields.values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise fields.refuse("layer_types", f"A list of {layers} kinds is expected.")
        for kind in kinds:
            if kind not in ("sliding_attention", "full_attention"):
                raise fields.refuse("layer_types", f"The kind {kind!r} is not supported.")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if family == "gemma2":
        return tuple(window if number % 2 == 0 else None for number in range(layers))
    if family == "gemma3_text":
        pattern = fields.integer("sliding_window_pattern")
        return tuple(window if (number + 1) % pattern else None for number in range(layers))
    first = fields.integer("max_window_layers", low=0)
    return tuple(window if number >= first else None for number in range(layers))


def token_ids(value: object, file: str | os.PathLike[str]) -> tuple[int, ...]:
    """`eos_token_id` of a config: absent, one id or several."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise ConfigError(f"{value!r} is not a token id or a list of them.", file=file, field="eos_token_id")
    return tuple(ids)
