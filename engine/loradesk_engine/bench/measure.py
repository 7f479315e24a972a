"""Run the works: engine and peers in turn, in one run, and put all figures into one report."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from loradesk_engine.bench import engine_measures
from loradesk_engine.bench.bandwidth import memory_speed
from loradesk_engine.bench.contender import Contender, LeftOut
from loradesk_engine.bench.engine_contender import EngineContender
from loradesk_engine.bench.figures import Sample, figure
from loradesk_engine.bench.machine import machine
from loradesk_engine.bench.peers import make_peer
from loradesk_engine.bench.plan import Plan, Work
from loradesk_engine.bench.prompts import Prompts
from loradesk_engine.bench.subject import Subject

logger = logging.getLogger(__name__)

SCHEMA = 1
FEWEST_TOKENS = 4
SHORT_LOAD = 3.0  # seconds; a load that takes longer is timed once

Tell = Callable[[str], None]


def measure(
    subject: Subject,
    works: Sequence[Work],
    peers: Sequence[str],
    plan: Plan,
    *,
    threads: int | None = None,
    pythons: Mapping[str, str] | None = None,
    quick: bool = False,
    tell: Tell = lambda _line: None,
    work_done: Callable[[dict[str, Any]], None] = lambda _report: None,
) -> dict[str, Any]:
    """The report of a run, ready for JSON; `table` shows it.

    Args:
        peers: names of `PEERS`.
        pythons: peer -> Python of its environment.
        tell: takes a line about what is done at the moment.
        work_done: takes the report so far after each work, so that a run that is stopped leaves something.

    Raises:
        LoradeskError: the engine itself cannot do a work.
    """
    started = time.time()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "machine": machine(subject.device),
        "subject": {
            "name": subject.name,
            "weights": "random" if subject.path is None else "file",
            "architecture": subject.config.architecture,
            "device": str(subject.device),
            "dtype": str(subject.dtype).removeprefix("torch."),
            "context": subject.context,
            "adapted_linears": len(subject.layout.sizes),
            "targets": subject.layout.targets,
        },
        "plan": {name: list(value) if isinstance(value, tuple) else value for name, value in vars(plan).items()},
        "works": [],
    }
    for work in works:
        engine = EngineContender(subject, work, threads)
        others = [make_peer(name, subject, work, threads, pythons or {}) for name in peers]
        with contextlib.ExitStack() as stack:
            for contender in (engine, *others):
                stack.callback(contender.close)
            report["works"].append(_one_work(engine, others, plan, tell))
            if "floor" not in report:
                report["floor"] = _floor(engine, quick=quick)
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
        report["seconds"] = time.time() - started
        work_done(report)
    return report


def _one_work(engine: EngineContender, others: Sequence[Contender], plan: Plan, tell: Tell) -> dict[str, Any]:
    work, contenders = engine.work, (engine, *others)
    result: dict[str, Any] = {"name": work.name, "title": work.title, "adapters": plan.adapters_of(work)}
    left_out: dict[str, str] = {}

    def attempt(contender: Contender, action: Callable[[], Any]) -> Any:
        """What the action gives; a peer that cannot do it is left out, and why is noted."""
        try:
            return action()
        except LeftOut as problem:
            left_out[contender.name] = problem.problem
        except Exception as problem:
            if contender is engine:
                raise
            logger.warning("%s failed", contender.name, exc_info=True)
            left_out[contender.name] = f"It failed: {type(problem).__name__}: {problem}"
        contender.close()
        return None

    loads: dict[str, list[float]] = {contender.name: [] for contender in contenders}

    def load(contender: Contender) -> None:
        tell(f"{work.title}: {contender.name} loads")
        seconds = attempt(contender, contender.load)
        if seconds is not None:
            loads[contender.name].append(seconds)

    for contender in contenders:
        load(contender)
    prompts = Prompts(engine.subject.config.vocab_size, engine.engine.tokenizer.decode)
    samples: dict[str, list[Sample]] = {}
    shares: dict[str, tuple[int, int]] = {}  # tokens and runs that each has time for
    for contender in contenders:
        if contender.name in left_out:
            continue
        tell(f"{work.title}: {contender.name} warms up")
        tokens = plan.tokens if contender is engine else FEWEST_TOKENS
        sample = attempt(contender, lambda c=contender, t=tokens: c.answer(prompts.next(plan.context), t))  # type: ignore[misc]
        if sample is None:
            continue
        shares[contender.name] = (tokens, plan.runs) if contender is engine else share_of(sample, plan)
        # one that has no time for a second answer keeps the first
        samples[contender.name] = [] if shares[contender.name][1] else [sample]
    for number in range(plan.runs):
        tell(f"{work.title}: answer {number + 1} of {plan.runs}")
        for contender in contenders:
            if contender.name in left_out or number >= shares[contender.name][1]:
                continue
            tokens = shares[contender.name][0]
            sample = attempt(contender, lambda c=contender, t=tokens: c.answer(prompts.next(plan.context), t))  # type: ignore[misc]
            if sample is not None:
                samples[contender.name].append(sample)

    memory = {
        contender.name: attempt(contender, contender.peak_memory)
        for contender in contenders
        if contender.name not in left_out
    }
    if work.name == "base":  # the first load was for memory, and brought the file into the system's cache
        again = [contender for contender in contenders if 0 < sum(loads[contender.name]) < SHORT_LOAD]
        for contender in again:
            loads[contender.name].clear()
        for _ in range(plan.runs):
            for contender in again:
                if contender.name not in left_out:
                    load(contender)

    result["contenders"] = {}
    for contender in contenders:
        name = contender.name
        result["contenders"][name] = (
            {"left_out": left_out[name]}
            if name in left_out
            else _figures(contender.version, samples[name], loads[name], memory[name])
        )
    result["ratios"] = _ratios(samples, loads, engine.name, left_out)
    for contender in others:
        contender.close()
    return result | _engine_measures(engine, plan, prompts, tell)


def share_of(sample: Sample, plan: Plan) -> tuple[int, int]:
    """Tokens and runs that a peer has time for, from its first answer; 0 runs where one more would take too long."""
    for tokens in (plan.tokens, max(FEWEST_TOKENS, plan.tokens // 4), FEWEST_TOKENS):
        seconds = sample.first_seconds + (tokens - 1) * sample.token_seconds
        runs = min(plan.runs, int(plan.peer_seconds / max(seconds, 1e-9)))
        if runs >= min(plan.runs, 3) or (tokens == FEWEST_TOKENS and runs):
            return tokens, runs
    return FEWEST_TOKENS, 0


def _figures(version: str, samples: Sequence[Sample], loads: Sequence[float], memory: int | None) -> dict[str, Any]:
    return {
        "version": version,
        "prompt_tokens": samples[0].prompt_tokens,
        "new_tokens": samples[0].new_tokens,
        "first_token_seconds": figure([sample.first_seconds for sample in samples]),
        "prompt_tokens_per_second": figure([1 / sample.prompt_token_seconds for sample in samples]),
        "token_seconds": figure([sample.token_seconds for sample in samples]),
        "load_seconds": figure(loads) if loads else None,
        "peak_memory_bytes": memory,
    }


def _ratios(
    samples: Mapping[str, Sequence[Sample]],
    loads: Mapping[str, Sequence[float]],
    engine: str,
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Peer -> its time by the engine's: above 1 the engine is faster. Each of the peer's runs is held against the
    engine's run beside it.
    """

    def pairs(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
        return figure([their / our for their, our in zip(theirs, ours, strict=False)])

    ours = samples[engine]
    ratios: dict[str, Any] = {}
    for name, theirs in samples.items():
        if name == engine or name in left_out:
            continue
        ratios[name] = {
            "token_seconds": pairs([s.token_seconds for s in theirs], [s.token_seconds for s in ours]),
            "prompt_token_seconds": pairs(
                [s.prompt_token_seconds for s in theirs], [s.prompt_token_seconds for s in ours]
            ),
            "load_seconds": pairs(loads[name], loads[engine]) if loads[name] and loads[engine] else None,
        }
    return ratios


def _engine_measures(engine: EngineContender, plan: Plan, prompts: Prompts, tell: Tell) -> dict[str, Any]:
    work = engine.work
    found: dict[str, Any] = {}
    if work.mode == "xlora" and work.lookahead and not work.non_granular:
        tell(f"{work.title}: guesses")
        found["guesses"] = engine_measures.guesses(engine.engine, plan, prompts)
    if work.next_turn:
        tell(f"{work.title}: next turns")
        found["next_turns"] = engine_measures.next_turns(engine.engine, plan, prompts)
    if work.activation:
        tell(f"{work.title}: activation")
        found["activation"] = engine_measures.activation(engine.engine, plan, prompts)
    if work.batch is not None:
        tell(f"{work.title}: several sequences at once")
        found["throughput"] = engine_measures.throughput(engine.engine, work, plan, prompts)
    return found


def _floor(engine: EngineContender, *, quick: bool) -> dict[str, Any]:
    """The time in which the weights can be read once."""
    nbytes = engine.engine.decoder.nbytes  # asking for the engine has set its threads
    what, speeds = memory_speed(engine.subject.device, quick=quick)
    speed = figure(speeds)
    return {
        "measured": what,
        "bytes_per_second": speed,
        "weight_bytes": nbytes,
        "parameters": engine.engine.decoder.parameters,
        "token_seconds": nbytes / speed["median"],
    }
