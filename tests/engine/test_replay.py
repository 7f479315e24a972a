"""The runner's way through captured graphs, on any machine: these graphs compute eagerly.

That real graphs compute the same is what tests/engine/cuda/test_graphs.py shows where there is a GPU.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from loradesk_engine.commands import CompletionRequest, LoadSettings, Sampling
from loradesk_engine.events import TokensGenerated
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.generation.runner import Runner
from loradesk_engine.generation.sampling import likeliest
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch, Segment

_ids = itertools.count()


class EagerGraph:
    """One decoding step with the interface of `DecodeGraph`; the next one overwrites its results, as with a graph."""

    def __init__(self, runner: Runner, rows: int) -> None:
        self.runner = runner
        self.rows = rows
        self.logits = torch.empty(rows, runner.decoder.config.vocab_size)
        self.best = torch.empty(rows, dtype=torch.int64)
        self.predicted: torch.Tensor | None = None

    def run(self, tokens, positions, slots, scalings) -> None:
        assert len(tokens) <= self.rows
        runner = self.runner
        self.logits.fill_(torch.nan)
        for row, part in enumerate(zip(tokens, positions, slots, scalings, strict=True)):
            token, position, slot, scaling = part
            delta = None if scaling is None else runner.mixture.delta(scaling, range(len(runner.mixture.adapters)))
            segment = (Segment(slot, 0, 1, position),)
            hidden = runner.decoder.forward(
                Batch(torch.tensor([token]), torch.tensor([position]), segment, delta), runner.cache
            )
            self.logits[row] = runner.decoder.logits(hidden, delta)[0]
            if runner.classifier is not None:
                predicted = runner.classifier(hidden)
                if self.predicted is None:
                    self.predicted = torch.empty(self.rows, *predicted.shape[1:])
                self.predicted[row] = predicted[0]
        self.best.copy_(likeliest(self.logits))


class EagerGraphs:
    """Stands where `DecodeGraphs` stands."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.sizes: list[int] = []
        self.made: dict[int, EagerGraph] = {}

    def graph(self, rows: int, *, adapted: bool) -> EagerGraph:
        assert rows <= kernels.MAX_ROWS
        self.sizes.append(rows)
        return self.made.setdefault(rows, EagerGraph(self.runner, rows))


def answers(engine: EngineCore, count: int, **sampling) -> list[list[int]]:
    requests = [
        CompletionRequest(
            f"r{next(_ids)}", tuple(range(40 + number, 52)), Sampling(max_tokens=12, ignore_end=True, **sampling)
        )
        for number in range(count)
    ]
    for request in requests:
        engine.submit(request)
    found: dict[str, list[int]] = {}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated):
                found.setdefault(event.request_id, []).extend(event.token_ids)
    return [found[request.request_id] for request in requests]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("most", [32, 3])
def test_xlora_through_graphs_equals_without(zoo, monkeypatch, most: int, lookahead: bool, sampling) -> None:
    settings = zoo.xlora_settings(device="cpu")
    monkeypatch.setattr(kernels, "MAX_ROWS", most)
    expected = answers(EngineCore.load(settings, lookahead=lookahead), 4, **sampling)
    engine = EngineCore.load(settings, lookahead=lookahead)
    graphs = EagerGraphs(engine._runner)
    engine._runner._graphs = graphs
    assert answers(engine, 4, **sampling) == expected
    assert max(graphs.sizes) == (most if most == 3 else 8 if lookahead else 4)


def eventful(engine: EngineCore) -> dict[str, list[int]]:
    """Answers of requests while adapters are switched, one is cancelled, one comes later and one ends early."""
    found: dict[str, list[int]] = {}

    def step(count: int = 1) -> None:
        for _ in range(count):
            for event in engine.step():
                if isinstance(event, TokensGenerated):
                    found.setdefault(event.request_id, []).extend(event.token_ids)

    for number in range(4):
        sampling = Sampling(max_tokens=4 if number == 3 else 16, ignore_end=True, temperature=0.7, seed=number)
        engine.submit(CompletionRequest(f"{number}", tuple(range(40 + number, 52)), sampling, None, number % 2 == 0))
    step(4)
    engine.activate({"adapter_1": 0.5, "adapter_2": 2.0})
    step(3)
    engine.cancel("1")
    step(1)
    engine.submit(CompletionRequest("late", tuple(range(70, 90)), Sampling(max_tokens=6, ignore_end=True)))
    step(2)
    engine.activate({"adapter_10": 1.0})
    while engine.busy:
        step()
    return found


@pytest.mark.parametrize("frozen_after", [None, 3])
def test_steps_that_were_started_too_early_change_nothing(zoo, frozen_after: int | None) -> None:
    settings = zoo.xlora_settings(device="cpu", tgt_non_granular_index=frozen_after)
    engine = EngineCore.load(settings)
    graphs = EagerGraphs(engine._runner)
    engine._runner._graphs = graphs
    assert eventful(engine) == eventful(EngineCore.load(settings))
    assert graphs.sizes


def test_a_graph_of_a_cache_that_moved_is_not_replayed(zoo, monkeypatch) -> None:
    settings = LoadSettings(base=str(zoo.base), dtype="float32", device="cpu")
    engine = EngineCore.load(settings)
    runner = engine._runner
    runner._graphs = EagerGraphs(runner)
    engine.submit(CompletionRequest("r", tuple(range(40, 52)), Sampling(max_tokens=12, ignore_end=True)))
    for _ in range(3):
        engine.step()
    last = runner._replayed
    assert last is not None
    # as on a GPU: the next step was started from the same graph, and then the cache grows
    runner._started = replace(last, chunks=[Chunk(chunk.sequence, chunk.start + 1, 1) for chunk in last.chunks])
    monkeypatch.setattr(runner.cache, "reserve", lambda slots, positions: True)
    engine.step()
    assert runner._replayed is None
