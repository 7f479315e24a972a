"""`layers` against PEFT: key by key and number by number, on transformers' own classes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists

from loradesk_engine.architectures.registry import CLASSES, FAMILIES
from loradesk_engine.errors import ConfigError, OrderingError
from loradesk_engine.ordering import build
from loradesk_engine.ordering.modules import (
    linear_modules,
    match_targets,
    number_layers,
    target_names,
    text_part,
    unsupported_on_quantized,
)

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}

TWO_DIGITS: dict[str, Any] = {"num_hidden_layers": 11}  # so that a sort by text would show

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", TWO_DIGITS),
    "llama-biased": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 3, **TWO_DIGITS}),
    "gemma": ("GemmaForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {}),
    "gemma3_text": ("Gemma3ForCausalLM", {}),
    "phi": ("PhiForCausalLM", {"qk_layernorm": True}),
    "phi3": ("Phi3ForCausalLM", {"pad_token_id": 0, **TWO_DIGITS}),
    "phi4-mini": (
        "Phi3ForCausalLM",
        {"pad_token_id": 0, "partial_rotary_factor": 0.5, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "starcoder2": ("Starcoder2ForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {}),
}

Target = str | list[str]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ATTENTION_OF = {"phi": ["q_proj", "k_proj", "v_proj", "dense"], "phi3": ["qkv_proj", "o_proj"]}
ATTENTION_OF["phi4-mini"] = ATTENTION_OF["phi3"]


def make(name: str, **changes: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model without memory, and its config.json as transformers would save it."""
    class_name, options = MODELS[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**{**TINY, **options, **changes})
    with torch.device("meta"):
        model = model_class(config)
    return model, json.loads(config.to_json_string()) | {"architectures": [class_name]}


def peft_layers(model: torch.nn.Module, **options: Any) -> dict[str, int]:
    """What mistral.rs' recipe gives: the modules that PEFT replaces, numbered as `named_modules` meets them."""
    inject_adapter_in_model(LoraConfig(**options), model, low_cpu_mem_usage=True)
    paths = [path for path, module in model.named_modules() if isinstance(module, LoraLayer)]
    return {path: index for index, path in enumerate(paths)}


def linears_of(model: torch.nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if type(module) is torch.nn.Linear]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mixtral"])
def test_layers_are_what_peft_makes(name: str) -> None:
    model, config = make(name)
    assert list(linear_modules(config)) == linears_of(model)
    linears = list(target_names(config))
    attention = ATTENTION_OF.get(name, ATTENTION)
    targets: list[Target] = [
        attention,
        [target for target in linears if target != "lm_head"],
        linears,  # with lm_head
        [*reversed(linears)],  # the order in which targets are written does not count
        ["lm_head", attention[0]],
        "all-linear",
        r".*\.[0-9]\.self_attn\.(q|qkv)_proj",
    ]
    for target in targets:
        expected = peft_layers(make(name)[0], target_modules=target)
        made = build.create("base", config, target).layers
        assert list((made or {}).items()) == list(expected.items()), target


@pytest.mark.parametrize("target", [ATTENTION, ["q_proj"], ["lm_head", "v_proj"]])
def test_mixtral_attention_is_what_peft_makes(target: list[str]) -> None:
    model, config = make("mixtral")
    assert dict(build.create("base", config, target).layers or {}) == peft_layers(model, target_modules=target)


def test_mixtral_linears_that_transformers_still_has() -> None:
    model, config = make("mixtral")
    ours = [path for path in linear_modules(config) if "block_sparse_moe" not in path]
    assert ours == linears_of(model)


class _ClassicBlock(torch.nn.Module):
    """The structure that transformers 4 prints for a Mixtral block; transformers 5 has fused its experts."""

    def __init__(self, experts: int) -> None:
        super().__init__()

        def linears(*names: str) -> torch.nn.Module:
            return torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in names})

        self.self_attn = linears("q_proj", "k_proj", "v_proj", "o_proj")
        self.block_sparse_moe = linears("gate")
        self.block_sparse_moe["experts"] = torch.nn.ModuleList(linears("w1", "w2", "w3") for _ in range(experts))


@pytest.mark.parametrize("target", [["w1", "w2", "w3"], ["gate", "w2", "q_proj"], ["lm_head", "w1", "o_proj"]])
def test_mixtral_experts_in_the_classic_structure(target: list[str]) -> None:
    with torch.device("meta"):
        model = torch.nn.Module()
        model.model = torch.nn.Module()
        model.model.layers = torch.nn.ModuleList(_ClassicBlock(3) for _ in range(11))
        model.lm_head = torch.nn.Linear(2, 2)
    config = make("mixtral")[1]
    assert list(linear_modules(config)) == linears_of(model)
    layers = dict(build.create("base", config, target).layers or {})
    inject_adapter_in_model(LoraConfig(target_modules=target), model, low_cpu_mem_usage=True)
    paths = [path for path, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert layers == {path: index for index, path in enumerate(paths)}


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 10]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 3},
        {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0]},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": ["h", "layers"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.1.self_attn.k_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*\.mlp\..*"},
        {"target_modules": r".*_proj", "exclude_modules": ["down_proj"]},
        {"target_modules": ["model.layers.3.self_attn.q_proj", "self_attn.k_proj"]},
        {"target_modules": "All-Linear"},
    ],
)
def test_options_are_those_of_peft(options: dict[str, Any]) -> None:
    model, config = make("llama")
    assert number_layers(match_targets(linear_modules(config), **options)) == peft_layers(model, **options)


COMPONENTS = st.sampled_from(["model", "layers", "0", "1", "12", "q_proj", "proj", "q", "self_attn", "lm_head", "x_q"])
PATHS = st.lists(COMPONENTS, min_size=1, max_size=6).map(".".join)


@given(
    path=PATHS,
    targets=st.lists(PATHS, max_size=3),
    excluded=st.lists(PATHS, max_size=2),
    indices=st.none() | st.lists(st.integers(0, 13), max_size=2),
    pattern=st.none() | st.sampled_from(["layers", "model", ["x", "layers"]]),
)
def test_any_list_matches_as_in_peft(
    path: str, targets: list[str], excluded: list[str], indices: list[int] | None, pattern: str | list[str] | None
) -> None:
    config = LoraConfig(target_modules=targets, exclude_modules=excluded or None)
    config.layers_to_transform, config.layers_pattern = indices, pattern
    try:
        expected = bool(check_target_module_exists(config, path))
    except UnboundLocalError:  # PEFT 0.21 with a pattern list that is empty
        return
    if any(path == name or path.endswith(f".{name}") for name in excluded):
        expected = False  # PEFT returns a marker object
    assert bool(match_targets([path], targets, indices, pattern, excluded)) is expected


def test_every_architecture_is_covered() -> None:
    assert {CLASSES[class_name] for class_name, _ in MODELS.values()} == set(FAMILIES)


def test_model_type_serves_when_no_class_is_named() -> None:
    _, config = make("qwen3")
    del config["architectures"]
    assert len(linear_modules(config)) == 3 * 7 + 1


def test_an_unknown_architecture_is_named_with_the_supported_ones() -> None:
    with pytest.raises(ConfigError, match=r"(?s)'GPT2LMHeadModel' is not supported.*LlamaForCausalLM") as caught:
        linear_modules({"architectures": ["GPT2LMHeadModel"], "num_hidden_layers": 2})
    assert caught.value.field == "architectures"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": []},
        {"architectures": [3]},
        {"architectures": "LlamaForCausalLM"},
        {"model_type": ["llama"]},
        {"model_type": "llama"},
        {"model_type": "llama", "num_hidden_layers": "2"},
        {"model_type": "llama", "num_hidden_layers": True},
        {"model_type": "llama", "num_hidden_layers": 0},
        {"model_type": "llama", "num_hidden_layers": 10**12},
        {"model_type": "mixtral", "num_hidden_layers": 2},
        {"model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 10**9},
    ],
)
def test_bad_configurations_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        linear_modules(config)
    assert caught.value.field


def test_a_class_that_is_no_name_has_no_text_part() -> None:
    config = {"architectures": [["Gemma3ForConditionalGeneration"]], "text_config": {}}
    assert text_part(config) is config


def test_bad_patterns_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        match_targets(["a"], "(")
    with pytest.raises(ConfigError, match="not a regular expression"):
        match_targets(["a"], ["a"], exclude_modules="*")


@pytest.mark.parametrize("options", [{"layers_to_transform": [1]}, {"layers_to_transform": 1, "layers_pattern": "h"}])
@pytest.mark.parametrize("target", ["all-linear", ".*q_proj"])
def test_layers_are_chosen_with_a_list_only(target: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="layers_to_transform"):
        LoraConfig(target_modules=target, **options)
    with pytest.raises(ConfigError, match="layers_to_transform"):
        match_targets(["a"], target, **options)


def test_a_target_that_matches_nothing_is_named(small_config: dict[str, Any]) -> None:
    with pytest.raises(OrderingError, match=r"no linear 'q_prj'\. Did you mean 'q_proj'\?"):
        build.create("base", small_config, ["v_proj", "q_prj"])
    with pytest.raises(OrderingError, match="match no linear"):
        build.create("base", small_config, "nothing")
    with pytest.raises(OrderingError, match="match no linear"):
        build.create("base", small_config, [])


def test_layers_that_a_quantized_base_allows() -> None:
    """Section 4 of the design, for every architecture's own linears."""
    refused = {}
    for name, (class_name, options) in MODELS.items():
        config = {"architectures": [class_name], **options, "num_hidden_layers": 1}
        paths = unsupported_on_quantized(linear_modules(config), config)
        refused[name] = {re.sub(r"\.\d+\.", ".N.", path.removeprefix("model.layers.0.")) for path in paths}
    assert refused["phi"] == {"self_attn.dense", "mlp.fc1", "mlp.fc2"}
    assert refused["starcoder2"] == {"mlp.c_fc", "mlp.c_proj"}
    assert refused["mixtral"] == {"block_sparse_moe.gate", *(f"block_sparse_moe.experts.N.w{n}" for n in (1, 2, 3))}
    others = set(MODELS) - {"phi", "starcoder2", "mixtral"}
    assert all(not refused[name] for name in others)
