"""What only the engine is measured by: next turns, activation, several sequences at once, guesses of look-ahead."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loradesk_engine.bench.engine_contender import EngineAnswer, checked, greedy, submit, timed_answer
from loradesk_engine.bench.figures import figure
from loradesk_engine.bench.plan import NEW_TURN, Plan, Work
from loradesk_engine.bench.prompts import Prompts
from loradesk_engine.commands import Sampling
from loradesk_engine.events import TokensGenerated
from loradesk_engine.generation.engine import EngineCore

ACTIVATIONS = 8
PLAIN_STEPS = 3  # between two activations
SETTLING_STEPS = 3  # until a new count of sequences runs as it will go on
APPROACHES = 6  # to the temperature at which a share of the tokens is the likeliest one
RATE_STEPS = 8  # a rate is over so many steps: after a wrong guess a step has no token of a sequence


def next_turns(engine: EngineCore, plan: Plan, prompts: Prompts) -> list[dict[str, Any]]:
    """First token of a turn of `NEW_TURN` new tokens after histories of several lengths, in turn.

    A history that does not fit into the model's context is left out.
    """
    lengths = [length for length in plan.histories if length + NEW_TURN + 2 <= engine.context]
    histories = {length: prompts.next(length).ids for length in lengths}
    for ids in histories.values():
        timed_answer(engine, ids, greedy(1))
    answers: dict[int, list[EngineAnswer]] = {length: [] for length in lengths}
    for number in range(plan.runs + 1):
        for length, ids in histories.items():
            answer = timed_answer(engine, (*ids, *prompts.next(NEW_TURN).ids), greedy(2))
            if number:  # the first is to warm up
                answers[length].append(answer)
    return [
        {
            "history_tokens": length,
            "new_tokens": NEW_TURN,
            "cached_tokens": min(answer.cached for answer in answers[length]),
            "first_token_seconds": figure([answer.sample.first_seconds for answer in answers[length]]),
        }
        for length in lengths
    ]


def activation(engine: EngineCore, plan: Plan, prompts: Prompts) -> dict[str, Any]:
    """Time of `activate` while a request runs, what the step after it costs beyond the others, and whether that step's
    token was computed with the new adapters.

    Each activation switches to a set that differs from the one before.
    """
    names = [adapter.name for adapter in engine.adapters]
    everything = dict.fromkeys(names, 1.0)
    sets: list[Mapping[str, float]] = []
    for number in range(ACTIVATIONS):
        off = names[number // 2 % len(names)]
        sets.append({name: 1.0 for name in names if name != off} if number % 2 == 0 else everything)
    ids = prompts.next(plan.batch_context).ids
    steps = 1 + PLAIN_STEPS + ACTIVATIONS * (1 + PLAIN_STEPS)
    submit(engine, "activation", ids, greedy(steps + 8), follow_activation=True)
    _run_until_all_decode(engine, ["activation"])
    plain = [_timed_step(engine) for _ in range(PLAIN_STEPS)]
    calls, after = [], []
    for weights in sets:
        started = time.perf_counter()
        engine.activate(weights)
        calls.append(time.perf_counter() - started)
        after.append(_timed_step(engine))
        plain += [_timed_step(engine) for _ in range(PLAIN_STEPS)]
    _cancel(engine, ["activation"])
    engine.activate(everything)
    usual = statistics.median(plain)
    return {
        "call_seconds": figure(calls),
        "next_step_extra_seconds": figure([seconds - usual for seconds in after]),
        "next_token_uses_it": _next_token_uses_it(engine, ids, everything),
    }


def _next_token_uses_it(engine: EngineCore, ids: Sequence[int], everything: Mapping[str, float]) -> bool:
    """Whether the first token after switching all adapters off has another probability than with them on."""
    logprobs = []
    for switched_off in (False, True):
        engine.activate(everything)
        submit(engine, "switch", ids, greedy(8, logprobs=0), follow_activation=True)
        _run_until_all_decode(engine, ["switch"])
        if switched_off:
            engine.activate({})
        events = checked(engine.step())
        logprobs += [event.logprobs[0].logprob for event in events if isinstance(event, TokensGenerated)]
        _cancel(engine, ["switch"])
    engine.activate(everything)
    return logprobs[0] != logprobs[1]


def throughput(engine: EngineCore, work: Work, plan: Plan, prompts: Prompts) -> list[dict[str, Any]]:
    """Tokens a second of all sequences together while so many decode at once, after their prompts."""
    names = [adapter.name for adapter in engine.adapters]
    found = []
    for size in plan.batch_sizes:
        requests = [f"sequence {number}" for number in range(size)]
        for number, request in enumerate(requests):
            own = {names[number % len(names)]: 1.0} if work.batch == "own" else None
            ids = prompts.next(plan.batch_context).ids
            submit(engine, request, ids, Sampling(ignore_end=True), adapters=own)
        _run_until_all_decode(engine, requests)
        for _ in range(SETTLING_STEPS):
            checked(engine.step())
        rates = []
        for _ in range(-(-plan.tokens // RATE_STEPS)):
            started = time.perf_counter()
            events = [event for _ in range(RATE_STEPS) for event in checked(engine.step())]
            seconds = time.perf_counter() - started
            rates.append(sum(len(event.token_ids) for event in events if isinstance(event, TokensGenerated)) / seconds)
        _cancel(engine, requests)
        found.append({"sequences": size, "tokens_per_second": figure(rates)})
    return found


def guesses(engine: EngineCore, plan: Plan, prompts: Prompts) -> dict[str, Any]:
    """X-LoRA's look-ahead when its guesses are right as often as they happen to be, and when the first one is right in
    a share of about `plan.hit_rate`.

    The random adapters change little, so under greedy decoding the base's first guess is mostly the model's choice. For
    another share tokens are drawn at a temperature at which the likeliest one has that probability on average. Both
    shares are measured: of first guesses that were right, and of tokens whose scalings any guess had ready.
    """
    temperature = _temperature(engine, plan, prompts)
    plain, drawn = [], []
    for number in range(plan.runs):
        plain.append(timed_answer(engine, prompts.next(plan.context).ids, greedy(plan.tokens)))
        sampling = Sampling(temperature=temperature, seed=number, max_tokens=plan.tokens, ignore_end=True)
        drawn.append(timed_answer(engine, prompts.next(plan.context).ids, sampling))
    return {
        "wanted_share": plan.hit_rate,
        "temperature": temperature,
        "greedy": _guessed(plain),
        "drawn": _guessed(drawn),
    }


def _temperature(engine: EngineCore, plan: Plan, prompts: Prompts) -> float:
    """The temperature for `plan.hit_rate`. What is drawn at one makes other contexts than another does, so it is
    approached.
    """
    sampling, found = greedy(plan.tokens, logprobs=20), 0.0
    for number in range(APPROACHES):
        answer = timed_answer(engine, prompts.next(plan.context).ids, sampling)
        wanted = temperature_for(plan.hit_rate, answer.candidates)
        found = math.sqrt(found * wanted) if number else wanted
        sampling = replace(sampling, temperature=found, seed=number)
    return found


def _guessed(answers: Sequence[EngineAnswer]) -> dict[str, Any]:
    return {
        "first_right": statistics.fmean(answer.first_right or 0.0 for answer in answers),
        "scalings_ready": statistics.fmean(answer.scalings_ready or 0.0 for answer in answers),
        "token_seconds": figure([answer.sample.token_seconds for answer in answers]),
    }


def temperature_for(share: float, candidates: Sequence[Sequence[float]]) -> float:
    """The temperature at which the likeliest token has the probability `share` on average, from the log-probabilities
    of each token's likeliest candidates at temperature 1.
    """
    ranked = [sorted(values, reverse=True) for values in candidates]

    def average(temperature: float) -> float:
        tops = [1 / sum(math.exp((value - values[0]) / temperature) for value in values) for values in ranked]
        return statistics.fmean(tops)

    low, high = 1e-4, 50.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if average(middle) > share else (low, middle)
    return math.sqrt(low * high)


def _run_until_all_decode(engine: EngineCore, requests: Sequence[str]) -> None:
    waiting = set(requests)
    while waiting:
        for event in checked(engine.step()):
            if isinstance(event, TokensGenerated) and event.token_ids:
                waiting.discard(event.request_id)


def _timed_step(engine: EngineCore) -> float:
    started = time.perf_counter()
    checked(engine.step())
    return time.perf_counter() - started


def _cancel(engine: EngineCore, requests: Sequence[str]) -> None:
    for request in requests:
        engine.cancel(request)
    while engine.busy:
        checked(engine.step())
