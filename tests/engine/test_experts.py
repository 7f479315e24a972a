"""LoRA on Mixtral's experts and router against PEFT: saved by transformers 4, whose experts are linears, and by
transformers 5, whose experts are two parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import gguf_files, tiny
from support.blocks import input_codes
from support.precision import Reference, reference, whole_pass

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError
from loradesk_engine.formats.peft import read_adapter
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

pytestmark = [pytest.mark.usefixtures("both_paths"), pytest.mark.filterwarnings("ignore")]

IDS = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(3))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EXPERTS = "base_model.model.model.layers.0.mlp.experts"
SIZES = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "base"
    torch.manual_seed(1)
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**tiny.SMALL, **SIZES)).save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return folder


@torch.inference_mode()
def engine_logits(base: Path, *adapters: Path) -> tuple[torch.Tensor, EngineCore]:
    sources = tuple(AdapterSource(str(number), str(folder)) for number, folder in enumerate(adapters))
    engine = EngineCore.load(LoadSettings(base=str(base), mode="lora", adapters=sources, dtype="float32", device="cpu"))
    assert engine.mixture is not None
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(IDS))
    delta = engine.mixture.delta(torch.ones(1, 1, len(adapters)), range(len(adapters)))
    batch = Batch(IDS, torch.arange(len(IDS)), (Segment(0, 0, len(IDS), 0),), delta)
    return engine.decoder.logits(engine.decoder.forward(batch, cache), delta), engine


def peft_logits(base: Path, adapter: Path) -> Reference:
    return reference(PeftModel.from_pretrained(tiny.load(base), adapter).eval(), whole_pass(IDS))


def as_saved_before_transformers_5(base: Path, folder: Path, names: list[str], **config: Any) -> Path:
    """Random A and B on linears of Mixtral, under the names that they had."""
    generator = torch.Generator().manual_seed(2)
    adapter = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.removesuffix(".weight").rpartition(".")[2] in names:
            stem = "base_model.model." + name.removesuffix(".weight")
            adapter[f"{stem}.lora_A.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.2
            adapter[f"{stem}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.2
    folder.mkdir()
    save_file(adapter, folder / WEIGHTS)
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": names}
    (folder / CONFIG).write_text(json.dumps(values | config), encoding="utf-8")
    return folder


OLD = {
    "experts": (["w1", "w2", "w3"], 24),
    "one matrix of each": (["w2", "q_proj"], 10),
    "with the router": (["w1", "w2", "w3", "gate", "o_proj"], 28),
}


@pytest.mark.parametrize("kind", OLD)
def test_an_adapter_of_linears_equals_peft_and_so_does_what_peft_makes_of_it(
    base: Path, tmp_path: Path, kind: str
) -> None:
    names, modules = OLD[kind]
    adapter = as_saved_before_transformers_5(base, tmp_path / "old", names)
    expected = peft_logits(base, adapter)
    PeftModel.from_pretrained(tiny.load(base), adapter).save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / CONFIG).read_text(encoding="utf-8"))
    assert saved["target_parameters"]
    for folder in (adapter, tmp_path / "new"):
        actual, engine = engine_logits(base, folder)
        expected.assert_near(actual)
        assert engine.adapters[0].modules == modules
        assert engine.info.warnings == ()
    with torch.inference_mode():
        plain = tiny.load(base)(IDS[None], use_cache=False).logits[0]
    assert (plain - expected.own).abs().max() > 0.5


NEW: dict[str, tuple[dict[str, Any], int]] = {
    "the names of before": ({"target_modules": ["q_proj", "w1", "w2", "w3"]}, 26),
    "gate and up": ({"target_modules": ["w1", "w3"]}, 16),
    "down": ({"target_modules": ["w2"]}, 8),
    "all-linear": ({"target_modules": "all-linear"}, 34),
    "a pattern": ({"target_modules": r".*\.(w1|w2|w3|v_proj)"}, 26),
    "parameters": ({"target_modules": [], "target_parameters": ["experts.down_proj", "mlp.experts.gate_up_proj"]}, 24),
    "down of one layer": (
        {"target_modules": ["q_proj"], "target_parameters": ["model.layers.1.mlp.experts.down_proj"]}, 6,
    ),
    "differently by layer": (
        {"target_modules": [],
         "target_parameters": ["model.layers.1.mlp.experts.down_proj", "layers.0.mlp.experts.gate_up_proj",
                               "1.mlp.experts.gate_up_proj", "0.mlp.gate.weight"]}, 21,
    ),
    "ranks": (
        {"target_modules": ["w1", "w2", "w3"], "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 7}}, 24,
    ),
    "ranks by layer": (
        {"target_modules": [], "target_parameters": ["gate_up_proj"],
         "alpha_pattern": {"0.mlp.experts.gate_up_proj": 3},
         "rank_pattern": {r"layers\.1\.mlp\.experts\.gate_up_proj": 5}}, 16,
    ),
    "rank-stabilised": ({"target_modules": ["w1", "w2", "w3"], "use_rslora": True}, 24),
    "layers, which parameters do not mind": ({"target_modules": ["q_proj", "w2"], "layers_to_transform": [1]}, 9),
    "the router": ({"target_modules": ["gate"]}, 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", NEW)
def test_an_adapter_of_parameters_equals_peft(base: Path, tmp_path: Path, kind: str) -> None:
    options, modules = NEW[kind]
    tiny.make_lora(base, tmp_path / "lora", 1, **options)
    actual, engine = engine_logits(base, tmp_path / "lora")
    peft_logits(base, tmp_path / "lora").assert_near(actual)
    assert engine.adapters[0].applied == f"applied to {modules} of 35 modules"


def test_it_equals_peft_on_a_gguf_base(base: Path, tmp_path: Path) -> None:
    model = tiny.load(base)
    extra = {"expert_count": 4, "expert_used_count": 2}
    model.load_state_dict(gguf_files.write(model, tmp_path / "m.gguf", "llama", "Q8_0", **extra), strict=False)
    tiny.make_lora(base, tmp_path / "lora", 1, target_modules="all-linear")
    actual, _ = engine_logits(tmp_path / "m.gguf", tmp_path / "lora")
    oracle = PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    reference(oracle, whole_pass(IDS), input_codes("Q8_0")).assert_near(actual)


def test_both_forms_side_by_side_add_up(base: Path, tmp_path: Path) -> None:
    old = as_saved_before_transformers_5(base, tmp_path / "old", ["w1", "w2", "w3"])
    PeftModel.from_pretrained(tiny.load(base), old).save_pretrained(tmp_path / "new")
    whole = as_saved_before_transformers_5(base, tmp_path / "whole", ["w1", "w2", "w3"], lora_alpha=16)
    both, engine = engine_logits(base, old, tmp_path / "new")
    peft_logits(base, whole).assert_near(both)  # one adapter of twice the weight
    assert {adapter.modules for adapter in engine.adapters} == {24}


def test_what_the_configuration_does_not_name_is_left_out(base: Path, tmp_path: Path) -> None:
    tiny.make_lora(base, tmp_path / "lora", 1, target_modules=["q_proj", "w1", "w2", "w3"])
    adapter = edited(tmp_path / "lora", target_parameters=["experts.down_proj"])
    found = read_adapter(adapter)
    assert len(found.modules) == 2 + 8
    assert list(found.left_out) == [f"model.layers.{layer}.mlp.experts.base_layer" for layer in range(2)]
    assert "4 tensors of 2 modules" in (found.warning or "")


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


def with_tensors(folder: Path, **changes: torch.Tensor) -> None:
    named = {f"{EXPERTS}.{name.replace('__', '.')}.weight": tensor for name, tensor in changes.items()}
    save_file({**load_file(folder / WEIGHTS), **named}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda f: edited(f, r=3), f"{EXPERTS}.base_layer.lora_A.weight", "no matrices of rank 3"),
        (lambda f: edited(f, r=1, rank_pattern={"down_proj": 17}), f"{EXPERTS}.lora_A.weight", "of rank 17"),
        (lambda f: with_tensors(f, lora_B=torch.ones(32, 12)), f"{EXPERTS}.lora_A.weight", "no matrices"),
        (lambda f: with_tensors(f, base_layer__lora_B=torch.ones(127, 16)), f"{EXPERTS}.base_layer.lora_A.weight",
         "no matrices"),
        (lambda f: with_tensors(f, lora_A=torch.ones(16)), f"{EXPERTS}.lora_A.weight", "matrix is expected"),
        (lambda f: with_tensors(f, lora_A=torch.ones(4 * 2048, 64), lora_B=torch.ones(32, 4 * 2048)),
         f"{EXPERTS}.lora_A.weight", "no matrices"),
        (lambda f: edited(f, use_dora=True), "model.layers.0.mlp.experts.gate_up_proj", "use_dora"),
        (lambda f: edited(f, lora_bias=True), "model.layers.0.mlp.experts.gate_up_proj", "lora_bias"),
        (lambda f: save_file({**load_file(f / WEIGHTS), f"{EXPERTS}.lora_B.bias": torch.ones(64)}, f / WEIGHTS),
         "model.layers.0.mlp.experts.down_proj", "lora_bias"),
        (lambda f: save_file({**load_file(f / WEIGHTS), f"{EXPERTS}.lora_magnitude_vector": torch.ones(64)},
                             f / WEIGHTS), "model.layers.0.mlp.experts.down_proj", "use_dora"),
        (lambda f: save_file({**load_file(f / WEIGHTS),
                              "base_model.model.model.layers.0.block_sparse_moe.experts.0.w2.lora_A.weight":
                                  torch.ones(4, 64),
                              "base_model.model.model.layers.0.block_sparse_moe.experts.0.w2.lora_B.weight":
                                  torch.ones(32, 4)}, f / WEIGHTS), "model.layers.0.mlp.experts", "twice"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(base: Path, tmp_path: Path, change, field: str, message: str) -> None:  # type: ignore[no-untyped-def]
    parameters = ["experts.down_proj", "experts.gate_up_proj"]
    tiny.make_lora(base, tmp_path / "lora", 1, target_modules=[], target_parameters=parameters)
    edited(tmp_path / "lora", target_modules=["w2"])
    change(tmp_path / "lora")
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter(tmp_path / "lora")
    assert (caught.value.file, caught.value.field) == (str(tmp_path / "lora" / WEIGHTS), field)
    assert caught.value.remedy or "twice" in message or "matrix" in message


def test_an_adapter_of_another_count_of_experts_is_refused(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**tiny.SMALL, num_local_experts=6, num_experts_per_tok=2)
    ).save_pretrained(other)
    tiny.make_lora(other, tmp_path / "lora", 1, target_modules=["w1", "w2", "w3"])
    with pytest.raises(AdapterError, match="does not have") as caught:
        engine_logits(base, tmp_path / "lora")
    assert caught.value.field is not None
    assert "experts.4" in caught.value.field
