"""Models in GGUF files: against transformers on the dequantized weights, and with adapters on top."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from support import gguf_files, parity, tiny
from support.blocks import input_codes
from support.forms import in_core_forms
from support.precision import reference, whole_pass

from loradesk_engine import Engine
from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import ConfigError, FileFormatError, LoradeskError, OrderingError
from loradesk_engine.formats.gguf import read_gguf
from loradesk_engine.formats.gguf_tokenizer import gguf_tokenizer
from loradesk_engine.formats.tokenizer import read_tokenizer
from loradesk_engine.generation import loading as loading_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.base import read_base
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.quantized import PackedLinear
from loradesk_resources import resource_path

pytestmark = pytest.mark.usefixtures("both_paths")

DEMO = resource_path("demo")
IDS = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(3))
ROPE3 = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
MODELS = {
    "llama": ("Llama", {}, {}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2},
                {"expert_count": 4, "expert_used_count": 2}),
    "qwen2": ("Qwen2", {}, {}),
    "qwen3": ("Qwen3", {"head_dim": 16}, {}),
    "phi3": ("Phi3", {}, {}),
    "gemma": ("Gemma", {"head_dim": 16}, {}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "attn_logit_softcapping": 5.0,
         "final_logit_softcapping": 4.0},
        {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
    ),
    "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6,
                          "rope_parameters": ROPE3, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}, {}),
    "starcoder2": ("Starcoder2", {"sliding_window": None}, {}),
}  # fmt: skip


def make(architecture: str, path: Path, kind: str) -> transformers.PreTrainedModel:
    """A random model in a GGUF file; transformers' model with the weights that the file stands for."""
    name, changes, extra = MODELS[architecture]
    config_name = {"Gemma3": "Gemma3Text"}.get(name, name)
    values = {**tiny.SMALL, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "pad_token_id": 0,
              "initializer_range": 0.1, **changes}  # fmt: skip
    config = getattr(transformers, f"{config_name}Config")(**values, attn_implementation="eager")
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    stands_for = gguf_files.write(model, path, "llama" if architecture == "mixtral" else architecture, kind, **extra)
    model.load_state_dict(stands_for, strict=False)
    model.tie_weights()
    return model


@torch.inference_mode()
def logits_of(engine: EngineCore) -> torch.Tensor:
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(IDS))
    delta = None
    if engine.mixture is not None:
        delta = engine.mixture.delta(torch.ones(1, 1, 1), [0])
    batch = Batch(IDS, torch.arange(len(IDS)), (Segment(0, 0, len(IDS), 0),), delta)
    return engine.decoder.logits(engine.decoder.forward(batch, cache), delta)


@pytest.mark.parametrize("architecture", MODELS)
def test_every_architecture_equals_transformers(architecture: str, tmp_path: Path) -> None:
    model = make(architecture, tmp_path / "m.gguf", "F32")
    engine = EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf"), dtype="float32"))
    parity.assert_near(MODELS[architecture][0], "GGUF", logits_of(engine), reference(model, whole_pass(IDS)))


@in_core_forms
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("packed", [False, True], ids=["dequantized once", "packed"])
def test_quantized_files_equal_transformers_on_the_dequantized_weights(
    kind: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading_module, "keeps_packed", lambda parameters, device: packed)
    model = make("llama", tmp_path / "m.gguf", kind)
    engine = EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf"), dtype="float32"))
    quantized = kind not in ("F16", "BF16")
    assert (engine.decoder.linears[0].dtype is None) == (packed and quantized)
    reference(model, whole_pass(IDS), input_codes(kind) if packed else None).assert_near(logits_of(engine))


@pytest.mark.parametrize("packed", [False, True], ids=["dequantized once", "packed"])
def test_quantized_experts_equal_transformers(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "keeps_packed", lambda parameters, device: packed)
    model = make("mixtral", tmp_path / "m.gguf", "Q8_0")
    engine = EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf"), dtype="float32"))
    assert any(isinstance(linear, PackedLinear) for linear in engine.decoder.linears) == packed
    reference(model, whole_pass(IDS), input_codes("Q8_0") if packed else None).assert_near(logits_of(engine))


@in_core_forms
def test_a_lora_on_a_packed_base_equals_peft_on_the_dequantized_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    monkeypatch.setattr(loading_module, "keeps_packed", lambda parameters, device: True)
    model = make("llama", tmp_path / "m.gguf", "Q4_0")
    model.save_pretrained(tmp_path / "base")
    tiny.make_lora(tmp_path / "base", tmp_path / "lora", 3)
    adapters = (AdapterSource("a", str(tmp_path / "lora")),)
    engine = EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf"), mode="lora", adapters=adapters))
    oracle = PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    reference(oracle, whole_pass(IDS), input_codes("Q4_0")).assert_near(logits_of(engine))


def test_an_ordering_file_with_layers_a_quantized_base_does_not_support(tmp_path: Path) -> None:
    make("starcoder2", tmp_path / "m.gguf", "Q8_0")
    layers = {"model.layers.0.mlp.c_fc": 0, "model.layers.0.self_attn.q_proj": 1}
    ordering = tiny.write_ordering(tmp_path / "o.json", base_model_id="m", layers=layers, order=[])
    with pytest.raises(OrderingError) as caught:
        EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf"), mode="lora", ordering=str(ordering)))
    assert "c_fc" in str(caught.value)


def test_xlora_on_a_four_bit_base_warns(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = transformers.LlamaForCausalLM.from_pretrained(zoo.base, dtype=torch.float32)
    for kind, warned in (("Q4_0", True), ("Q8_0", False)):
        path = tmp_path / f"{kind}.gguf"
        gguf_files.write(model, path, "llama", kind)
        settings = LoadSettings(base=str(path), mode="xlora", xlora=str(zoo.xlora), ordering=str(zoo.xlora_ordering))
        engine = EngineCore.load(settings)
        assert any("8-bit" in warning or "8 bit" in warning for warning in engine.info.warnings) == warned


@pytest.mark.parametrize(("kind", "embedding", "bits"), [("Q4_1", "Q8_0", 4), ("Q8_0", "Q4_0", 8)])
def test_the_bits_of_a_base_are_those_of_its_linears(  # type: ignore[no-untyped-def]
    zoo, tmp_path: Path, kind: str, embedding: str, bits: int
) -> None:
    """Small files keep a large embedding in 8 bits; the classifier's signal goes through the linears all the same."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**tiny.SMALL, "vocab_size": 4000}))
    path = tmp_path / "m.gguf"
    gguf_files.write(model, path, "llama", kind, embedding=embedding)
    assert read_base(path).bits == bits
    settings = LoadSettings(base=str(path), mode="xlora", xlora=str(zoo.xlora), ordering=str(zoo.xlora_ordering))
    warned = any("4-bit" in warning for warning in EngineCore.load(settings).info.warnings)
    assert warned == (bits == 4)


def test_a_foreign_layer_does_not_hide_which_layers_are_supported(tmp_path: Path) -> None:
    make("starcoder2", tmp_path / "m.gguf", "Q8_0")
    layers = {"model.layers.0.mlp.c_fc": 0, "model.layers.7.mlp.nothing": 1}
    ordering = tiny.write_ordering(tmp_path / "o.json", base_model_id="m", layers=layers, order=[])
    with pytest.raises(OrderingError) as caught:
        EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf"), mode="lora", ordering=str(ordering)))
    assert "model.layers.7.mlp.nothing" in str(caught.value)
    assert "Supported are self_attn.q_proj, self_attn.k_proj" in str(caught.value)


# --- the demo pack's file ---------------------------------------------------------------------------------------------


def test_the_packs_gguf_tokenizes_and_templates_like_its_folder() -> None:
    one = read_tokenizer(DEMO / "base")
    two = gguf_tokenizer(read_gguf(DEMO / "base-q8_0.gguf").metadata, DEMO / "base-q8_0.gguf")
    from loradesk_engine.commands import Message

    texts = ["Hello, who are you?", "What is 17 + 25?", " ünïcode 🦊\n\n  spaces\t1234567", "It's <|user|> I'd"]
    for text in texts:
        assert one.encode(text) == two.encode(text)
        assert one.decode(one.encode(text)) == two.decode(two.encode(text))
        assert one.chat_ids([Message("user", text)]) == two.chat_ids([Message("user", text)])


def test_the_packs_gguf_answers_with_lora_and_xlora() -> None:
    base = str(DEMO / "base-q8_0.gguf")
    with Engine.load(base, adapters={"arithmetic": str(DEMO / "adapters" / "arithmetic")}) as engine:
        assert "42" in engine.chat("What is 17 + 25?", max_tokens=40).text
        assert "42" not in engine.chat("What is 17 + 25?", adapters=[], max_tokens=40).text
    xlora, ordering = str(DEMO / "xlora"), str(DEMO / "ordering" / "xlora.json")
    with Engine.load(base, xlora=xlora, ordering=ordering) as engine:
        answer = engine.chat("What is 12 + 30, and what is the capital of France?", max_tokens=60)
        assert answer.text == "12 + 30 = 42. The capital of France is Paris."


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="mamba"):
        EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf")))


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    data = (DEMO / "base-q8_0.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(FileFormatError) as caught:
        EngineCore.load(LoadSettings(base=str(path)))
    assert caught.value.file == str(path)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello", encoding="utf-8")
    with pytest.raises(LoradeskError) as caught:
        EngineCore.load(LoadSettings(base=str(path)))
    assert caught.value.file == str(path)
