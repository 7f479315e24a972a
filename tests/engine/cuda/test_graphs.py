"""Captured graphs with Triton's kernels give what torch gives step by step, token for token."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import gguf_files, tiny

from loradesk_engine.commands import AdapterMode, AdapterSource, CompletionRequest, LoadSettings, Sampling
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import TokensGenerated
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.planes import _TRIED, PlaneMatrix

NEW = 40
MIXES: list[Mapping[str, float]] = [
    {}, {"adapter_1": 1.0}, {"adapter_10": 0.5}, {"adapter_1": 1.0, "adapter_10": -1.0}, {"adapter_2": 2.0},
]  # fmt: skip
SAMPLINGS: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.5, "top_p": 0.9, "seed": 4}]
GAP = 0.15  # of two log-probabilities in bfloat16 that may change places
_ids = itertools.count()


def answers(
    engine: EngineCore, numbers: Sequence[int], *, mixes: Sequence[Mapping[str, float]] | None = MIXES, **sampling: Any
) -> list[list[int]]:
    """Token ids of the requests of these numbers at once; each has a prompt and adapters of its own."""
    requests = [
        CompletionRequest(
            f"r{next(_ids)}",
            tuple(range(40 + number, 60 + 3 * number)),
            Sampling(max_tokens=NEW, ignore_end=True, **sampling),
            mixes[number % len(mixes)] if mixes is not None else None,
        )
        for number in numbers
    ]
    for request in requests:
        engine.submit(request)
    found: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated):
                found[event.request_id] += event.token_ids
    return list(found.values())


def without_graphs(engine: EngineCore) -> EngineCore:
    engine._runner.passes.graphs = None
    return engine


def settings_of(zoo: Any, mode: str) -> LoadSettings:
    if mode == "xlora":
        return zoo.xlora_settings(device="cuda")
    adapters = tuple(AdapterSource(name, str(path)) for name, path in zoo.adapters.items())
    return LoadSettings(base=str(zoo.base), mode="lora", adapters=adapters, dtype="float32", device="cuda")


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top-p"])
@pytest.mark.parametrize("mode", ["lora", "xlora"])
def test_graphs_equal_eager_batched_equals_alone(zoo: Any, mode: str, sampling: dict[str, Any]) -> None:
    settings = settings_of(zoo, mode)
    engine = EngineCore.load(settings)
    assert engine._runner.passes.graphs is not None
    together = answers(engine, range(5), **sampling)
    assert engine._runner.passes.graphs._graphs, "no graph was captured"
    assert together == answers(without_graphs(EngineCore.load(settings)), range(5), **sampling)
    assert together == [answers(engine, [number], **sampling)[0] for number in range(5)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top-p"])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_look_ahead_equals_two_passes(zoo: Any, count: int, sampling: dict[str, Any]) -> None:
    settings = settings_of(zoo, "xlora")
    ahead = answers(EngineCore.load(settings), range(count), **sampling)
    assert ahead == answers(EngineCore.load(settings, lookahead=False), range(count), **sampling)


def test_a_prompts_scalings_are_told_whole_where_its_last_chunk_is_one_token(zoo: Any) -> None:
    told = []
    for step_tokens in (8, 64):
        engine = EngineCore.load(settings_of(zoo, "xlora"), step_tokens=step_tokens)
        engine.submit(
            CompletionRequest("r", tuple(range(40, 57)), Sampling(max_tokens=4, ignore_end=True), want_scalings=True)
        )
        events = []
        while engine.busy:
            events += engine.step()
        parts = [event.scalings for event in events if isinstance(event, TokensGenerated)]
        told.append(np.concatenate([part for part in parts if part is not None]))
    assert len(told[0]) == 17 + 3
    np.testing.assert_allclose(told[0], told[1], atol=1e-5, rtol=2e-5)


def test_switching_adapters_captures_nothing(zoo: Any) -> None:
    engine = EngineCore.load(settings_of(zoo, "lora"))
    answers(engine, range(5))
    answers(engine, [1])
    graphs = engine._runner.passes.graphs
    assert graphs is not None
    before = dict(graphs._graphs)
    for weight in (0.25, -1.0, 3.0):
        engine.activate({"adapter_2": weight, "wide": 1 / weight})
        request = CompletionRequest(f"r{next(_ids)}", tuple(range(40, 60)), Sampling(max_tokens=5, ignore_end=True))
        engine.submit(request)
        while engine.busy:
            engine.step()
    assert graphs._graphs == before


@pytest.mark.parametrize("mode", ["lora", "xlora"])
def test_bfloat16_differs_at_near_ties_only(mode: AdapterMode) -> None:
    settings = replace(demo_settings(mode), device="cuda", dtype="bfloat16")
    texts = ["What is 17 + 25?", "What is the capital of France?", "Tell me a story about a fox."]
    engines = EngineCore.load(settings), without_graphs(EngineCore.load(settings))
    for text in texts:
        prompt = tuple(engines[0].tokenizer.encode(text, special_tokens=True))
        first, second = (likeliest_two(engine, prompt) for engine in engines)
        for (token, gap), (other, other_gap) in zip(first, second, strict=True):
            if token != other:
                assert min(gap, other_gap) < GAP
                break


def likeliest_two(engine: EngineCore, prompt: tuple[int, ...]) -> list[tuple[int, float]]:
    """Each greedy token, and how far the second likeliest is behind it."""
    sampling = Sampling(max_tokens=NEW, ignore_end=True, logprobs=2)
    engine.submit(CompletionRequest(f"r{next(_ids)}", prompt, sampling))
    found = []
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated):
                gaps = [entry.top[0].logprob - entry.top[1].logprob for entry in event.logprobs]
                found += list(zip(event.token_ids, gaps, strict=True))
    return found


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_a_gguf_model_by_its_kernel_equals_the_processor(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loradesk_engine.generation import loading as loading_module

    monkeypatch.setattr(loading_module, "keeps_packed", lambda parameters, device: True)
    model = tiny.make_llama(tmp_path / "base")
    gguf_files.write(model, tmp_path / "model.gguf", "llama", kind)
    settings = LoadSettings(base=str(tmp_path / "model.gguf"), dtype="float32", device="cuda")
    engine = EngineCore.load(settings)
    assert isinstance(getattr(engine.decoder.linears[0], "weight", None), PlaneMatrix)
    _TRIED.clear()
    here = EngineCore.load(LoadSettings(base=settings.base, dtype="float32", device="cpu"))
    assert answers(engine, range(3), mixes=None) == answers(here, range(3), mixes=None)
    assert all(_TRIED.values()), "a kernel was not trusted"
    assert _TRIED


@pytest.mark.parametrize("option", ["use_dora", "lora_bias"])
def test_dora_and_biases_equal_the_processor(zoo: Any, option: str, tmp_path: Path) -> None:
    tiny.make_lora(zoo.base, tmp_path / "adapter_1", 5, r=4, target_modules=["q_proj", "o_proj"], **{option: True})
    adapters = (AdapterSource("adapter_1", str(tmp_path / "adapter_1")),)
    here, there = (
        EngineCore.load(
            LoadSettings(base=str(zoo.base), mode="lora", adapters=adapters, dtype="float32", device=device)
        )
        for device in ("cpu", "cuda")
    )
    for engine in (here, there):
        engine.activate({"adapter_1": 1.0})
    assert answers(there, range(3), mixes=None) == answers(here, range(3), mixes=None)
