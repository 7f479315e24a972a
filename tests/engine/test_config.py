"""config.json means here what it means to transformers: keys left out, ropes in both spellings, keys nobody reads."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
import transformers
from transformers.activations import ACT2FN

from loradesk_engine.architectures.registry import MODEL_TYPES
from loradesk_engine.errors import ConfigError
from loradesk_engine.formats import config as config_module
from loradesk_engine.formats.config import ModelConfig, parse_config
from loradesk_engine.formats.fields import Fields
from loradesk_engine.formats.rope import RopeConfig
from loradesk_engine.model.rope import inverse_frequencies

FAMILIES = {name: family.classes[0] for name, family in MODEL_TYPES.items()}
DEFAULTS = {name: family.defaults for name, family in MODEL_TYPES.items()}
UNUSUAL = {
    "vocab_size": 1000,
    "hidden_size": 768,  # divides by every class's number of heads
    "intermediate_size": 999,
    "num_hidden_layers": 8,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-3,
    "layer_norm_eps": 1e-3,
    "norm_epsilon": 1e-3,
    "hidden_act": "gelu",
    "hidden_activation": "gelu",
    "max_position_embeddings": 500,
    "rope_theta": 123.0,
    "rope_local_base_freq": 55.0,
    "partial_rotary_factor": 1 / 3,
    "original_max_position_embeddings": 300,
    "eos_token_id": 8,
    "attention_bias": True,
    "mlp_bias": True,
    "use_bias": False,
    "query_pre_attn_scalar": 100,
    "sliding_window": 33,
    "sliding_window_pattern": 3,
    "use_sliding_window": True,
    "max_window_layers": 3,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 6.0,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "qk_layernorm": False,  # anything else is refused
}
"""For every key that is read, a value that no class has by default."""
DEPENDS = {"rope_theta", "rope_local_base_freq", "partial_rotary_factor", "sliding_window_pattern", "sliding_window"}
"""Keys whose default does not stand in the configuration object under their own name."""


def config_class(family: str) -> Any:
    name = {"gemma3_text": "Gemma3Text"}.get(family) or FAMILIES[family].removesuffix("ForCausalLM")
    return getattr(transformers, f"{name}Config")


def unusual(family: str) -> dict[str, Any]:
    """A config of a family in which no key has its default."""
    values = {key: UNUSUAL[key] for key in DEFAULTS[family] if key != "tie_word_embeddings"}
    values["tie_word_embeddings"] = not DEFAULTS[family]["tie_word_embeddings"]
    if family == "gemma":
        values["hidden_act"] = "silu"  # "gelu" is read as its approximation there
    return values


def as_transformers(family: str, values: dict[str, Any]) -> Any:
    return config_class(family)(**{key: dict(part) if isinstance(part, dict) else part for key, part in values.items()})


def as_engine(family: str, values: dict[str, Any]) -> ModelConfig:
    return parse_config({"architectures": [FAMILIES[family]], **values}, "config.json")


def assert_same(family: str, values: dict[str, Any]) -> None:
    """Compare what the engine reads with transformers' configuration, activation and rotary embedding."""
    theirs, ours = as_transformers(family, values), as_engine(family, values)
    eps = {"phi": "layer_norm_eps", "starcoder2": "norm_epsilon"}.get(family, "rms_norm_eps")
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    expected = {
        "vocab_size": theirs.vocab_size,
        "hidden_size": theirs.hidden_size,
        "intermediate_size": theirs.intermediate_size,
        "num_layers": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "num_kv_heads": theirs.num_key_value_heads,
        "head_dim": head_dim,
        "context": theirs.max_position_embeddings,
        "norm_eps": getattr(theirs, eps),
        "windows": windows(family, theirs),
        "attention_cap": theirs.attn_logit_softcapping if family == "gemma2" else None,
        "logits_cap": getattr(theirs, "final_logit_softcapping", None),
        "tie_embeddings": theirs.tie_word_embeddings,
        "eos_token_ids": () if theirs.eos_token_id is None else (theirs.eos_token_id,),
        "experts": getattr(theirs, "num_local_experts", 0),
        "experts_per_token": getattr(theirs, "num_experts_per_tok", 0),
    }
    assert {name: getattr(ours, name) for name in expected} == expected
    scale_of = getattr(theirs, "query_pre_attn_scalar", head_dim)
    assert ours.attention_scale == pytest.approx(scale_of**-0.5)
    numbers = torch.linspace(-4, 4, 50)
    activation = ACT2FN[theirs.hidden_activation if hasattr(theirs, "hidden_activation") else theirs.hidden_act]
    torch.testing.assert_close(ACT2FN[ENGINE_ACTIVATIONS[ours.activation]](numbers), activation(numbers))
    assert_same_biases(family, theirs, ours)
    assert_same_ropes(family, theirs, ours)


ENGINE_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def windows(family: str, theirs: Any) -> tuple[int | None, ...]:
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None)
    if kinds is None:
        return (window,) * theirs.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def assert_same_biases(family: str, theirs: Any, ours: ModelConfig) -> None:
    theirs = type(theirs)(**{**theirs.to_dict(), "num_hidden_layers": 1, "layer_types": None, "vocab_size": 8,
                             "pad_token_id": 0, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1,
                             "intermediate_size": 8, "rope_parameters": None})  # fmt: skip
    with torch.device("meta"):
        names = {name for name, _ in getattr(transformers, FAMILIES[family])(theirs).named_parameters()}
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    for biased, linears in (
        (ours.qkv_bias, (f"{attention}.q_proj", f"{attention}.qkv_proj")),
        (ours.o_bias, (f"{attention}.o_proj", f"{attention}.dense")),
        (ours.mlp_bias, (f"{mlp}.gate_proj", f"{mlp}.gate_up_proj", f"{mlp}.fc1", f"{mlp}.c_fc")),
        (ours.lm_head_bias, ("lm_head",)),
    ):
        assert any(f"{linear}.bias" in names for linear in linears) == biased, linears


def assert_same_ropes(family: str, theirs: Any, ours: ModelConfig) -> None:
    module = importlib.import_module(type(theirs).__module__.replace("configuration", "modeling"))
    (kind,) = [getattr(module, name) for name in dir(module) if name.endswith("RotaryEmbedding")]
    rotary = kind(theirs)
    parts = {"": ours.rope}
    if family == "gemma3_text":
        assert ours.local_rope is not None
        parts = {"full_attention_": ours.rope, "sliding_attention_": ours.local_rope}
    for prefix, rope in parts.items():
        # longrope's long side is another set of frequencies; the class makes the short one first
        context = rope.original_context if rope.kind == "longrope" else ours.context
        frequencies = getattr(rotary, f"{prefix}inv_freq")
        torch.testing.assert_close(inverse_frequencies(rope, context), frequencies, rtol=1e-5, atol=0)
        assert rope.attention_factor == pytest.approx(getattr(rotary, f"{prefix}attention_scaling"), rel=1e-6)


@pytest.mark.parametrize("family", DEFAULTS)
def test_a_key_that_is_left_out_means_what_it_means_to_transformers(family: str) -> None:
    values = unusual(family)
    assert_same(family, values)
    for key in values:
        assert_same(family, {name: value for name, value in values.items() if name != key})
    assert_same(family, {})


@pytest.mark.parametrize("family", DEFAULTS)
def test_the_table_of_defaults_is_complete(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key that is read and has a default in transformers' class is in the table, and nothing else is."""
    read = set()

    class Watched(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

    class WatchedFields(Fields):
        def __init__(self, values: Any, file: Any) -> None:
            super().__init__(Watched(values), file)

    monkeypatch.setattr(config_module, "Fields", WatchedFields)
    as_engine(family, {key: value for key, value in unusual(family).items() if value is not None})
    kind = config_class(family)
    theirs = {
        key: getattr(kind, key) for key in (read - {"rope_scaling"}) | DEFAULTS[family].keys() if hasattr(kind, key)
    }
    for key, value in theirs.items():
        assert (DEFAULTS[family].get(key) or None) == (value or None), key
    assert DEFAULTS[family].keys() - theirs.keys() <= DEPENDS
    assert DEFAULTS[family].keys() <= read | {"num_hidden_layers", "original_max_position_embeddings"}


LONG = {"short_factor": [1.0 + 0.1 * n for n in range(6)], "long_factor": [1.0 + n for n in range(6)]}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear, older": ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "linear, newer": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}),
    "both spellings": ("llama", {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                                 "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "an empty older one": ("llama", {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "two names of the type": ("llama", {"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 4.0}}),
    "theta beside parameters": ("llama", {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}),
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "llama3": ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    "yarn": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    "yarn without the original context": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    "yarn, original context outside": ("llama", {"original_max_position_embeddings": 128, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    "yarn, all options": ("llama", {"rope_scaling": {
        "type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False, "beta_fast": 16,
        "beta_slow": 2, "original_max_position_embeddings": 64}}),
    "longrope": ("phi3", {"original_max_position_embeddings": 64, "rope_scaling": {"type": "longrope", **LONG}}),
    "longrope, original context inside": ("phi3", {"max_position_embeddings": 8192, "rope_scaling": {
        "type": "longrope", **LONG, "original_max_position_embeddings": 64}}),
    "longrope, both": ("phi3", {"original_max_position_embeddings": 128, "rope_scaling": {
        "type": "longrope", **LONG, "original_max_position_embeddings": 64}}),
    "longrope, a factor": ("phi3", {"original_max_position_embeddings": 64, "rope_scaling": {
        "type": "longrope", **LONG, "factor": 32.0}}),
    "Phi-3's first names for longrope": ("phi3", {"original_max_position_embeddings": 64, "rope_scaling": {
        "type": "yarn", **LONG}}),
    "longrope in part of a head": ("phi3", {"original_max_position_embeddings": 64, "partial_rotary_factor": 0.67,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}}),
    "part of a head, a class that rotates all": ("llama", {"partial_rotary_factor": 0.5}),
    "part of a head, linear": ("phi", {"partial_rotary_factor": 0.5,
                                       "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "Gemma 3 as on the hub": ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "Gemma 3, one of two": ("gemma3_text", {
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}, "rope_local_base_freq": 77.0}),
    "Gemma 3, both spellings": ("gemma3_text", {
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e5,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROPES)
def test_a_rope_is_the_one_of_transformers(name: str) -> None:
    family, rope = ROPES[name]
    small = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 6,
             "intermediate_size": 64, "vocab_size": 100, "head_dim": 12, "max_position_embeddings": 512}  # fmt: skip
    assert_same_ropes(family, as_transformers(family, {**small, **rope}), as_engine(family, {**small, **rope}))


def test_dynamic_rope_changes_nothing_within_the_context() -> None:
    """transformers recomputes it only beyond `max_position_embeddings`, and no longer context can be chosen here."""
    values = {"max_position_embeddings": 512, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    config = as_engine("llama", values)
    assert (config.rope, config.context) == (RopeConfig(10_000.0, 128), 512)
    init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["dynamic"]
    theirs = as_transformers("llama", values)
    for length in (1, 300, 512):
        torch.testing.assert_close(init(theirs, seq_len=length)[0], inverse_frequencies(config.rope, 512))
    assert not torch.allclose(init(theirs, seq_len=513)[0], inverse_frequencies(config.rope, 512), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "activation"),
    [
        ({"hidden_act": "gelu"}, "gelu_tanh"),  # the first configs of Gemma
        ({"hidden_act": "gelu", "hidden_activation": None}, "gelu_tanh"),
        ({"hidden_act": "gelu", "hidden_activation": "gelu"}, "gelu"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "gelu_tanh"),
        ({"hidden_act": "silu"}, "silu"),
        ({}, "gelu_tanh"),
    ],
)
def test_the_activation_of_gemma(values: dict[str, Any], activation: str) -> None:
    assert as_engine("gemma", values).activation == activation


@pytest.mark.parametrize(
    ("family", "values", "field"),
    [
        ("gemma", {"hidden_act": "relu"}, "hidden_act"),
        ("gemma", {"hidden_act": "nonsense"}, "hidden_act"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation"),
        ("llama", {"hidden_act": None}, "hidden_act"),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"rope_parameters": {"rope_type": "proportional"}}, "rope_parameters"),
        ("llama", {"rope_scaling": {"type": "dynamic"}}, "factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5},
         "partial_rotary_factor"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope_parameters"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 7}}, "full_attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(family: str, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        as_engine(family, values)
    assert (caught.value.file, caught.value.field) == ("config.json", field)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
PHI3 = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("family", "values", "field"),
    [
        ("phi3", {**PHI3, "original_max_position_embeddings": 1, "rope_scaling": {"type": "longrope", **LONG}},
         "original_max_position_embeddings"),
        ("phi", {"partial_rotary_factor": 1e308}, "partial_rotary_factor"),
        ("phi", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1e308}}, "partial_rotary_factor"),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ("llama", {"rope_theta": 1, "rope_scaling": YARN}, "rope_theta"),
        ("llama", {"rope_parameters": {**YARN, "rope_theta": 0.5}}, "rope_theta"),
        ("gemma3_text", {"rope_local_base_freq": 1}, "rope_local_base_freq"),
        *[("llama", {"rope_scaling": {**YARN, key: value}}, key)
          for key in ("beta_fast", "beta_slow") for value in (1e-320, 1e-9, 1e9, 1.7e308)],
        *[("llama", {"rope_scaling": {**YARN, "attention_factor": value}}, "attention_factor")
          for value in (1e-320, 1e-9, 1e30, 1.7e308)],
        ("llama", {"rope_scaling": {**YARN, "mscale": 1.7e308, "mscale_all_dim": 1.0}}, "mscale"),
        ("llama", {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.7e308}}, "mscale"),
        ("phi3", {"original_max_position_embeddings": 64,
                  "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
                                   "attention_factor": 1e300}}, "attention_factor"),
    ],
)  # fmt: skip
def test_numbers_that_no_rope_can_be_made_of_are_refused(family: str, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        inverse_frequencies(as_engine(family, values).rope, 64)
    assert (caught.value.file, caught.value.field) == ("config.json", field)
    assert caught.value.remedy


def test_scaling_of_longrope_counts_from_the_classes_own_context() -> None:
    """Phi-3's class has 4,096 where the config says it only inside the rope's parameters."""
    scaling = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    values = {"max_position_embeddings": 8192, "rope_scaling": {**scaling, "original_max_position_embeddings": 64}}
    rope = as_engine("phi3", values).rope
    assert (rope.original_context, rope.attention_factor) == (4096, math.sqrt(1 + math.log(2) / math.log(4096)))
