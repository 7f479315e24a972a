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

from loradesk_engine.architectures.architecture import Architecture, Windows
from loradesk_engine.architectures.registry import CLASSES
from loradesk_engine.errors import ConfigError
from loradesk_engine.files import read_json_object
from loradesk_engine.formats.bnb import BnbConfig, read_bnb_config
from loradesk_engine.formats.fields import Fields
from loradesk_engine.formats.rope import RopeConfig, read_ropes
from loradesk_engine.ordering.modules import MAX_EXPERTS, linear_paths, text_part

T = TypeVar("T")
Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class ModelConfig:
    """The decoder of a model.

    Attributes:
        architecture: first of `architectures`, as Hugging Face names the class.
        family: what all models of this family share, such as the modules' names.
        linear_paths: every linear in the order in which that class registers them, `lm_head` last.
        norm_plus_one: the norms' weights are stored less one (Gemma).
        rope: of the layers that see everything; `local_rope` of those with a window where they differ (Gemma 3).
        windows: for each layer, how many tokens a token sees, itself included; None: all before it.
        attention_scale: factor of the products of queries and keys.
        attention_cap, logits_cap: cap * tanh(x / cap) on them (Gemma 2).
        experts, experts_per_token: of a mixture of experts, otherwise 0.
        embedding_scale: factor of the embeddings, rounded to the model's type.
        tie_embeddings: the output layer is the embedding matrix.
        eos_token_ids: ids that end an answer.
        bnb: how bitsandbytes quantizes the linears, if it does.
    """

    architecture: str
    family: Architecture = field(repr=False)
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
    activation: Activation
    rope: RopeConfig
    windows: tuple[int | None, ...]
    attention_scale: float
    norm_plus_one: bool = False
    local_rope: RopeConfig | None = None
    attention_cap: float | None = None
    logits_cap: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    embedding_scale: float | None = None
    tie_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bnb: BnbConfig | None = None


ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


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
    fields = Fields({**family.defaults, **values}, file)
    _refuse_unsupported(fields)

    hidden = fields.integer("hidden_size", high=2**20)
    heads = fields.integer("num_attention_heads", high=2**12)
    kv_heads = fields.integer("num_key_value_heads", heads, high=2**12)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"{heads} heads cannot share {kv_heads} key-value heads.")
    if fields.values.get("head_dim") is None and hidden % heads:
        raise fields.refuse("num_attention_heads", f"{hidden} hidden values cannot be split over {heads} heads.")
    head_dim = fields.integer("head_dim", hidden // heads, high=2**12)
    layers = fields.integer("num_hidden_layers", high=2**12)
    experts, experts_per_token = _experts(fields, family)
    rope, local_rope = read_ropes(fields, family.rope, head_dim)
    scale_of = head_dim if family.scale_key is None else fields.positive(family.scale_key)
    return ModelConfig(
        architecture=architecture,
        family=family,
        linear_paths=_in_file(file, lambda _: linear_paths(family, layers, experts), values),
        vocab_size=fields.integer("vocab_size", high=2**24),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", high=2**22),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=fields.integer("max_position_embeddings", high=2**26),
        norm_eps=fields.number(family.norm_eps_key),
        activation=_activation(fields, family),
        rope=rope,
        windows=_windows(fields, family.windows, layers),
        attention_scale=scale_of**-0.5,
        norm_plus_one=family.norm_plus_one,
        local_rope=local_rope,
        attention_cap=fields.optional("attn_logit_softcapping") if family.capped_attention else None,
        logits_cap=fields.optional("final_logit_softcapping") if architecture in family.capped_logits else None,
        qkv_bias=_bias(fields, family, family.qkv_bias),
        o_bias=_bias(fields, family, family.o_bias),
        mlp_bias=_bias(fields, family, family.mlp_bias),
        lm_head_bias=family.lm_head_bias,
        experts=experts,
        experts_per_token=experts_per_token,
        embedding_scale=math.sqrt(hidden) if family.scaled_embedding else None,
        tie_embeddings=fields.boolean("tie_word_embeddings", False),
        eos_token_ids=token_ids(fields.values.get("eos_token_id"), file),
        bnb=read_bnb_config(values, file),
    )


def _architecture(fields: Fields) -> tuple[str, Architecture]:
    """The model class that the config names, and its family."""
    architectures = fields.values.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise fields.refuse("architectures", "The model class is missing.", "Is this a model's config.json?")
    family = CLASSES.get(architectures[0])
    if family is None:
        what = "a multimodal model, which is not supported" if "text_config" in fields.values else "not supported"
        raise fields.refuse(
            "architectures", f"{architectures[0]} is {what}.", f"Supported: {', '.join(sorted(CLASSES))}."
        )
    return architectures[0], family


def _experts(fields: Fields, family: Architecture) -> tuple[int, int]:
    """How many experts there are, and how many of them serve a token; 0 and 0 without a mixture of experts."""
    if family.names.experts is None:
        return 0, 0
    experts = fields.integer("num_local_experts", high=MAX_EXPERTS + 1)
    chosen = fields.integer("num_experts_per_tok", high=2**12)
    if chosen > experts:
        raise fields.refuse("num_experts_per_tok", f"{chosen} of {experts} experts cannot be chosen.")
    return experts, chosen


def _bias(fields: Fields, family: Architecture, bias: bool | str) -> bool:
    """Whether linears have a bias; a string is the key that decides it."""
    return bias if isinstance(bias, bool) else fields.boolean(bias, family.defaults[bias])


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


def _activation(fields: Fields, family: Architecture) -> Activation:
    name = family.activation(fields.values)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise fields.refuse(
            family.activation_key,
            f"The activation {name!r} is not supported.",
            f"Supported: {', '.join(ACTIVATIONS)}.",
        )
    return ACTIVATIONS[name]


def _windows(fields: Fields, which: Windows | None, layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer."""
    if which is None or fields.values.get("sliding_window") is None:
        return (None,) * layers
    if which.switch is not None and not fields.boolean(which.switch, False):
        return (None,) * layers
    window = fields.integer("sliding_window")
    if not which.mixed:
        return (window,) * layers
    kinds = fields.values.get("layer_types")
    if kinds is not None:
        return _typed_windows(fields, kinds, window, layers)
    if which.first is not None:
        first = fields.integer(which.first, low=0)
        return tuple(window if number >= first else None for number in range(layers))
    period = fields.integer(which.period) if isinstance(which.period, str) else which.period
    return periodic_windows(window, period, layers)


def _typed_windows(fields: Fields, kinds: object, window: int, layers: int) -> tuple[int | None, ...]:
    """The windows by `layer_types`."""
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise fields.refuse("layer_types", f"A list of {layers} kinds is expected.")
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise fields.refuse("layer_types", f"The kind {kind!r} is not supported.")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def periodic_windows(window: int, period: int | None, layers: int) -> tuple[int | None, ...]:
    """A window on every layer but each `period`-th; None: on every layer."""
    return tuple(window if period is None or (number + 1) % period else None for number in range(layers))


def token_ids(value: object, file: str | os.PathLike[str], field: str = "eos_token_id") -> tuple[int, ...]:
    """A field that holds token ids: absent, one id or several."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise ConfigError(f"{value!r} is not a token id or a list of them.", file=file, field=field)
    return tuple(ids)
