"""Every architecture against transformers, and with a LoRA against PEFT, on tiny random models in float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from support import parity, tiny
from support.logits import DECODE, logits_of
from support.precision import reference, whole_pass, xlora_references

from loradesk_engine.commands import AdapterSource, CompletionRequest, LoadSettings, Sampling
from loradesk_engine.errors import ConfigError
from loradesk_engine.events import TokensGenerated
from loradesk_engine.formats.config import parse_config
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

pytestmark = pytest.mark.usefixtures("both_paths")

LENGTHS = (37, 5, 20)  # a ragged batch


@dataclass(frozen=True)
class Case:
    """A tiny model of an architecture: transformers' class, what is special about it, what differs from `tiny.SMALL`,
    and modules for a LoRA.
    """

    name: str
    note: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.5],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 8.0},
}
PHI3 = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
CASES = [
    Case("Llama"),
    Case("Llama", "tied", {"tie_word_embeddings": True}),
    Case("Llama", "biases", {"attention_bias": True, "mlp_bias": True}),
    Case("Llama", "linear rope", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    Case("Llama", "llama3 rope", {"rope_parameters": LLAMA3}),
    Case("Llama", "yarn", {"rope_parameters": YARN}),
    Case("Mistral", "sliding window", {"sliding_window": 8, "head_dim": 16}),
    Case("Mistral", "", {"sliding_window": None}),
    Case("Mixtral", "", {"num_local_experts": 4, "num_experts_per_tok": 2}, ["q_proj", "o_proj"]),
    Case("Gemma", "", {"head_dim": 16}),
    Case("Gemma2", "", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
                        "final_logit_softcapping": 3.0}),
    Case("Gemma3", "", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24,
                        "attn_logit_softcapping": 2.0,  # which the class ignores
                        "final_logit_softcapping": 3.0, "rope_parameters": GEMMA3_ROPE, "num_hidden_layers": 4,
                        "layer_types": ["sliding_attention", "sliding_attention", "full_attention",
                                        "sliding_attention"]}),
    Case("Phi", "partial rotary", {"partial_rotary_factor": 0.5}, ["q_proj", "dense", "fc1", "fc2"]),
    Case("Phi", "tied", {"tie_word_embeddings": True}, ["q_proj", "dense", "fc1", "fc2"]),
    Case("Phi3", "", {"sliding_window": None}, PHI3),
    Case("Phi3", "sliding window", {"sliding_window": 8}, PHI3),
    Case("Phi3", "longrope", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}, PHI3),
    Case("Phi3", "partial rotary, tied",
         {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
          "hidden_size": 64, "tie_word_embeddings": True}, PHI3),
    Case("Starcoder2", "", {"sliding_window": None}, ["q_proj", "o_proj", "c_fc", "c_proj"]),
    Case("Starcoder2", "sliding window", {"sliding_window": 8}, ["q_proj", "o_proj", "c_fc", "c_proj"]),
    Case("Starcoder2", "no biases", {"use_bias": False, "sliding_window": None},
         ["q_proj", "o_proj", "c_fc", "c_proj"]),
    Case("Qwen2"),
    Case("Qwen2", "sliding window", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    Case("Qwen3", "attention biases", {"head_dim": 16, "attention_bias": True}),
    Case("Qwen3", "tied", {"head_dim": 16, "tie_word_embeddings": True}),
]  # fmt: skip


def row_of(case: Case) -> str:
    """The model's name in docs/parity.md."""
    return ", ".join(part for part in (case.name, case.note) if part)


def make(case: Case, folder: Path) -> transformers.PreTrainedModel:
    """The random model, saved with a tokenizer."""
    name = {"Gemma3": "Gemma3Text"}.get(case.name, case.name)
    values = {**tiny.SMALL, **case.changes, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**values, attn_implementation="eager")
    torch.manual_seed(1)
    model = getattr(transformers, f"{case.name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)  # all ones and zeros would hide mistakes
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return model


def compare(row: str, column: str, engine: EngineCore, model: torch.nn.Module, weights: torch.Tensor | None) -> None:
    """The ragged batch with its cached steps against whole passes of the reference; without adapters the first sequence
    by itself as well.
    """
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(0, 256, (length + DECODE,), generator=generator) for length in LENGTHS]
    expected = [reference(model, whole_pass(one)) for one in ids]
    if weights is None:
        (alone,) = logits_of(engine, ids[:1], None)
        for name, rows in (("prefill", slice(None, LENGTHS[0])), ("cached decode", slice(LENGTHS[0], None))):
            parity.assert_near(row, name, alone[rows], expected[0][rows])
    for actual, wanted in zip(logits_of(engine, ids, weights), expected, strict=True):
        parity.assert_near(row, column, actual, wanted)


@pytest.mark.parametrize("case", CASES, ids=row_of)
@torch.inference_mode()
def test_architecture_equals_transformers_and_peft(case: Case, tmp_path: Path) -> None:
    model = make(case, tmp_path / "base")
    engine = EngineCore.load(LoadSettings(base=str(tmp_path / "base"), dtype="float32"))
    compare(row_of(case), "ragged batch", engine, model, None)
    with torch.inference_mode(False):
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=case.targets, init_lora_weights=False)
        adapted = get_peft_model(model, lora).eval()
        adapted.save_pretrained(tmp_path / "lora")
    settings = LoadSettings(
        base=str(tmp_path / "base"),
        mode="lora",
        adapters=(AdapterSource("a", str(tmp_path / "lora")),),
        dtype="float32",
    )
    compare(row_of(case), "LoRA", EngineCore.load(settings), adapted, torch.ones(1, 1, 1))


@pytest.mark.parametrize("case", CASES, ids=row_of)
def test_xlora_equals_peft(case: Case, tmp_path: Path) -> None:
    base, folders = tmp_path / "base", [tmp_path / "0", tmp_path / "1"]
    make(case, base)
    for seed, folder in enumerate(folders):
        tiny.make_lora(base, folder, seed, r=2 + 2 * seed, target_modules=case.targets)
    options = {"layerwise_scalings": True, "xlora_depth": 2, "xlora_size": 16}
    model = tiny.make_xlora(base, tmp_path / "xlora", folders, **options)
    ids = torch.randint(0, 256, (48,), generator=torch.Generator().manual_seed(3))
    expected, raw = xlora_references(model, ids)
    settings = LoadSettings(base=str(base), mode="xlora", xlora=str(tmp_path / "xlora"), dtype="float32")
    engine = EngineCore.load(settings)
    assert engine.classifier is not None
    assert engine.mixture is not None
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(ids))
    segments = (Segment(0, 0, len(ids), 0),)
    with torch.inference_mode():
        hidden = engine.decoder.forward(Batch(ids, torch.arange(len(ids)), segments), cache)
        scalings = engine.classifier(hidden)
        raw.assert_near(scalings)
        delta = engine.mixture.delta(scalings, [0, 1])
        hidden = engine.decoder.forward(Batch(ids, torch.arange(len(ids)), segments, delta), cache)
        actual = engine.decoder.logits(hidden, delta)
    parity.assert_near(row_of(case), "X-LoRA", actual, expected)


@torch.inference_mode()
def test_longrope_beyond_the_original_context_equals_transformers(tmp_path: Path) -> None:
    case = Case("Phi3", "", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64})
    model = make(case, tmp_path)
    assert EngineCore.load(LoadSettings(base=str(tmp_path))).context == 64
    engine = EngineCore.load(LoadSettings(base=str(tmp_path), context=200, dtype="float32"))
    ids = torch.randint(0, 256, (100,), generator=torch.Generator().manual_seed(5))
    cache = engine.decoder.new_cache()
    cache.reserve(1, 100)
    hidden = engine.decoder.forward(Batch(ids, torch.arange(100), (Segment(0, 0, 100, 0),)), cache)
    reference(model, whole_pass(ids)).assert_near(engine.decoder.logits(hidden))


def test_lora_on_experts_changes_only_the_rows_they_serve(tmp_path: Path) -> None:
    """Beside a request without it, and against merged weights; `test_experts.py` asks PEFT."""
    from safetensors.torch import load_file, save_file

    make(Case("Mixtral", "", {"num_local_experts": 4, "num_experts_per_tok": 2}), tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(2)
    adapter, merged = {}, dict(tensors)
    for name, weight in tensors.items():
        if ".experts." in name:
            a = torch.randn(4, weight.shape[1], generator=generator) * 0.2
            b = torch.randn(weight.shape[0], 4, generator=generator) * 0.2
            stem = "base_model.model." + name.removesuffix(".weight")
            adapter |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            merged[name] = weight + 2.0 * b @ a
    assert len(adapter) == 2 * 2 * 4 * 3
    (tmp_path / "lora").mkdir()
    save_file(adapter, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["w1", "w2", "w3"]}', encoding="utf-8"
    )
    (tmp_path / "merged").mkdir()
    for file in (tmp_path / "base").iterdir():
        if file.name != "model.safetensors":
            (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    save_file(merged, tmp_path / "merged" / "model.safetensors")

    def answers(engine: EngineCore, adapters: list[dict[str, float] | None]) -> list[tuple[int, ...]]:
        for number, weights in enumerate(adapters):
            sampling = Sampling(max_tokens=12, ignore_end=True)
            engine.submit(CompletionRequest(str(number), tuple(range(50, 70)), sampling, weights))
        found: dict[str, tuple[int, ...]] = {}
        while engine.busy:
            for event in engine.step():
                if isinstance(event, TokensGenerated):
                    found[event.request_id] = found.get(event.request_id, ()) + event.token_ids
        return [found[str(number)] for number in range(len(adapters))]

    adapters = (AdapterSource("moe", str(tmp_path / "lora")),)
    settings = LoadSettings(base=str(tmp_path / "base"), mode="lora", adapters=adapters, dtype="float32")
    together = answers(EngineCore.load(settings), [{"moe": 1.0}, {}])
    plain, whole = (
        answers(EngineCore.load(LoadSettings(base=str(tmp_path / name), dtype="float32")), [None])[0]
        for name in ("base", "merged")
    )
    assert together == [whole, plain]
    assert whole != plain


LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_attention_heads": 4,
         "num_key_value_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 100}  # fmt: skip


def test_the_older_spelling_of_a_config_means_the_same() -> None:
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert parse_config(old, "old") == parse_config(new, "new")
    gemma = {**LLAMA, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7, "sliding_window": 16,
             "rope_theta": 1e6, "rope_local_base_freq": 1e4}  # fmt: skip
    config = parse_config({**gemma, "sliding_window_pattern": 6}, "gemma")
    assert config.windows == (16, 16, 16, 16, 16, None, 16)
    assert config.local_rope is not None
    assert (config.rope.theta, config.local_rope.theta, config.head_dim) == (1e6, 1e4, 256)
    phi3 = {**LLAMA, "architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "su", "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4}, "original_max_position_embeddings": 64}  # fmt: skip
    assert parse_config(phi3, "phi3").rope.kind == "longrope"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"head_dim": 7}, "head_dim"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"architectures": ["PhiForCausalLM"], "qk_layernorm": True}, "qk_layernorm"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 4,
          "layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ({"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "longrope", "short_factor": [1.0],
          "long_factor": [1.0]}}, "short_factor"),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 3},
         "num_experts_per_tok"),
    ],
)  # fmt: skip
def test_what_the_decoder_does_not_know_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**LLAMA, **changes}, "config.json")
    assert (caught.value.file, caught.value.field) == ("config.json", field)
