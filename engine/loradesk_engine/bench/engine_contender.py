"""The engine as a contender: requests go in by `EngineCore.submit`, tokens come out of `EngineCore.step`."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from loradesk_engine.bench.figures import Sample
from loradesk_engine.bench.memory import PeakMemory
from loradesk_engine.bench.plan import Work
from loradesk_engine.bench.prompts import Prompt
from loradesk_engine.bench.subject import Subject
from loradesk_engine.commands import CompletionRequest, Sampling
from loradesk_engine.errors import LoradeskError
from loradesk_engine.events import Event, RequestFailed, RequestFinished, TokensGenerated
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.native import library


@dataclass(frozen=True)
class EngineAnswer:
    """A timed answer, and what the events said of it.

    Attributes:
        cached: prompt tokens taken over from an earlier turn.
        scalings_ready: share of the tokens whose scalings look-ahead had ready; None outside X-LoRA.
        first_right: share of the tokens that were the first guess of those that were checked; None likewise.
        candidates: log-probabilities of each token's likeliest candidates, where the sampling asks for them.
    """

    sample: Sample
    cached: int
    scalings_ready: float | None
    first_right: float | None
    candidates: tuple[tuple[float, ...], ...]


class EngineContender:
    """One work's engine.

    Args:
        threads: of torch on the CPU; None leaves the engine's own choice.
    """

    name = "loradesk"

    def __init__(self, subject: Subject, work: Work, threads: int | None) -> None:
        self.version = _own_version()
        self.subject = subject
        self.work = work
        self._threads = threads
        self._engine: EngineCore | None = None
        self._memory: PeakMemory | None = None

    @property
    def engine(self) -> EngineCore:
        """The loaded engine, its threads set."""
        assert self._engine is not None
        use_threads(self._engine, self._threads)
        return self._engine

    def load(self) -> float | None:
        self.subject.prepare(self.work)
        self.close()
        self._memory = PeakMemory(self.subject.device)
        started = time.perf_counter()
        self._engine = self.subject.engine(self.work)
        seconds = time.perf_counter() - started
        return None if self.subject.path is None else seconds

    def answer(self, prompt: Prompt, tokens: int) -> Sample:
        return timed_answer(self.engine, prompt.ids, greedy(tokens)).sample

    def peak_memory(self) -> int | None:
        return self._memory.taken() if self._memory is not None else None

    def close(self) -> None:
        if self._engine is not None:
            self._engine = None
            gc.collect()


def _own_version() -> str:
    try:
        return version("loradesk")
    except PackageNotFoundError:  # run from the source tree
        return "source"


def use_threads(engine: EngineCore, threads: int | None) -> None:
    """Set the threads for the engine's next steps; a peer may have had others."""
    engine.enter_thread()
    if threads is not None:
        torch.set_num_threads(threads)
        library.threads = threads


def greedy(tokens: int, *, logprobs: int | None = None) -> Sampling:
    """Exactly so many tokens, each the likeliest."""
    return Sampling(max_tokens=tokens, ignore_end=True, logprobs=logprobs)


def submit(
    engine: EngineCore,
    request_id: str,
    ids: Sequence[int],
    sampling: Sampling,
    *,
    adapters: Mapping[str, float] | None = None,
    follow_activation: bool = False,
) -> None:
    """Queue a completion of token ids, without the scalings of each token in the events."""
    engine.submit(CompletionRequest(request_id, tuple(ids), sampling, adapters, follow_activation, want_scalings=False))


def checked(events: Sequence[Event]) -> Sequence[Event]:
    """The events; a failed request among them is an error."""
    for event in events:
        if isinstance(event, RequestFailed):
            raise LoradeskError(f"The engine could not answer: {event.problem}")
    return events


def timed_answer(engine: EngineCore, ids: Sequence[int], sampling: Sampling) -> EngineAnswer:
    """Run one request to its end."""
    started = time.perf_counter()
    submit(engine, "answer", ids, sampling)
    first: float | None = None
    finished: RequestFinished | None = None
    candidates: list[tuple[float, ...]] = []
    while engine.busy:
        for event in checked(engine.step()):
            if isinstance(event, TokensGenerated) and event.token_ids:
                first = first or time.perf_counter()
                candidates += [tuple(other.logprob for other in token.top) for token in event.logprobs]
            elif isinstance(event, RequestFinished):
                finished = event
    ended = time.perf_counter()
    assert first is not None
    assert finished is not None
    look_ahead, tokens = finished.look_ahead, finished.completion_tokens
    return EngineAnswer(
        Sample(finished.prompt_tokens, tokens, first - started, ended - first),
        finished.cached_tokens,
        look_ahead.hits / tokens if look_ahead is not None else None,
        look_ahead.first_hits / tokens if look_ahead is not None else None,
        tuple(candidates),
    )
