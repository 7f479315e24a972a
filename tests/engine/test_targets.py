"""Which modules of an adapter's file are used: those that its configuration adapts, as PEFT does it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from safetensors.torch import load_file, save_file
from support import tiny
from support.logits import with_one_adapter
from support.precision import reference, whole_pass

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError
from loradesk_engine.formats import peft
from loradesk_engine.formats.peft import read_adapter
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.patterns import Matcher

IDS = torch.randint(0, 256, (32,), generator=torch.Generator().manual_seed(3))
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {"num_hidden_layers": 12},
    "Phi": {"num_hidden_layers": 3},
    "Phi3": {"num_hidden_layers": 3},
    "Starcoder2": {"num_hidden_layers": 3},
    "Gemma2": {"num_hidden_layers": 3, "head_dim": 8},
    "Qwen3": {"num_hidden_layers": 3, "head_dim": 8},
}
CHOICES: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q_proj", "o_proj", "dense", "fc1", "c_fc", "gate_up_proj"]},
    "the output layer": {"target_modules": ["lm_head", "o_proj", "fc2"]},
    "a name within another": {"target_modules": ["proj", "_proj", "head", "1.self", "qkv_proj", "v_proj"]},
    "ends of paths": {"target_modules": ["self_attn.o_proj", "1.self_attn.q_proj", "layers.2.mlp.fc1"]},
    "a whole path": {"target_modules": ["model.layers.1.self_attn.o_proj", "model.layers.2.self_attn.dense"]},
    "a path too long": {"target_modules": ["base.model.layers.1.self_attn.o_proj", "v_proj", "o_proj"]},
    "a pattern": {"target_modules": r".*\.(q_proj|o_proj|fc1|dense)"},
    "a pattern of layers": {"target_modules": r"model\.layers\.[02]\..*(o_proj|dense|c_proj|down_proj)"},
    "a pattern that must match all": {"target_modules": r"self_attn.*|q_proj|.*0\..*(o_proj|dense)"},
    "all-linear": {"target_modules": "all-linear"},
    "ALL-LINEAR": {"target_modules": "ALL-LINEAR"},
    "one layer": {"target_modules": ["o_proj", "dense", "lm_head"], "layers_to_transform": 1},
    "layers": {"target_modules": ["o_proj", "v_proj"], "layers_to_transform": [0, 2]},
    "no layers": {"target_modules": ["o_proj", "v_proj"], "layers_to_transform": []},
    "layers and a whole path": {
        "target_modules": ["v_proj", "o_proj", "model.layers.0.self_attn.o_proj"], "layers_to_transform": [1],
    },
    "layers by a name": {
        "target_modules": ["o_proj", "v_proj"], "layers_to_transform": [1], "layers_pattern": "layers",
    },
    "layers by names": {
        "target_modules": ["o_proj", "v_proj"], "layers_to_transform": [1, 2], "layers_pattern": ["h", "layers"],
    },
    "layers by a pattern": {
        "target_modules": ["o_proj", "v_proj"], "layers_to_transform": [1], "layers_pattern": "l.*s",
    },
    "all but names": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "dense", "0.self_attn.v_proj"]},
    "all but a pattern": {"target_modules": "all-linear", "exclude_modules": r".*layers\.1\..*"},
    "a pattern but names": {"target_modules": r".*_proj", "exclude_modules": ["o_proj"]},
    "names but a pattern": {"target_modules": ["o_proj", "v_proj"], "exclude_modules": r".*\.2\..*"},
    "names but paths": {"target_modules": ["o_proj"], "exclude_modules": ["model.layers.1.self_attn.o_proj", "layers"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of each architecture, and an adapter on all its linears: `<name>`, `<name>-lora`."""
    root = tmp_path_factory.mktemp("targets")
    for name, changes in ARCHITECTURES.items():
        config = getattr(transformers, f"{name}Config")(**{**tiny.SMALL, "pad_token_id": 0, **changes})
        torch.manual_seed(1)
        getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(root / name)
        tiny.write_tokenizer(root / name)
        tiny.make_lora(root / name, root / f"{name}-lora", 1, r=2, target_modules=r".*(proj|dense|fc\d|c_fc|lm_head)")
    return root


def edited(adapter: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(adapter, folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | changes
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_modules_are_those_that_peft_adapts(made: Path, tmp_path: Path, name: str, choice: str) -> None:
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(made / name)
        model = transformers.AutoModelForCausalLM.from_config(config)
    try:
        adapted = get_peft_model(model, LoraConfig(r=2, **CHOICES[choice]))
        wanted = set(adapted.base_model.targeted_module_names)
    except NoMatchingPeftModuleError:
        wanted = set()
    adapter = edited(made / f"{name}-lora", tmp_path / "a", **CHOICES[choice])
    if not wanted:
        with pytest.raises(AdapterError, match="none of the") as caught:
            read_adapter(adapter)
        assert (caught.value.file, caught.value.field) == (str(adapter / CONFIG), "target_modules")
        assert caught.value.remedy
        return
    found = read_adapter(adapter)
    assert set(found.modules) == wanted
    every = {key.partition(".lora_")[0] for key in load_file(adapter / WEIGHTS) if ".lora_" in key}
    assert {f"base_model.model.{path}" for path in (*found.modules, *found.left_out)} == every


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"target_modules": ["q_proj"]}, 5),
        ({"exclude_modules": ["v_proj"]}, 2),
        ({"layers_to_transform": [0]}, 3),  # not of lm_head, which is a whole path
        ({"target_modules": r".*layers\.1\.mlp\.down_proj"}, 6),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]}, 0),
    ],
)
def test_what_is_left_out_changes_nothing_and_the_user_is_told(
    tmp_path: Path, changes: dict[str, Any], left_out: int
) -> None:
    tiny.make_llama(tmp_path / "base")
    tiny.make_lora(tmp_path / "base", tmp_path / "lora", 1, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"])
    adapter = edited(tmp_path / "lora", tmp_path / "a", **changes)
    model = PeftModel.from_pretrained(tiny.load(tmp_path / "base"), adapter).eval()
    adapters = (AdapterSource("a", str(adapter)),)
    settings = LoadSettings(base=str(tmp_path / "base"), mode="lora", adapters=adapters, dtype="float32", device="cpu")
    engine = EngineCore.load(settings)
    reference(model, whole_pass(IDS)).assert_near(with_one_adapter(engine, IDS))
    modules = 7 - left_out
    info = engine.adapters[0]
    more = f", {left_out} more in its file are left out" if left_out else ""
    assert (info.modules, info.applied) == (modules, f"applied to {modules} of 15 modules{more}")
    told = [text for text in engine.info.warnings if str(adapter / WEIGHTS) in text]
    assert len(told) == (left_out > 0)
    if "lm_head" not in info.target_modules:  # its copy of the base is left out, too
        assert told[0].startswith(f"Adapter a: {2 * left_out + 1} tensors of {left_out} modules")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ({}, r"v_proj|1\.self_attn\.q_proj"),
        ({"target_modules": "all-linear"}, r"layers\.1\.mlp"),
        ({"target_modules": r".*layers\.1\..*(q_proj|v_proj)"}, r"q_proj"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": [r"v_proj"]}, "0.self_attn.q_proj"),
        ({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}, "v_proj"),
        ({"target_modules": "all-linear"}, "no module"),
    ],
)
def test_the_user_is_told_what_the_file_lacks(tmp_path: Path, options: dict[str, Any], removed: str) -> None:
    tiny.make_llama(tmp_path / "base")
    tiny.make_lora(tmp_path / "base", tmp_path / "lora", 1, **options)
    adapter = edited(tmp_path / "lora", tmp_path / "a", init_lora_weights=True)  # what is missing changes nothing
    tensors = load_file(adapter / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if re.search(removed, name) is None}
    save_file(kept, adapter / WEIGHTS)
    model = PeftModel.from_pretrained(tiny.load(tmp_path / "base"), adapter)
    keys = model.load_adapter(str(adapter), "again").missing_keys
    missing = {key.partition(".lora_")[0].removeprefix("base_model.model.") for key in keys if "lora_" in key}
    assert bool(missing) == (len(kept) < len(tensors))
    adapters = (AdapterSource("a", str(adapter)),)
    settings = LoadSettings(base=str(tmp_path / "base"), mode="lora", adapters=adapters, dtype="float32", device="cpu")
    engine = EngineCore.load(settings)
    assert engine.mixture is not None
    assert set(engine.mixture.adapters[0].missing) == missing
    told = [text for text in engine.info.warnings if "are not in" in text]
    assert len(told) == bool(missing)
    assert (f"{len(missing)} that it should adapt" in engine.adapters[0].applied) == bool(missing)
    reference(model.eval(), whole_pass(IDS)).assert_near(with_one_adapter(engine, IDS))


def test_without_targets_all_of_the_file_is_used(made: Path, tmp_path: Path) -> None:
    adapter = read_adapter(edited(made / "Llama-lora", tmp_path / "a", target_modules=None))
    assert len(adapter.modules) == 12 * 7 + 1
    assert adapter.warning is None


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"target_modules": [1]}, "target_modules", "list of text"),
        ({"target_modules": {"q_proj": 1}}, "target_modules", "list of text"),
        ({"target_modules": 7}, "target_modules", "list of text"),
        ({"target_modules": "("}, "target_modules", "regular expression"),
        ({"target_modules": []}, "target_modules", "none of the"),
        ({"target_modules": ["q"]}, "target_modules", "none of the"),
        ({"exclude_modules": [None]}, "exclude_modules", "list of text"),
        ({"exclude_modules": "["}, "exclude_modules", "regular expression"),
        ({"layers_to_transform": "1"}, "layers_to_transform", "whole numbers"),
        ({"layers_to_transform": [True]}, "layers_to_transform", "whole numbers"),
        ({"layers_to_transform": 1, "layers_pattern": "("}, "layers_pattern", "regular expression"),
        ({"layers_to_transform": 1, "layers_pattern": "m.*|x"}, "target_modules", "none of the"),
        ({"layers_to_transform": 1, "target_modules": ".*"}, "layers_to_transform", "as a list"),
        ({"layers_to_transform": 1, "target_modules": None}, "layers_to_transform", "as a list"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters", "not supported"),
        ({"target_parameters": [3]}, "target_parameters", "list of text"),
    ],
)
def test_what_cannot_be_matched_is_refused_by_name(
    made: Path, tmp_path: Path, changes: dict[str, Any], field: str, message: str
) -> None:
    base = {"target_modules": ["q_proj"], "exclude_modules": None}
    adapter = edited(made / "Llama-lora", tmp_path / "a", **(base | changes))
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter(adapter)
    assert (caught.value.file, caught.value.field) == (str(adapter / CONFIG), field)
    assert caught.value.remedy


def test_a_pattern_that_takes_years_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft, "Matcher", lambda: Matcher(0.05))
    adapter = edited(made / "Llama-lora", tmp_path / "a", target_modules=r"(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5(?<=!)")
    with pytest.raises(AdapterError, match="too long") as caught:
        read_adapter(adapter)
    assert (caught.value.file, caught.value.field) == (str(adapter / CONFIG), "target_modules")


@pytest.mark.filterwarnings("ignore")
def test_a_linears_weight_as_a_parameter_equals_peft(tmp_path: Path) -> None:
    tiny.make_llama(tmp_path / "base")
    options = {
        "target_modules": ["v_proj"],
        "target_parameters": ["q_proj.weight", "model.layers.1.mlp.up_proj.weight"],
    }
    patterns = {"rank_pattern": {r"q_proj\.weight": 3, "up_proj": 9}, "alpha_pattern": {"weight": 5}}
    tiny.make_lora(tmp_path / "base", tmp_path / "lora", 1, **options, **patterns)
    model = PeftModel.from_pretrained(tiny.load(tmp_path / "base"), tmp_path / "lora").eval()
    adapters = (AdapterSource("a", str(tmp_path / "lora")),)
    settings = LoadSettings(base=str(tmp_path / "base"), mode="lora", adapters=adapters, dtype="float32", device="cpu")
    engine = EngineCore.load(settings)
    reference(model, whole_pass(IDS)).assert_near(with_one_adapter(engine, IDS))
    assert engine.adapters[0].modules == 5


def test_trained_biases_of_the_base_are_kept_where_their_module_is_left_out(tmp_path: Path) -> None:
    """They are not part of a wrapper: PEFT puts them into the base."""
    tiny.make_llama(tmp_path / "base", attention_bias=True)
    tiny.make_lora(tmp_path / "base", tmp_path / "lora", 1, bias="all", target_modules=["v_proj"])
    file = tmp_path / "lora" / WEIGHTS
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    extra = {f"{stem}.lora_A.weight": torch.ones(4, 32), f"{stem}.lora_B.weight": torch.ones(32, 4)}
    save_file({**load_file(file), **extra}, file)
    adapter = read_adapter(tmp_path / "lora")
    assert list(adapter.left_out) == ["model.layers.0.self_attn.q_proj"]
    assert len(adapter.biases) == 8
