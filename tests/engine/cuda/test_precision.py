"""How far a GPU is from float64, beside transformers and PEFT in the same type."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny
from support.precision import Reference, exact

from loradesk_engine.commands import AdapterSource, CompletionRequest, LoadSettings, Sampling
from loradesk_engine.events import TokensGenerated
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment

PROMPT = 96
NEW = 32
TOP = 20
SIZE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
    "pad_token_id": 0,
}
DType = Literal["bfloat16", "float32"]
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PHI3 = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """An architecture and the modules that adapters are on."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=lambda: LLAMA)


CASES = [
    Case("Llama"),
    Case("Mistral", {"sliding_window": 32}),
    Case("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, LLAMA[:4]),
    Case("Gemma", {"head_dim": 64}),
    Case("Gemma2", {"head_dim": 64, "sliding_window": 32, "query_pre_attn_scalar": 64}),
    Case("Gemma3", {"head_dim": 64, "sliding_window": 32, "query_pre_attn_scalar": 64}),
    Case("Phi", {"partial_rotary_factor": 0.5}, ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
    Case("Phi3", {}, PHI3),
    Case("Starcoder2", {}, ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"]),
    Case("Qwen2"),
    Case("Qwen3", {"head_dim": 64}),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A random model in bfloat16, and two adapters of it."""
    case: Case = request.param
    folder = tmp_path_factory.mktemp("precision")
    name = {"Gemma3": "Gemma3Text"}.get(case.name, case.name)
    config = getattr(transformers, f"{name}Config")(**{**tiny.SMALL, **SIZE, **case.changes})
    torch.manual_seed(1)
    model = getattr(transformers, f"{case.name}ForCausalLM")(config).bfloat16()
    model.save_pretrained(folder / "base")
    tiny.write_tokenizer(folder / "base")
    for number, rank in enumerate((8, 16)):
        tiny.make_lora(folder / "base", folder / str(number), number, r=rank, target_modules=case.targets)
        file = folder / str(number) / "adapter_model.safetensors"
        # the same numbers for all that compare
        save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file)
    return case, folder


def theirs(folder: Path, held_in: torch.dtype, *, adapters: bool) -> Any:
    """transformers' model, with PEFT's adapters on top if wanted."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "base", dtype=held_in, attn_implementation="eager"
    )
    if adapters:
        model = peft.PeftModel.from_pretrained(model, folder / "0", adapter_name="0", autocast_adapter_dtype=False)
        model.load_adapter(folder / "1", adapter_name="1", autocast_adapter_dtype=False)
        model.base_model.set_adapter(["0", "1"])
    return model.to("cuda", held_in).eval()


@pytest.mark.parametrize("adapters", [False, True], ids=["base", "lora"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@torch.inference_mode()
def test_it_is_as_near_to_float64_as_transformers(made: tuple[Case, Path], dtype: DType, adapters: bool) -> None:
    _, folder = made
    settings = LoadSettings(base=str(folder / "base"), device="cuda", dtype=dtype)
    if adapters:
        sources = tuple(AdapterSource(name, str(folder / name)) for name in ("0", "1"))
        settings = replace(settings, mode="lora", adapters=sources)
    engine = EngineCore.load(settings)
    prompt = torch.randint(0, 256, (PROMPT,), generator=torch.Generator().manual_seed(2)).tolist()
    weights = dict.fromkeys(("0", "1"), 1.0) if adapters else None
    tokens, seen = decoded(engine, prompt, weights)
    ids = torch.tensor([prompt + tokens], device="cuda")

    def whole_pass(model: Any) -> torch.Tensor:
        logits: torch.Tensor = model(ids).logits[0]
        return logits

    # the checkpoint's bfloat16 numbers are the same in float32
    wanted = exact(theirs(folder, torch.float32, adapters=adapters), whole_pass)
    expected = Reference(wanted, whole_pass(theirs(folder, getattr(torch, dtype), adapters=adapters)))
    expected.assert_near(prefilled(engine, ids[0], weights))

    # Cached decoding, through graphs where there are any: the likeliest tokens' log-probabilities of each step
    steps = slice(PROMPT - 1, PROMPT + NEW - 1)
    chosen = torch.tensor([[token for token, _ in step] for step in seen], device="cuda")
    found = torch.tensor([[logprob for _, logprob in step] for step in seen], device="cuda", dtype=torch.float64)
    likeliest, own = (
        logits[steps].double().log_softmax(-1).gather(1, chosen) for logits in (expected.exact, expected.own)
    )
    Reference(likeliest, own.to(expected.own.dtype)).assert_near(found)


def prefilled(engine: EngineCore, ids: torch.Tensor, weights: dict[str, float] | None) -> torch.Tensor:
    """Logits of all tokens in one pass."""
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(ids))
    delta = None
    if weights is not None:
        assert engine.mixture is not None
        delta = engine.mixture.delta(torch.ones(1, 1, len(weights), device="cuda"), range(len(weights)))
    batch = Batch(ids, torch.arange(len(ids), device="cuda"), (Segment(0, 0, len(ids), 0),), delta)
    return engine.decoder.logits(engine.decoder.forward(batch, cache), delta)


def decoded(
    engine: EngineCore, prompt: list[int], weights: dict[str, float] | None
) -> tuple[list[int], list[list[tuple[int, float]]]]:
    """A greedy answer: its tokens, and of each step the likeliest tokens with their log-probabilities."""
    sampling = Sampling(max_tokens=NEW, ignore_end=True, logprobs=TOP)
    engine.submit(CompletionRequest("r", tuple(prompt), sampling, weights))
    tokens, steps = [], []
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated):
                tokens += event.token_ids
                steps += [[(other.token_id, other.logprob) for other in entry.top] for entry in event.logprobs]
    return tokens, steps
