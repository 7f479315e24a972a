"""One subscription to the worker, shared out: a thread takes the events and hands each to the asker's asyncio queue."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from loradesk_engine.commands import Cancel, ChatRequest, Command, CompletionRequest
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
    RequestStarted,
    TokensGenerated,
    WorkerClosed,
)
from loradesk_engine.serving.http.metrics import Metrics
from loradesk_engine.serving.http.refusal import Refusal
from loradesk_engine.serving.worker import EngineWorker

RequestEvent = RequestStarted | TokensGenerated | RequestFinished | RequestFailed
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
        known: events from before the subscription that tell what is loaded: `ModelLoaded`, `AdaptersActivated`.
    """

    def __init__(self, worker: EngineWorker, metrics: Metrics, known: Iterable[Event] = ()) -> None:
        self._worker = worker
        self._metrics = metrics
        self._known = tuple(known)
        self._tickets: dict[str, _Ticket] = {}
        self._busy: set[str] = set()  # everybody's requests, the chat pane's too
        self._waiting: Callable[[Event], None] | None = None
        self._command_lock = asyncio.Lock()
        self._thread: threading.Thread | None = None
        self._events: queue.SimpleQueue[Event] | None = None
        self._stop = threading.Event()
        self.info: ModelInfo | None = None
        self.active: dict[str, float] = {}
        self.closed = False

    # --- the thread ---------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Subscribe and begin to share out."""
        self._events = self._worker.subscribe()
        self._take(list(self._known))
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
            batch = [events.get()]
            while not events.empty():
                batch.append(events.get())
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
            if self._waiting is not None:
                self._waiting(event)
            if isinstance(event, RequestStarted | TokensGenerated | RequestFinished | RequestFailed):
                self._hand_over(event)

    def _note(self, event: Event) -> None:
        match event:
            case ModelLoaded(info):
                self.info = info
                self._busy.clear()
            case ModelUnloaded():
                self.info, self.active = None, {}
                self._busy.clear()
            case AdaptersActivated(weights):
                self.active = dict(weights)
            case AdaptersChanged(adapters):
                if self.info is not None:
                    self.info = replace(self.info, adapters=adapters)
            case MemoryMeasured():
                self._metrics.memory = event
            case RequestStarted():
                self._busy.add(event.request_id)
            case RequestFinished() | RequestFailed():
                self._busy.discard(event.request_id)
            case WorkerClosed():
                self.info, self.closed = None, True
                self.end_all("The engine was closed.")

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
    def ended(self) -> bool:
        """Whether the engine has ended; a server may be started after that, and then hears of nothing."""
        return self.closed or not self._worker.alive

    def _need_worker(self) -> None:
        if self.ended:
            raise Refusal(503, "The engine has ended.", code="no_model")

    @property
    def running(self) -> int:
        """This server's generations that run or wait in the engine."""
        return len(self._tickets)

    @property
    def busy(self) -> bool:
        """Whether anybody's generation runs."""
        return bool(self._busy or self._tickets)

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

    def end_all(self, problem: str) -> None:
        """Tell every asker that no answer will come, and the engine to stop."""
        for request_id, ticket in list(self._tickets.items()):
            self.cancel(request_id)
            ticket.inbox.put_nowait((ticket.index, RequestFailed(request_id, Problem("LoradeskError", problem))))
            del self._tickets[request_id]

    async def command(self, command: Command, done: Callable[[Event], bool], seconds: float) -> Event:
        """Carry out a command and wait for the event that tells its success.

        Events of commands carry no number, so one of ours runs at a time, and `done` looks for what this one must bring
        about: the window may send commands of its own meanwhile.

        Raises:
            Refusal: it failed, or took too long.
        """
        async with self._command_lock:
            outcome: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

            def look(event: Event) -> None:
                if not outcome.done() and (done(event) or isinstance(event, CommandFailed | WorkerClosed)):
                    outcome.set_result(event)

            self._need_worker()
            self._waiting = look
            try:
                self._worker.send(command)
                async with asyncio.timeout(seconds):
                    event = await outcome
            except TimeoutError:
                raise Refusal(408, "The engine did not answer in time.", code="timeout") from None
            finally:
                self._waiting = None
        if isinstance(event, WorkerClosed):
            raise Refusal(503, "The engine was closed.", code="no_model")
        if isinstance(event, CommandFailed):
            raise command_refusal(event.problem, busy=self.busy)
        return event


def command_refusal(problem: Problem, *, busy: bool) -> Refusal:
    """409 when it failed because generations run: the same command may succeed later."""
    text = f"{problem.problem} {problem.remedy}" if problem.remedy else problem.problem
    if problem.problem.startswith("Requests are running") or (busy and "running" in problem.problem):
        return Refusal(409, text, code="busy")
    if problem.problem == "No model is loaded.":
        return Refusal(503, text, code="no_model")
    return Refusal(400, text, param=problem.field, code="invalid_value")


def names_of(info: ModelInfo | None) -> Mapping[str, int]:
    """Adapter names -> place, which is also llama.cpp's id."""
    return {adapter.name: place for place, adapter in enumerate(info.adapters)} if info is not None else {}
