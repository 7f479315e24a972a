"""LoRA and X-LoRA on quantized bases of several architectures, against PEFT on the weights that the bases stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import bnb, gguf_files, tiny
from support.blocks import input_codes
from support.forms import in_core_forms
from support.precision import reference, whole_pass, xlora_references

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.generation import loading as loading_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

pytestmark = [pytest.mark.usefixtures("both_paths"), pytest.mark.filterwarnings("ignore")]

IDS = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(3))
QUANTIZED = ("_proj.weight", "c_fc.weight")  # of the names in these models
GEMMA3 = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama": ({}, {}),
    "Phi3": ({}, {}),
    "Gemma2": ({"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, **CAPS}, CAPS),
    "Gemma3": ({"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6,
                "rope_parameters": GEMMA3, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}, {}),
    "Qwen2": ({}, {}),
    "Qwen3": ({"head_dim": 16}, {}),
    "Starcoder2": ({"sliding_window": None}, {}),
}  # fmt: skip
"""Architecture -> what its configuration has, and what its GGUF file."""
KINDS = ["Q8_0", "Q4_1", "nf4"]


@dataclass(frozen=True)
class Base:
    """A quantized base as the engine loads it, of a GGUF type or nf4, and a folder with the weights that it stands
    for."""

    settings: LoadSettings
    plain: Path
    kind: str


def make(name: str, kind: str, folder: Path) -> Base:
    changes, extra = MODELS[name]
    config_name = {"Gemma3": "Gemma3Text"}.get(name, name)
    values = {**tiny.SMALL, "hidden_size": 64, "intermediate_size": 128, "pad_token_id": 0, "initializer_range": 0.1}
    config = getattr(transformers, f"{config_name}Config")(**{**values, **changes}, attn_implementation="eager")
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    plain = folder / "plain"
    if kind == "nf4":
        model.save_pretrained(folder / "base")
        tiny.write_tokenizer(folder / "base")
        model.save_pretrained(plain)
        tensors = load_file(plain / "model.safetensors")
        for tensor_name, tensor in tensors.items():
            if tensor_name.endswith(QUANTIZED):
                tensors[tensor_name] = bnb.rounded(tensor, kind).contiguous()
        save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
        return Base(LoadSettings(str(folder / "base"), quantize="nf4", dtype="float32", device="cpu"), plain, kind)
    stands_for = gguf_files.write(model, folder / "m.gguf", name.lower(), kind, **extra)
    model.load_state_dict(stands_for, strict=False)
    model.tie_weights()
    model.save_pretrained(plain)
    return Base(LoadSettings(str(folder / "m.gguf"), dtype="float32", device="cpu"), plain, kind)


@pytest.fixture(params=[(name, kind) for name in MODELS for kind in KINDS], ids="-".join)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    return make(*request.param, tmp_path)


@pytest.fixture(autouse=True)
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models would be dequantized once where there are no kernels."""
    monkeypatch.setattr(loading_module, "keeps_packed", lambda parameters, device: True)


def run(engine: EngineCore, scalings: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and logits of IDS in one pass."""
    delta = None
    if scalings is not None:
        assert engine.mixture is not None
        delta = engine.mixture.delta(scalings, range(scalings.shape[-1]))
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(IDS))
    batch = Batch(IDS, torch.arange(len(IDS)), (Segment(0, 0, len(IDS), 0),), delta)
    hidden = engine.decoder.forward(batch, cache)
    return hidden, engine.decoder.logits(hidden, delta)


def test_a_lora_equals_peft_on_the_dequantized_base(base: Base, tmp_path: Path) -> None:
    tiny.make_lora(base.plain, tmp_path / "lora", 1, target_modules="all-linear")
    settings = replace(base.settings, mode="lora", adapters=(AdapterSource("a", str(tmp_path / "lora")),))
    engine = EngineCore.load(settings)
    assert {linear.dtype for linear in engine.decoder.linears[:-1]} == {None}
    oracle = PeftModel.from_pretrained(tiny.load(base.plain), tmp_path / "lora").eval()
    with torch.inference_mode():
        found = run(engine, torch.ones(1, 1, 1))[1]
    reference(oracle, whole_pass(IDS), input_codes(base.kind)).assert_near(found)


@in_core_forms
@pytest.mark.parametrize("base", [("Llama", kind) for kind in KINDS] + [("Phi3", "Q8_0")], indirect=True, ids="-".join)
def test_an_xlora_equals_peft_on_the_dequantized_base(base: Base, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for seed, folder in enumerate(folders):
        tiny.make_lora(base.plain, folder, seed, r=2 + seed, target_modules="all-linear")
    options = {"layerwise_scalings": True, "xlora_depth": 2, "xlora_size": 16, "std": 0.2}
    oracle = tiny.make_xlora(base.plain, tmp_path / "xlora", folders, **options)
    engine = EngineCore.load(replace(base.settings, mode="xlora", xlora=str(tmp_path / "xlora")))
    assert engine.classifier is not None
    with torch.inference_mode():
        scalings = engine.classifier(run(engine, None)[0])
        found = run(engine, scalings)[1]
    expected, expected_scalings = xlora_references(oracle, IDS, input_codes(base.kind))
    expected_scalings.assert_near(scalings)
    expected.assert_near(found)
    assert (scalings.amax(-1) < 0.99).any()  # they differ, and the answer depends on them
    assert any("8 bits" in warning for warning in engine.info.warnings) == (base.kind != "Q8_0")
