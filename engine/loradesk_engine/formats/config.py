"""config.json of a model, read into one frozen description of the decoder.

Every feature is a field that defaults to off, so that one decoder serves all architectures. A value that the decoder
does not know is refused by name, never ignored.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loradesk_engine.errors import ConfigError
from loradesk_engine.files import json_type, read_json_object

RopeType = Literal["default", "linear", "llama3"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
        theta: base of the frequencies.
        kind: `default`, `linear` (positions divided by `factor`) or `llama3` (low frequencies divided, a ramp between).
        factor, low_freq_factor, high_freq_factor, original_context: as in the `rope_scaling` of config.json.
    """

    theta: float = 10_000.0
    kind: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The decoder of a model.

    Attributes:
        architecture: first of `architectures`, as Hugging Face names the class.
        sliding_window: a token sees this many tokens, itself included; None: all before it.
        qkv_bias, o_bias, mlp_bias: the projections carry a bias.
        qk_norm: RMS norm of each head's query and key before rope (Qwen 3).
        tie_embeddings: the output layer is the embedding matrix.
        eos_token_ids: ids that end an answer.
    """

    architecture: str
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
    sliding_window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


SUPPORTED = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

ACTIVATIONS: dict[str, Literal["silu", "gelu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


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
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refuse(field, f"A finite number is expected, not {value!r}.")
        return float(value)

    def boolean(self, field: str, default: bool) -> bool:
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(field, f"true or false is expected, not {json_type(value)}.")
        return value


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
        merged = tuple(dict.fromkeys(config.eos_token_ids + extra))
        config = _replace(config, eos_token_ids=merged)
    return config


def _replace(config: ModelConfig, **changes: Any) -> ModelConfig:
    from dataclasses import replace

    return replace(config, **changes)


def parse_config(values: Mapping[str, Any], file: str | os.PathLike[str]) -> ModelConfig:
    """The same from a parsed config.json; `file` is for the error messages."""
    fields = _Fields(values, file)
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise fields.refuse("architectures", "The model class is missing.", "Is this a model's config.json?")
    architecture = architectures[0]
    family = SUPPORTED.get(architecture)
    if family is None:
        raise fields.refuse(
            "architectures", f"{architecture} is not supported.", f"Supported: {', '.join(sorted(SUPPORTED))}."
        )
    activation = values.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise fields.refuse("hidden_act", f"The activation {activation!r} is not supported.")
    if values.get("quantization_config") is not None:
        raise fields.refuse(
            "quantization_config", "Quantized checkpoints of this kind are not supported.", "Use the 16-bit checkpoint."
        )

    hidden = fields.integer("hidden_size", high=2**20)
    heads = fields.integer("num_attention_heads", high=2**12)
    kv_heads = fields.integer("num_key_value_heads", heads, high=2**12)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"{heads} heads cannot share {kv_heads} key-value heads.")
    if values.get("head_dim") is None and hidden % heads:
        raise fields.refuse("num_attention_heads", f"{hidden} hidden values cannot be split over {heads} heads.")
    head_dim = fields.integer("head_dim", hidden // heads, high=2**12)
    if head_dim % 2:
        raise fields.refuse("head_dim", f"Rotary embeddings need an even size, not {head_dim}.")
    attention_bias = fields.boolean("attention_bias", False)
    window = values.get("sliding_window")
    uses_window = family == "mistral" or (family.startswith("qwen") and fields.boolean("use_sliding_window", False))
    if family.startswith("qwen") and uses_window:
        raise fields.refuse("use_sliding_window", "Sliding windows in only some layers are not supported for Qwen.")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size", high=2**24),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", high=2**22),
        num_layers=fields.integer("num_hidden_layers", high=2**12),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=fields.integer("max_position_embeddings", 2048, high=2**26),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        activation=ACTIVATIONS[activation],
        rope=_rope(fields),
        sliding_window=fields.integer("sliding_window") if uses_window and window is not None else None,
        qkv_bias=True if family == "qwen2" else attention_bias,
        o_bias=False if family == "qwen2" else attention_bias,
        mlp_bias=fields.boolean("mlp_bias", False),
        qk_norm=family == "qwen3",
        tie_embeddings=fields.boolean("tie_word_embeddings", False),
        bos_token_id=None if values.get("bos_token_id") is None else fields.integer("bos_token_id", low=0),
        eos_token_ids=token_ids(values.get("eos_token_id"), file),
    )


def token_ids(value: object, file: str | os.PathLike[str]) -> tuple[int, ...]:
    """`eos_token_id` of a config: absent, one id or several."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise ConfigError(f"{value!r} is not a token id or a list of them.", file=file, field="eos_token_id")
    return tuple(ids)


def _rope(fields: _Fields) -> RopeConfig:
    """`rope_theta` with `rope_scaling` (transformers 4), or `rope_parameters` (transformers 5)."""
    values = fields.values
    key = "rope_parameters" if values.get("rope_parameters") is not None else "rope_scaling"
    scaling = values.get(key)
    if scaling is not None and not isinstance(scaling, dict):
        raise fields.refuse(key, f"An object is expected, not {json_type(scaling)}.")
    part = _Fields(scaling or {}, fields.file)
    theta = part.number("rope_theta", fields.number("rope_theta", 10_000.0))
    if theta <= 0:
        raise fields.refuse("rope_theta", f"{theta} is not positive.")
    kind = part.values.get("rope_type", part.values.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind not in ("linear", "llama3"):
        raise fields.refuse(key, f"The rope type {kind!r} is not supported.", "Supported: default, linear, llama3.")
    factor = part.number("factor")
    if factor < 1:
        raise fields.refuse(key, f"The factor {factor} is under 1.")
    if kind == "linear":
        return RopeConfig(theta, "linear", factor)
    low, high = part.number("low_freq_factor"), part.number("high_freq_factor")
    if not 0 < low < high:
        raise fields.refuse(key, f"low_freq_factor {low} and high_freq_factor {high} are not an ascending pair.")
    return RopeConfig(theta, "llama3", factor, low, high, part.integer("original_max_position_embeddings"))
