"""Gemma 3 with images: its text part equals transformers' on text, with adapters trained on the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import tiny
from support.logits import logits_of
from support.precision import reference, whole_pass

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import ConfigError, FileFormatError
from loradesk_engine.formats.config import parse_config
from loradesk_engine.formats.peft import read_adapter
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.base import read_base
from loradesk_engine.ordering.modules import linear_modules

IDS = [torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length)) for length in (53, 21)]
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> transformers.PreTrainedModel:
    """Saved to `base`, with norms and caps far from those that would hide a mistake."""
    text = {**tiny.SMALL, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "num_hidden_layers": 6,
            "final_logit_softcapping": 3.0}  # fmt: skip
    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=sight,
        mm_tokens_per_image=4,
        image_token_index=259,
        boi_token_index=258,
        eoi_token_index=257,
        pad_token_id=0,
        attn_implementation="eager",
    )
    torch.manual_seed(1)
    made = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(tmp_path / "base")
    tiny.write_tokenizer(tmp_path / "base")
    return made


def compare(engine: EngineCore, oracle: torch.nn.Module, weights: torch.Tensor | None) -> None:
    """A ragged batch with cached steps against whole passes."""
    for ids, found in zip(IDS, logits_of(engine, IDS, weights), strict=True):
        reference(oracle, whole_pass(ids)).assert_near(found)


def rename(file: Path, old: str, new: str) -> int:
    """Rename tensors of a file; how many had the old beginning."""
    tensors = load_file(file)
    save_file({name.replace(old, new, 1): tensor for name, tensor in tensors.items()}, file)
    return sum(old in name for name in tensors)


@torch.inference_mode()
def test_the_text_part_equals_transformers(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    settings = LoadSettings(base=str(tmp_path / "base"), dtype="float32")
    engine = EngineCore.load(settings)
    compare(engine, model, None)
    parameters = sum(one.numel() for one in model.model.language_model.parameters())
    assert (engine.info.parameters, read_base(tmp_path / "base").parameters) == (parameters, parameters)
    assert rename(tmp_path / "base" / WEIGHTS, "language_model.model.", "model.language_model.") > 0
    compare(EngineCore.load(settings), model, None)


@torch.inference_mode()
def test_an_adapter_of_the_whole_model_equals_peft(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    """`q_proj` is in the part that sees as well; alpha's pattern names a path as the whole model has it."""
    with torch.inference_mode(False):
        lora = LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
            alpha_pattern={r"model.language_model.layers.1.self_attn.q_proj": 20},
            init_lora_weights=False,
        )
        adapted = get_peft_model(model, lora).eval()
        adapted.save_pretrained(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    assert any("vision_tower" in name for name in load_file(file))
    settings = LoadSettings(
        base=str(tmp_path / "base"), mode="lora", adapters=(AdapterSource("a", str(file.parent)),), dtype="float32"
    )
    engine = EngineCore.load(settings)
    assert engine.adapters[0].modules == 6 * 4
    compare(engine, adapted, torch.ones(1, 1, 1))
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps({**lora.to_dict(), "target_modules": sorted(lora.target_modules),
                    "alpha_pattern": {r"language_model.model.layers.1.self_attn.q_proj": 20}}, default=str)
    )  # fmt: skip
    assert rename(file, "model.language_model.", "language_model.model.") > 0
    compare(EngineCore.load(settings), adapted, torch.ones(1, 1, 1))


def test_what_an_adapter_of_the_whole_model_lacks(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    """Patterns are for the whole model's names; PEFT says what it misses of the parts for text and for images."""
    lora = LoraConfig(r=4, target_modules=r"(model|base)\.(language_model|vision_tower)\.layers\.[123]\..*[qv]_proj")
    get_peft_model(model, lora).save_pretrained(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({name: one for name, one in load_file(file).items() if ".2." not in name and "v_proj" not in name}, file)
    base = transformers.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "base")
    keys = get_peft_model(base, lora).load_adapter(str(file.parent), "again").missing_keys
    config = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    missing = read_adapter(file.parent).missing(linear_modules(config))
    assert {f"base_model.model.{path.replace('model.', 'model.language_model.', 1)}" for path in missing} == {
        key.partition(".lora_")[0] for key in keys
    }
    assert len(missing) == 4


def test_a_tensor_in_both_spellings_is_refused(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    file = tmp_path / "base" / WEIGHTS
    tensors = load_file(file)
    save_file({**tensors, "model.language_model.norm.weight": torch.ones(32)}, file)
    with pytest.raises(FileFormatError) as caught:
        read_base(tmp_path / "base")
    assert caught.value.file == str(file)
    assert "norm.weight" in (caught.value.field or "")


HUB = {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "vision_config": {}}
TEXT = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip


def test_the_short_config_of_the_hub_means_what_it_means_to_transformers() -> None:
    config = parse_config({**HUB, "text_config": TEXT}, "config.json")
    theirs = transformers.Gemma3Config(text_config=dict(TEXT)).get_text_config()
    assert config.eos_token_ids == (1, 106)
    assert config.tie_embeddings
    assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim, config.context) == (
        theirs.vocab_size, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim,
        theirs.max_position_embeddings,
    )  # fmt: skip
    assert [window is not None for window in config.windows] == [
        kind == "sliding_attention" for kind in theirs.layer_types
    ]
    assert (config.rope.kind, config.rope.factor, config.rope.theta) == ("linear", 8.0, 1e6)
    assert config.linear_paths == linear_modules({**HUB, "text_config": TEXT})
    assert (len(config.linear_paths), config.linear_paths[-1]) == (34 * 7 + 1, "lm_head")


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({**HUB}, "text_config", "missing"),
        ({**HUB, "text_config": 7}, "text_config", "a number"),
        ({**HUB, "text_config": {**TEXT, "hidden_size": "wide"}}, "hidden_size", "whole number"),
        ({**HUB, "architectures": ["LlavaForConditionalGeneration"], "text_config": TEXT}, "architectures",
         "multimodal"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(values: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_config(values, "config.json")
    assert (caught.value.file, caught.value.field) == ("config.json", field)
