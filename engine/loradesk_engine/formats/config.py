"""config.json of a model, read into one frozen description of the decoder.

Every feature is a field that defaults to off, so that one decoder serves all architectures. A value that the decoder
does not know is refused by name, never ignored. Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`)
and transformers 5 (`rope_parameters`, `layer_types`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from loradesk_engine.errors import ConfigError
from loradesk_engine.files import finite_number, json_type, read_json_object
from loradesk_engine.formats.bnb import BnbConfig, read_bnb_config
from loradesk_engine.ordering.modules import ARCHITECTURES, linear_modules

RopeType = Literal["default", "linear", "llama3", "yarn", "longrope"]
MlpType = Literal["gated", "fused", "plain", "experts"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
        theta: base of the frequencies.
        rotary_dim: how many values of a head are rotated, from the front.
        kind: `default`; `linear`: positions divided by `factor`; `llama3`: low frequencies divided, a ramp between;
            `yarn`: the same with a ramp by dimension; `longrope`: a divisor for each frequency.
        factor, low_freq_factor, high_freq_factor, beta_fast, beta_slow, truncate: as in config.json.
        original_context: length that the model was trained on before it was stretched.
        attention_factor: cosines and sines are multiplied by it.
        short_factors, long_factors: longrope's divisors, for contexts up to and beyond the original one.
    """

    theta: float
    rotary_dim: int
    kind: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    original_context: int = 8192
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


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
    bos_token_id: int | None = None
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
GEMMAS = ("gemma", "gemma2", "gemma3_text")


class _Fields:
    """Typed access to a JSON object: a wrong type is an error that names file and field."""

    def __init__(self, values: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
        self.values = values
        self.file = file

    def refuse(self, field: str, problem: str, remedy: str | None = None) -> ConfigError:
        return ConfigError(problem, file=self.file, field=field, remedy=remedy)

    def integer(self, field: str, default: int | None = None, *, low: int = 1, high: int = 2**31) -> int:
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self.refuse(field, "The number is missing.")
            return default
        if type(value) is not int:
            raise self.refuse(field, f"A whole number is expected, not {json_type(value)}.")
        if not low <= value < high:
            raise self.refuse(field, f"{value} is out of range.")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self.refuse(field, "The number is missing.")
            return default
        found = finite_number(value)
        if found is None:
            raise self.refuse(field, f"A finite number is expected, not {value!r}.")
        return found

    def positive(self, field: str, default: float | None = None) -> float:
        value = self.number(field, default)
        if value <= 0:
            raise self.refuse(field, f"{value} is not above 0.")
        return value

    def optional(self, field: str) -> float | None:
        return None if self.values.get(field) is None else self.positive(field)

    def boolean(self, field: str, default: bool) -> bool:
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(field, f"true or false is expected, not {json_type(value)}.")
        return value

    def part(self, field: str) -> _Fields | None:
        """A nested object, or None where there is none."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(field, f"An object is expected, not {json_type(value)}.")
        return _Fields(value, self.file)


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
    fields = _Fields(values, file)
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise fields.refuse("architectures", "The model class is missing.", "Is this a model's config.json?")
    architecture = architectures[0]
    family = ARCHITECTURES.get(architecture)
    if family is None:
        supported = ", ".join(sorted(ARCHITECTURES))
        raise fields.refuse("architectures", f"{architecture} is not supported.", f"Supported: {supported}.")
    _refuse_unsupported(fields, family)

    gemma = family in GEMMAS
    hidden = fields.integer("hidden_size", high=2**20)
    heads = fields.integer("num_attention_heads", high=2**12)
    kv_heads = fields.integer("num_key_value_heads", heads, high=2**12)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"{heads} heads cannot share {kv_heads} key-value heads.")
    if values.get("head_dim") is None and hidden % heads and not gemma:
        raise fields.refuse("num_attention_heads", f"{hidden} hidden values cannot be split over {heads} heads.")
    head_dim = fields.integer("head_dim", 256 if gemma else hidden // heads, high=2**12)
    layers = fields.integer("num_hidden_layers", high=2**12)
    layer_norm = family in ("phi", "starcoder2")
    norm_eps = {"phi": "layer_norm_eps", "starcoder2": "norm_epsilon"}.get(family, "rms_norm_eps")
    attention_bias = fields.boolean("attention_bias", False)
    use_bias = fields.boolean("use_bias", True)
    scale_of = fields.positive("query_pre_attn_scalar", 256.0) if family in ("gemma2", "gemma3_text") else head_dim
    rope, local_rope = _ropes(fields, family, head_dim)
    mlp: dict[str, MlpType] = {"phi3": "fused", "phi": "plain", "starcoder2": "plain", "mixtral": "experts"}
    experts = fields.integer("num_local_experts", 8, high=2**12) if family == "mixtral" else 0
    experts_per_token = fields.integer("num_experts_per_tok", 2, high=2**12) if experts else 0
    if experts_per_token > experts:
        raise fields.refuse("num_experts_per_tok", f"{experts_per_token} of {experts} experts cannot be chosen.")
    return ModelConfig(
        architecture=architecture,
        linear_paths=_linear_paths(values, file),
        vocab_size=fields.integer("vocab_size", high=2**24),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", high=2**22),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=fields.integer("max_position_embeddings", 2048, high=2**26),
        norm_eps=fields.number(norm_eps, 1e-5 if layer_norm else 1e-6),
        activation=_activation(fields, family),
        rope=rope,
        windows=_windows(fields, family, layers),
        attention_scale=scale_of**-0.5,
        norm="layer" if layer_norm else "rms",
        norm_plus_one=gemma,
        local_rope=local_rope,
        attention_cap=fields.optional("attn_logit_softcapping"),
        logits_cap=fields.optional("final_logit_softcapping"),
        fused_qkv=family == "phi3",
        qkv_bias={"qwen2": True, "phi": True, "starcoder2": use_bias}.get(family, attention_bias),
        o_bias={"qwen2": False, "phi": True, "starcoder2": use_bias}.get(family, attention_bias),
        mlp_bias={"phi": True, "starcoder2": use_bias}.get(family, fields.boolean("mlp_bias", False)),
        lm_head_bias=family == "phi",
        qk_norm=family in ("qwen3", "gemma3_text"),
        parallel=family == "phi",
        post_norms=family in ("gemma2", "gemma3_text"),
        mlp=mlp.get(family, "gated"),
        experts=experts,
        experts_per_token=experts_per_token,
        embedding_scale=math.sqrt(hidden) if gemma else None,
        tie_embeddings=fields.boolean("tie_word_embeddings", gemma or family == "starcoder2"),
        bos_token_id=None if values.get("bos_token_id") is None else fields.integer("bos_token_id", low=0),
        eos_token_ids=token_ids(values.get("eos_token_id"), file),
        bnb=read_bnb_config(values, file),
    )


def _linear_paths(values: Mapping[str, Any], file: str | os.PathLike[str]) -> tuple[str, ...]:
    try:
        return linear_modules(values)
    except ConfigError as problem:
        raise ConfigError(problem.problem, file=file, field=problem.field, remedy=problem.remedy) from None


def _refuse_unsupported(fields: _Fields, family: str) -> None:
    for flag in ("qk_layernorm", "use_bidirectional_attention"):
        if fields.values.get(flag):
            raise fields.refuse(flag, f"{flag} = {fields.values[flag]!r} is not supported.")


def _activation(fields: _Fields, family: str) -> Literal["silu", "gelu", "gelu_tanh"]:
    default = "gelu_pytorch_tanh" if family in GEMMAS else "silu"
    name = fields.values.get("hidden_activation") or fields.values.get("hidden_act") or default
    if family == "gemma" and fields.values.get("hidden_activation") is None:
        name = default  # its first configs say "gelu" and mean the approximation
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise fields.refuse("hidden_act", f"The activation {name!r} is not supported.")
    return ACTIVATIONS[name]


def _windows(fields: _Fields, family: str, layers: int) -> tuple[int | None, ...]:
    """Which layers have a sliding window: `layer_types`, or the architecture's older way to say it."""
    window = fields.values.get("sliding_window")
    if window is None or (family.startswith("qwen") and not fields.boolean("use_sliding_window", False)):
        return (None,) * layers
    window = fields.integer("sliding_window")
    kinds = fields.values.get("layer_types")
    if kinds is not None and family not in ("mistral", "mixtral", "phi3", "starcoder2"):
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise fields.refuse("layer_types", f"A list of {layers} kinds is expected.")
        for kind in kinds:
            if kind not in ("sliding_attention", "full_attention"):
                raise fields.refuse("layer_types", f"The kind {kind!r} is not supported.")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if family == "gemma2":
        return tuple(window if number % 2 == 0 else None for number in range(layers))
    if family == "gemma3_text":
        pattern = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
        return tuple(window if (number + 1) % pattern else None for number in range(layers))
    if family.startswith("qwen"):
        first = fields.integer("max_window_layers", 28, low=0)
        return tuple(window if number >= first else None for number in range(layers))
    if family in ("mistral", "mixtral", "phi3", "starcoder2"):
        return (window,) * layers
    return (None,) * layers


def token_ids(value: object, file: str | os.PathLike[str]) -> tuple[int, ...]:
    """`eos_token_id` of a config: absent, one id or several."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise ConfigError(f"{value!r} is not a token id or a list of them.", file=file, field="eos_token_id")
    return tuple(ids)


# --- rope -------------------------------------------------------------------------------------------------------------


def _ropes(fields: _Fields, family: str, head_dim: int) -> tuple[RopeConfig, RopeConfig | None]:
    """The rope of layers that see everything, and that of layers with a window where it is another."""
    if family != "gemma3_text":
        return _rope(fields, fields, head_dim), None
    parameters = fields.part("rope_parameters")
    if parameters is not None and "full_attention" in parameters.values:
        whole, local = parameters.part("full_attention"), parameters.part("sliding_attention")
        if whole is None or local is None:
            raise fields.refuse("rope_parameters", "full_attention and sliding_attention are expected.")
        return _rope_of(fields, whole, head_dim), _rope_of(fields, local, head_dim)
    theta = fields.positive("rope_local_base_freq", 10_000.0)
    return _rope(fields, fields, head_dim, theta=1_000_000.0), RopeConfig(theta, head_dim)


def _rope(fields: _Fields, outer: _Fields, head_dim: int, *, theta: float = 10_000.0) -> RopeConfig:
    """`rope_theta` with `rope_scaling` (transformers 4), or `rope_parameters` (transformers 5)."""
    key = "rope_parameters" if outer.values.get("rope_parameters") is not None else "rope_scaling"
    return _rope_of(fields, outer.part(key) or _Fields({}, fields.file), head_dim, theta=theta)


def _rope_of(fields: _Fields, part: _Fields, head_dim: int, *, theta: float = 10_000.0) -> RopeConfig:
    theta = part.positive("rope_theta", fields.positive("rope_theta", theta))
    phi = fields.values.get("architectures") == ["PhiForCausalLM"]
    share = part.positive("partial_rotary_factor", fields.positive("partial_rotary_factor", 0.5 if phi else 1.0))
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise fields.refuse("head_dim", f"{rotary_dim} of {head_dim} values of a head cannot be rotated in pairs.")
    kind = part.values.get("rope_type", part.values.get("type", "default"))
    if kind in ("longrope", "su"):  # "su" is what Phi-3's first configs call it
        return _longrope(fields, part, theta, rotary_dim)
    if kind == "default":
        return RopeConfig(theta, rotary_dim)
    if kind not in ("linear", "llama3", "yarn"):
        raise fields.refuse(
            "rope_parameters" if "rope_parameters" in fields.values else "rope_scaling",
            f"The rope type {kind!r} is not supported.",
            "Supported: default, linear, llama3, yarn, longrope.",
        )
    factor = part.positive("factor")
    if factor < 1:
        raise part.refuse("factor", f"The rope's factor {factor} is under 1.")
    if kind == "linear":
        return RopeConfig(theta, rotary_dim, "linear", factor)
    original = part.integer("original_max_position_embeddings", fields.integer("max_position_embeddings", 2048))
    if kind == "yarn":
        fast, slow = part.positive("beta_fast", 32.0), part.positive("beta_slow", 1.0)
        truncate = part.boolean("truncate", True)
        attention = part.optional("attention_factor") or _yarn_attention(part, factor)
        return RopeConfig(
            theta,
            rotary_dim,
            "yarn",
            factor,
            beta_fast=fast,
            beta_slow=slow,
            truncate=truncate,
            original_context=original,
            attention_factor=attention,
        )
    low, high = part.number("low_freq_factor"), part.number("high_freq_factor")
    if not 0 < low < high:
        raise part.refuse("low_freq_factor", f"{low} and high_freq_factor {high} are not an ascending pair.")
    return RopeConfig(theta, rotary_dim, "llama3", factor, low, high, original_context=original)


def _yarn_attention(part: _Fields, factor: float) -> float:
    """The attention factor that YaRN's paper suggests; DeepSeek's two scales where a config has them."""

    def scale(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    above, below = part.optional("mscale"), part.optional("mscale_all_dim")
    return scale(above) / scale(below) if above and below else scale(1.0)


def _longrope(fields: _Fields, part: _Fields, theta: float, rotary_dim: int) -> RopeConfig:
    """Phi-3's: a divisor for each frequency, one list for short and one for long contexts."""
    original = part.integer(
        "original_max_position_embeddings", fields.integer("original_max_position_embeddings", 4096)
    )
    factors = []
    for field_name in ("short_factor", "long_factor"):
        values = part.values.get(field_name)
        if (
            not isinstance(values, list)
            or len(values) != rotary_dim // 2
            or not all(type(value) in (int, float) and math.isfinite(value) and value > 0 for value in values)
        ):
            raise part.refuse(field_name, f"A list of {rotary_dim // 2} positive numbers is expected.")
        factors.append(tuple(map(float, values)))
    factor = part.optional("factor") or fields.integer("max_position_embeddings", 2048) / original
    attention = part.optional("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeConfig(
        theta,
        rotary_dim,
        "longrope",
        factor,
        original_context=original,
        attention_factor=attention,
        short_factors=factors[0],
        long_factors=factors[1],
    )
