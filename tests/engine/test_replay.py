"""Steps on captured graphs, on any machine: these graphs compute eagerly.

tests/engine/cuda/test_graphs.py shows on a GPU that real graphs compute the same.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.eager_graphs import use_eager_graphs

from loradesk_engine.commands import CompletionRequest, LoadSettings, Sampling
from loradesk_engine.events import RequestFinished, TokensGenerated
from loradesk_engine.generation import lookahead as lookahead_module
from loradesk_engine.generation import passes as passes_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.generation.guesses import MOST_GUESSES
from loradesk_engine.model import kernels

_ids = itertools.count()


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
@pytest.mark.parametrize("row_cost", [0.0, 0.2], ids=["many guesses", "few"])
def test_xlora_through_graphs_equals_without(
    zoo, monkeypatch, most: int, lookahead: bool, sampling, row_cost: float
) -> None:
    settings = zoo.xlora_settings(device="cpu")
    monkeypatch.setattr(kernels, "MAX_ROWS", most)
    monkeypatch.setattr(lookahead_module, "GRAPH_ROW_COST", row_cost)
    expected = answers(EngineCore.load(settings, lookahead=lookahead), 4, **sampling)
    engine = EngineCore.load(settings, lookahead=lookahead)
    graphs = use_eager_graphs(engine)
    assert answers(engine, 4, **sampling) == expected
    most_guesses = MOST_GUESSES if row_cost == 0 else 1
    decoding = 4 * (1 + most_guesses) if lookahead else 4
    assert set(graphs.sizes) <= {most // 2, most, *range(1, decoding + 1)}
    assert {most, min(most, decoding)} <= set(graphs.sizes)


def eventful(engine: EngineCore) -> dict[str, list[int]]:
    """Answers of requests while adapters are switched for one of them, one is cancelled, one comes later and one ends
    early. What happens depends on the tokens of the first one, so that it is the same whatever a step gives.
    """
    found: dict[str, list[int]] = {}
    for number in range(4):
        sampling = Sampling(max_tokens=4 if number == 3 else 16, ignore_end=True, temperature=0.7, seed=number)
        engine.submit(CompletionRequest(f"{number}", tuple(range(40 + number, 52)), sampling, None, number == 0))
    late = CompletionRequest("late", tuple(range(70, 90)), Sampling(max_tokens=6, ignore_end=True), None, False)
    happens = {
        3: lambda: engine.activate({"adapter_1": 0.5, "adapter_2": 2.0}),
        6: lambda: engine.cancel("1"),
        8: lambda: engine.submit(late),
        10: lambda: engine.activate({"adapter_10": 1.0}),
    }
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated):
                found.setdefault(event.request_id, []).extend(event.token_ids)
        happens.pop(len(found.get("0", ())), lambda: None)()
    assert not happens
    return found | {"1": found.get("1", [])[:3]}


@pytest.mark.parametrize("row_cost", [0.0, 0.2], ids=["many guesses", "few"])
@pytest.mark.parametrize("frozen_after", [None, 3])
def test_steps_that_were_started_too_early_change_nothing(
    zoo, monkeypatch, frozen_after: int | None, row_cost: float
) -> None:
    monkeypatch.setattr(lookahead_module, "GRAPH_ROW_COST", row_cost)
    settings = zoo.xlora_settings(device="cpu", tgt_non_granular_index=frozen_after)
    engine = EngineCore.load(settings)
    graphs = use_eager_graphs(engine)
    given = eventful(engine)
    assert given == eventful(EngineCore.load(settings))
    assert [len(given[name]) for name in ("0", "2", "3", "late")] == [16, 16, 4, 6]
    assert graphs.sizes


def test_a_step_follows_the_other_whatever_is_right(zoo, monkeypatch) -> None:
    """The host makes few steps itself, though most guesses are wrong and requests come and end."""
    monkeypatch.setattr(lookahead_module, "GRAPH_ROW_COST", 0.0)
    engine = EngineCore.load(zoo.xlora_settings(device="cpu"))
    runner = engine._runner
    use_eager_graphs(engine)
    made, compute = [], runner._compute
    monkeypatch.setattr(runner, "_compute", lambda *given: made.append(given) or compute(*given))
    steps = tokens = misses = requests = 0
    while requests < 8 or engine.busy:
        if requests < 8 and len(engine._sequences()) < 4:
            sampling = Sampling(max_tokens=30 + 7 * requests, ignore_end=True, temperature=0.5, seed=requests)
            engine.submit(CompletionRequest(f"{requests}", tuple(range(40 + requests, 52)), sampling))
            requests += 1
        steps += 1
        for event in engine.step():
            tokens += len(event.token_ids) if isinstance(event, TokensGenerated) else 0
            misses += event.look_ahead.misses if isinstance(event, RequestFinished) else 0
    assert tokens == sum(30 + 7 * number for number in range(8))
    assert misses > 100
    assert len(made) < steps / 5


def test_of_three_guesses_more_are_right_than_of_one(zoo, monkeypatch) -> None:
    monkeypatch.setattr(lookahead_module, "GRAPH_ROW_COST", 0.0)
    settings, rates, told = zoo.xlora_settings(device="cpu"), [], []
    for most in (1, MOST_GUESSES):
        monkeypatch.setattr(passes_module, "MOST_GUESSES", most)
        engine = EngineCore.load(settings)
        use_eager_graphs(engine)
        sampling = Sampling(max_tokens=60, ignore_end=True, temperature=0.5, seed=2)
        engine.submit(CompletionRequest("r", tuple(range(40, 52)), sampling, want_scalings=True))
        events = []
        while engine.busy:
            events += engine.step()
        tokens = [event for event in events if isinstance(event, TokensGenerated) and event.token_ids]
        rates.append(tokens[-1].look_ahead.rate)
        told.append((sum((event.token_ids for event in tokens), ()), np.concatenate([e.scalings for e in tokens])))
    assert rates[1] > rates[0]
    assert told[1][0] == told[0][0]
    np.testing.assert_allclose(told[1][1], told[0][1], atol=1e-6)


def test_a_graph_of_a_cache_that_moved_is_not_replayed(zoo, monkeypatch) -> None:
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), dtype="float32", device="cpu"))
    use_eager_graphs(engine)
    engine.submit(CompletionRequest("r", tuple(range(40, 52)), Sampling(max_tokens=12, ignore_end=True)))
    for _ in range(3):
        engine.step()
    started = engine._started
    assert started is not None  # the next step was started on this graph, and then the cache grows
    monkeypatch.setattr(engine._runner.passes.cache, "reserve", lambda slots, positions: True)
    engine.step()
    assert engine._started is None
