"""Checkpoints of 16 bits on the CPU: the numbers stay what they are in the file, the model computes in float32."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from support import tiny
from support.forms import HAS_KERNELS
from support.precision import reference, whole_pass

from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

both_paths = pytest.mark.usefixtures("both_paths")

TOKENS = torch.randint(3, 250, (23,), generator=torch.Generator().manual_seed(0))
both_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def checkpoint(folder: Path, dtype: torch.dtype, architecture: str = "Llama", **changes: object) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**tiny.SMALL, "pad_token_id": 0, **changes})
    getattr(transformers, f"{architecture}ForCausalLM")(config).to(dtype).save_pretrained(folder)
    tiny.write_tokenizer(folder)


def in_float32(folder: Path) -> transformers.PreTrainedModel:
    """The oracle computes in float32 with the numbers of the file."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(engine: EngineCore, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Of a prefill of all tokens but three, and of three steps."""
    cache, rows = engine._runner.passes.cache, []
    cache.reserve(1, len(TOKENS))
    for start, end in ((0, 20), (20, 21), (21, 22), (22, 23)):
        delta = None if weights is None else engine.mixture.delta(weights, range(weights.shape[-1]))
        batch = Batch(TOKENS[start:end], torch.arange(start, end), (Segment(0, 0, end - start, start),), delta)
        rows.append(engine.decoder.logits(engine.decoder.forward(batch, cache), delta))
    return torch.cat(rows)


@both_types
@both_paths
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"tie_word_embeddings": False}),
        ("Qwen2", {}),
        ("Phi", {"partial_rotary_factor": 0.5}),
        ("Mixtral", {"num_local_experts": 4}),
    ],
    ids=["tied", "untied", "biases", "parallel", "experts"],
)
@torch.inference_mode()
def test_logits_equal_transformers_in_float32(
    dtype: torch.dtype, architecture: str, changes: dict[str, object], tmp_path: Path
) -> None:
    checkpoint(tmp_path, dtype, architecture, **changes)
    engine = EngineCore.load(LoadSettings(base=str(tmp_path), device="cpu"))
    assert engine.decoder.dtype == torch.float32
    reference(in_float32(tmp_path), whole_pass(TOKENS)).assert_near(logits(engine))


if HAS_KERNELS:  # torch computes with float32 copies of them

    @both_types
    def test_they_take_half_the_memory_of_float32(dtype: torch.dtype, tmp_path: Path) -> None:
        checkpoint(tmp_path, dtype, vocab_size=512, hidden_size=256, intermediate_size=512)
        decoder = EngineCore.load(LoadSettings(base=str(tmp_path), device="cpu")).decoder
        assert {linear.dtype for linear in decoder.linears} == {dtype}
        assert decoder.nbytes < 2.1 * decoder.parameters


@both_types
@both_paths
@torch.inference_mode()
def test_a_lora_on_them_equals_peft(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint(tmp_path / "base", dtype)
    oracle = peft.get_peft_model(
        in_float32(tmp_path / "base"),
        peft.LoraConfig(r=5, lora_alpha=8, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False),
    )
    # PEFT saves the base's own `lm_head` beside an adapter on it: in float32, what the file has in 16 bits
    oracle.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    adapter = AdapterSource("a", str(tmp_path / "adapter"))
    engine = EngineCore.load(LoadSettings(base=str(tmp_path / "base"), mode="lora", adapters=(adapter,), device="cpu"))
    reference(oracle.eval(), whole_pass(TOKENS)).assert_near(logits(engine, torch.ones(1, 1, 1)))


@both_paths
def test_a_copy_of_another_base_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "base", torch.bfloat16)
    other = in_float32(tmp_path / "base")
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    adapted = peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules=["lm_head"]))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    adapter = AdapterSource("a", str(tmp_path / "adapter"))
    with pytest.raises(AdapterError, match="differs from the base model's") as refused:
        EngineCore.load(LoadSettings(base=str(tmp_path / "base"), mode="lora", adapters=(adapter,), device="cpu"))
    assert refused.value.field == "lm_head"
