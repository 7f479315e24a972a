"""Random requests through graphs with look-ahead, against two passes without graphs.

Everything that may disturb a step that was started early: requests come, end in every way, are cancelled and follow
activations; the cache grows, graphs are too small, prompts are cut. What is answered may not depend on any of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from support.eager_graphs import use_eager_graphs

from loradesk_engine.commands import CompletionRequest, Sampling
from loradesk_engine.events import RequestFinished, TokensGenerated
from loradesk_engine.generation import lookahead as lookahead_module
from loradesk_engine.generation import passes as passes_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model import cache, kernels

MIXES: list[Mapping[str, float]] = [
    {"adapter_1": 1.0}, {"adapter_1": 0.5, "adapter_2": 2.0}, {"adapter_10": 1.0}, {},
    {"adapter_1": 1.0, "adapter_10": 1.0, "adapter_2": 1.0},
]  # fmt: skip
PATIENCE = 25  # steps without a token


class Told:
    """What was told of one request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.scalings: dict[int, np.ndarray] = {}  # by position
        self.logprobs: list[float] = []
        self.reason = ""

    def add(self, event: TokensGenerated) -> None:
        self.tokens += event.token_ids
        self.text += event.text
        self.logprobs += [entry.logprob for entry in event.logprobs]
        if event.scalings is not None:
            self.scalings |= dict(enumerate(event.scalings, event.scalings_start))


def random_request(dice: random.Random, number: int) -> dict[str, Any]:
    """How one request is made and when; the first one goes on for long and follows the activations."""
    first = number == 0
    start = dice.choice([40, 40, 50, 60])
    sampling: dict[str, Any] = {
        "max_tokens": 40 if first else dice.choice([1, 2, 5, 20, 40]),
        "ignore_end": first or dice.random() < 0.7,
        "temperature": dice.choice([0, 0.3, 0.7, 1.5]),
        "seed": dice.randrange(10_000),
    }
    if dice.random() < 0.2:
        sampling["logprobs"] = dice.choice([0, 2])
    if dice.random() < 0.2:
        sampling["repetition_penalty"] = 1.3
    if dice.random() < 0.2 and not first:
        sampling["stop_token_ids"] = tuple(dice.sample(range(256), 30))
    return {
        "prompt": tuple((start + place * 7) % 250 for place in range(dice.choice([1, 2, 5, 9, 17, 33, 60]))),
        "sampling": Sampling(**sampling),
        "adapters": None if first else dice.choice(MIXES),
        "comes": 0 if first else dice.choice([0, 0, 0, 3, 7, 12]),  # after so many tokens of the first one
        "cancel": None if first else dice.choice([None, None, None, 2, 6]),  # after so many of its own
        "want_scalings": dice.random() < 0.7,
    }


def play(
    engine: EngineCore, requests: list[dict[str, Any]], activations: Mapping[int, Mapping[str, float]]
) -> list[Told]:
    told = [Told() for _ in requests]
    waiting, switches = list(range(len(requests))), dict(activations)
    engine.activate(MIXES[-1])
    idle = 0
    while waiting or engine.busy:
        for number in [number for number in waiting if len(told[0].tokens) >= requests[number]["comes"]]:
            waiting.remove(number)
            one = requests[number]
            engine.submit(
                CompletionRequest(
                    str(number), one["prompt"], one["sampling"], one["adapters"], number == 0, one["want_scalings"]
                )
            )
        if len(told[0].tokens) in switches:
            engine.activate(switches.pop(len(told[0].tokens)))
        idle += 1
        for event in engine.step():
            idle = 0
            if isinstance(event, TokensGenerated):
                told[int(event.request_id)].add(event)
            elif isinstance(event, RequestFinished):
                told[int(event.request_id)].reason = event.finish_reason
        assert idle < PATIENCE
        for number, one in enumerate(requests):
            if one["cancel"] is not None and len(told[number].tokens) >= one["cancel"]:
                engine.cancel(str(number))
    return told


def check(requests: list[dict[str, Any]], found: list[Told], expected: list[Told]) -> None:
    for one, seen, wanted in zip(requests, found, expected, strict=True):
        if one["cancel"] is not None:  # how far it came before that is another matter
            both = min(len(seen.tokens), len(wanted.tokens))
            assert seen.tokens[:both] == wanted.tokens[:both]
        else:
            assert (seen.tokens, seen.text, seen.reason) == (wanted.tokens, wanted.text, wanted.reason)
            np.testing.assert_allclose(seen.logprobs, wanted.logprobs, atol=3e-3)
        for position in seen.scalings.keys() & wanted.scalings.keys():
            np.testing.assert_allclose(seen.scalings[position], wanted.scalings[position], atol=1e-4)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 24))])
def test_nothing_that_happens_changes_an_answer(zoo: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(kernels, "MAX_ROWS", dice.choice([64, 64, 7, 4]))
    monkeypatch.setattr(cache, "GROWTH", dice.choice([256, 16, 8]))
    monkeypatch.setattr(passes_module, "MOST_GUESSES", dice.choice([3, 3, 2, 1]))
    monkeypatch.setattr(lookahead_module, "GRAPH_ROW_COST", dice.choice([0.0, 0.0, 0.05, 0.2]))
    frozen_after = dice.choice([None, None, None, 1, 3])
    settings = zoo.xlora_settings(device="cpu", tgt_non_granular_index=frozen_after, context=dice.choice([None, 110]))
    limits: dict[str, Any] = {
        "step_tokens": dice.choice([512, 512, 16, 7, 3]),
        "max_sequences": dice.choice([32, 32, 2]),
    }
    plain = EngineCore.load(settings, lookahead=False, **limits)
    graphed = EngineCore.load(settings, **limits)
    use_eager_graphs(graphed)
    requests = [random_request(dice, number) for number in range(dice.randint(1, 6))]
    activations = {place: dice.choice(MIXES) for place in dice.sample(range(2, 30), dice.choice([0, 1, 3]))}
    answered = play(plain, requests, activations)
    check(requests, play(graphed, requests, activations), answered)
    for one, told in zip(requests, answered, strict=True):  # the next turn takes over what the cache has of the last
        prompt = (one["prompt"] + tuple(told.tokens) + (33, 44))[:70]
        one |= {"prompt": prompt, "sampling": Sampling(max_tokens=10, ignore_end=True), "comes": 0, "cancel": None}
    check(requests, play(graphed, requests, {}), play(plain, requests, {}))
