"""The engine's requests behind one HTTP request, from submission to the end of the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from loradesk_engine.events import RequestFailed, RequestFinished, RequestQueued, RequestStarted
from loradesk_engine.serving.http.feed import Feed, RequestEvent
from loradesk_engine.serving.http.options import ServerOptions
from loradesk_engine.serving.http.record import RequestRecord
from loradesk_engine.serving.http.refusal import Refusal, of_problem
from loradesk_engine.serving.http.requests import Job


class Generation:
    """Use it in `async with`: leaving it, for whatever reason, cancels what still runs.

    Args:
        record: the log's line of this request; counts and adapters are put there.
    """

    def __init__(self, feed: Feed, job: Job, options: ServerOptions, record: RequestRecord) -> None:
        self._feed = feed
        self._job = job
        self._options = options
        self._record = record
        self._inbox: asyncio.Queue[tuple[int, RequestEvent]] = asyncio.Queue()
        self._open = set(range(len(job.requests)))
        self._queued: set[int] = set()
        self._started: set[int] = set()
        self._early: list[tuple[int, RequestEvent]] = []
        self._deadline = asyncio.get_running_loop().time() + options.request_seconds

    async def __aenter__(self) -> Generation:
        """Submit, and wait until the engine has checked all of them and begun with one: what it refuses is refused
        before anything has been sent.

        Raises:
            Refusal: there are too many already, or the engine refuses.
        """
        wanted = len(self._job.requests)
        if self._feed.running + wanted > self._options.max_requests:
            raise Refusal(
                429,
                f"{self._feed.running} answers run or wait already; at most {self._options.max_requests} may.",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        for index, request in enumerate(self._job.requests):
            self._feed.submit(request, self._inbox, index)
        try:
            while len(self._queued) < wanted or not self._started:
                self._early.append(await self._next())
        except BaseException:
            self._cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()

    def _cancel(self) -> None:
        for index in self._open:
            self._feed.cancel(self._job.requests[index].request_id)

    async def _next(self) -> tuple[int, RequestEvent]:
        try:
            async with asyncio.timeout_at(self._deadline):
                index, event = await self._inbox.get()
        except TimeoutError:
            seconds = f"{self._options.request_seconds:g}"
            raise Refusal(408, f"The answer took more than {seconds} seconds.", code="timeout") from None
        if isinstance(event, RequestQueued):
            self._queued.add(index)
        elif isinstance(event, RequestStarted):
            self._started.add(index)
            self._record.adapters = dict(event.weights)
        elif isinstance(event, RequestFailed):
            self._open.discard(index)
            raise of_problem(event.problem, started=index in self._started)
        elif isinstance(event, RequestFinished):
            self._open.discard(index)
            self._record.prompt_tokens += event.prompt_tokens
            self._record.completion_tokens += event.completion_tokens
        return index, event

    async def events(self) -> AsyncIterator[tuple[int, RequestEvent]]:
        """Number of the choice and event, until all have ended.

        Raises:
            Refusal: one failed or the time is over.
        """
        while self._early:
            yield self._early.pop(0)
        while self._open:
            yield await self._next()
