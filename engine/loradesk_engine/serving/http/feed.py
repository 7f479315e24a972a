"""One subscription to the worker, shared out: a thread takes the events and hands each to the asker's asyncio queue."""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from loradesk_engine.commands import Cancel, ChatRequest, Command, CompletionRequest
from loradesk_engine.errors import Cancelled, LoradeskError, NoModelError
from loradesk_engine.events import (
    AdaptersActivated,
    AdaptersChanged,
    CommandFailed,
    Event,
    MemoryMeasured,
    ModelInfo,
    ModelLoaded,
    ModelUnloaded,
    Problem,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    TokensGenerated,
    WorkerClosed,
)
from loradesk_engine.serving.http.metrics import Metrics
from loradesk_engine.serving.http.refusal import Refusal, of_problem
from loradesk_engine.serving.worker import EngineWorker

RequestEvent = RequestQueued | RequestStarted | TokensGenerated | RequestFinished | RequestFailed
STOP_SECONDS = 5.0


@dataclass(frozen=True)
class _Ticket:
    """Where the events of one request go. Kept until the engine says that the request has ended, also when nobody
    listens any more: until then it takes a place.
    """

    inbox: asyncio.Queue[tuple[int, RequestEvent]]
    index: int


class Feed:
    """The server's side of the worker. Everything but `start` and `stop` belongs to the event loop.

    Args:
        worker: shared with the window, if there is one.
    """

    def __init__(self, worker: EngineWorker, metrics: Metrics) -> None:
        self._worker = worker
        self._metrics = metrics
        self._tickets: dict[str, _Ticket] = {}
        self._commands: dict[str, asyncio.Future[Event]] = {}  # by their tags
        self._thread: threading.Thread | None = None
        self._events: queue.SimpleQueue[Event] | None = None
        self._stop = threading.Event()
        self.info: ModelInfo | None = None
        self.active: dict[str, float] = {}

    # --- the thread ---------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Subscribe and begin to share out; how things stand is known when it returns."""
        self._events = self._worker.subscribe()
        self._take(_waiting(self._events))
        self._thread = threading.Thread(
            target=self._run, args=(loop, self._events), name="loradesk-http-feed", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Unsubscribe and end the thread."""
        if self._events is None or self._thread is None:
            return
        self._stop.set()
        self._worker.unsubscribe(self._events)
        self._events.put(WorkerClosed())  # our own queue: it wakes the thread, nobody else sees it
        self._thread.join(STOP_SECONDS)

    def _run(self, loop: asyncio.AbstractEventLoop, events: queue.SimpleQueue[Event]) -> None:
        while not self._stop.is_set():
            batch = [events.get(), *_waiting(events)]
            if self._stop.is_set():
                return
            try:
                loop.call_soon_threadsafe(self._take, batch)
            except RuntimeError:  # the loop has been closed
                return

    # --- in the loop --------------------------------------------------------------------------------------------------

    def _take(self, batch: list[Event]) -> None:
        for event in batch:
            self._note(event)
            if isinstance(event, AdaptersActivated | AdaptersChanged | CommandFailed):
                self._answer_command(event)
            elif isinstance(event, RequestEvent):
                self._hand_over(event)

    def _note(self, event: Event) -> None:
        match event:
            case ModelLoaded(info):
                self.info = info
            case ModelUnloaded():
                self.info, self.active = None, {}
            case AdaptersActivated(weights):
                self.active = dict(weights)
            case AdaptersChanged(adapters):
                if self.info is not None:
                    self.info = replace(self.info, adapters=adapters)
                names = {adapter.name for adapter in adapters}
                self.active = {name: weight for name, weight in self.active.items() if name in names}
            case MemoryMeasured():
                self._metrics.memory = event
            case WorkerClosed():
                self.info = None
                self._end_all(NoModelError("The engine was closed."))

    def _answer_command(self, event: AdaptersActivated | AdaptersChanged | CommandFailed) -> None:
        outcome = self._commands.get(event.tag) if event.tag is not None else None
        if outcome is not None and not outcome.done():
            outcome.set_result(event)

    def _hand_over(self, event: RequestEvent) -> None:
        ticket = self._tickets.get(event.request_id)
        if ticket is None:
            return
        ticket.inbox.put_nowait((ticket.index, event))
        if isinstance(event, RequestFinished):
            self._metrics.finished(event)
            del self._tickets[event.request_id]
        elif isinstance(event, RequestFailed):
            self._metrics.failed += 1
            del self._tickets[event.request_id]

    @property
    def closed(self) -> bool:
        """Whether the engine has ended: asked of the worker, since its last event may still be on its way."""
        return any(isinstance(event, WorkerClosed) for event in self._worker.standing)

    def _need_worker(self) -> None:
        if self.closed:
            raise of_problem(Problem.of(NoModelError("The engine was closed.")))

    @property
    def running(self) -> int:
        """This server's generations that run or wait in the engine."""
        return len(self._tickets)

    def submit(
        self, request: ChatRequest | CompletionRequest, inbox: asyncio.Queue[tuple[int, RequestEvent]], index: int
    ) -> None:
        """Send a request; its events come into `inbox`, with `index`.

        Raises:
            Refusal: the engine has ended.
        """
        self._need_worker()
        self._tickets[request.request_id] = _Ticket(inbox, index)
        self._worker.send(request)

    def cancel(self, request_id: str) -> None:
        """Stop a request that nobody waits for any more."""
        if request_id in self._tickets:
            self._worker.send(Cancel(request_id))

    def end(self) -> None:
        """The server stops: tell every asker that no answer will come, and the engine to stop."""
        self._end_all(Cancelled("The server was stopped."))

    def _end_all(self, problem: LoradeskError) -> None:
        for request_id, ticket in list(self._tickets.items()):
            self.cancel(request_id)
            ticket.inbox.put_nowait((ticket.index, RequestFailed(request_id, Problem.of(problem))))
            del self._tickets[request_id]
        for tag, outcome in self._commands.items():
            if not outcome.done():
                outcome.set_result(CommandFailed(Problem.of(problem), tag))

    async def command(self, make: Callable[[str], Command], seconds: float) -> None:
        """Carry out a command and wait for its end. `make` puts the tag into it by which its event is known.

        Raises:
            Refusal: it failed, or took too long.
        """
        self._need_worker()
        tag = uuid.uuid4().hex
        outcome = self._commands[tag] = asyncio.get_running_loop().create_future()
        try:
            self._worker.send(make(tag))
            async with asyncio.timeout(seconds):
                event = await outcome
        except TimeoutError:
            raise Refusal(408, "The engine did not answer in time.", code="timeout") from None
        finally:
            del self._commands[tag]
        if isinstance(event, CommandFailed):
            raise of_problem(event.problem)


def names_of(info: ModelInfo | None) -> Mapping[str, int]:
    """Adapter names -> place, which is also llama.cpp's id."""
    return {adapter.name: place for place, adapter in enumerate(info.adapters)} if info is not None else {}


def _waiting(events: queue.SimpleQueue[Event]) -> list[Event]:
    """What is in the queue now."""
    batch = []
    while not events.empty():
        batch.append(events.get())
    return batch
