"""The one place that talks to the engine: commands in, events out as Qt signals."""

from __future__ import annotations

import time
from queue import Empty
from typing import TYPE_CHECKING, Protocol, TypeGuard

from PySide6.QtCore import QObject, QTimer, Signal

from loradesk_engine.commands import Cancel, CancelLoad, ChatRequest, Close, Command, CompletionRequest, Load

if TYPE_CHECKING:  # events.py imports numpy, which the window can do without until it is painted
    from queue import SimpleQueue

    from loradesk_engine.events import Event, RequestFailed, RequestFinished, TokensGenerated

BUSY_MS = 16
IDLE_MS = 100
CLOSE_SECONDS = 8.0

_SIGNALS = {
    "LoadProgressed": "load_progressed",
    "ModelLoaded": "model_loaded",
    "ModelUnloaded": "model_unloaded",
    "LoadFailed": "load_failed",
    "LoadCancelled": "load_cancelled",
    "AdaptersActivated": "adapters_activated",
    "AdaptersChanged": "adapters_changed",
    "CommandFailed": "command_failed",
    "RequestQueued": "request_queued",
    "RequestStarted": "request_started",
    "TokensGenerated": "tokens_generated",
    "RequestFinished": "request_finished",
    "RequestFailed": "request_failed",
    "MemoryMeasured": "memory_measured",
    "MemoryEstimated": "memory_estimated",
    "EstimateFailed": "estimate_failed",
    "WorkerReady": "worker_ready",
    "WorkerClosed": "worker_closed",
}


class Worker(Protocol):
    """What the client needs of `loradesk_engine.serving.worker.EngineWorker`."""

    def start(self) -> None: ...

    def send(self, command: Command) -> None: ...

    def subscribe(self) -> SimpleQueue[Event]: ...

    def close(self, timeout: float) -> bool: ...


class EngineClient(QObject):
    """Owns the worker. Every signal carries the event of the same name; all of it happens on the GUI thread.

    Args:
        worker: another worker than the engine's own; tests pass a scripted one.
    """

    load_progressed = Signal(object)
    model_loaded = Signal(object)
    model_unloaded = Signal(object)
    load_failed = Signal(object)
    load_cancelled = Signal(object)
    adapters_activated = Signal(object)
    adapters_changed = Signal(object)
    command_failed = Signal(object)
    request_queued = Signal(object)
    request_started = Signal(object)
    tokens_generated = Signal(object)  # one a frame and request, however many the engine sent
    request_finished = Signal(object)
    request_failed = Signal(object)
    memory_measured = Signal(object)
    memory_estimated = Signal(object)
    estimate_failed = Signal(object)
    worker_ready = Signal(object)
    worker_closed = Signal(object)
    loading_changed = Signal(bool)
    closed = Signal(bool)  # whether the worker's thread has ended

    def __init__(self, worker: Worker | None = None, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._worker = worker
        self._events: SimpleQueue[Event] | None = None
        self._running: set[str] = set()
        self._loads = 0
        self._deadline: float | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(IDLE_MS)
        self._timer.timeout.connect(self.drain)

    @property
    def started(self) -> bool:
        return self._events is not None

    @property
    def is_loading(self) -> bool:
        return self._loads > 0

    @property
    def running(self) -> frozenset[str]:
        """Ids of the requests that have not ended."""
        return frozenset(self._running)

    @property
    def worker(self) -> Worker | None:
        """The worker once it was started, for the server that shares it."""
        return self._worker if self.started else None

    def start(self) -> None:
        """Start the worker's thread, which then imports torch. Nothing of the engine is imported before."""
        if self.started:
            return
        if self._worker is None:
            from loradesk_engine.serving.worker import EngineWorker

            self._worker = EngineWorker()
        self._events = self._worker.subscribe()
        self._worker.start()
        self._timer.start()

    def send(self, command: Command) -> None:
        """Give the engine a command; never waits. Starts the worker if need be."""
        self.start()
        assert self._worker is not None
        match command:
            case ChatRequest() | CompletionRequest():
                self._running.add(command.request_id)
            case Load():
                self._count_load(+1)
        self._timer.setInterval(BUSY_MS)
        self._worker.send(command)

    def cancel_all(self) -> None:
        """Stop whatever is loading or being answered."""
        for request_id in sorted(self._running):
            self.send(Cancel(request_id))
        if self.is_loading:
            self.send(CancelLoad())

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Cancel everything and end the worker; `closed` follows, without the GUI thread waiting for it."""
        if self._deadline is not None:
            return
        self._deadline = time.monotonic() + seconds
        if not self.started:
            QTimer.singleShot(0, self, lambda: self._end(clean=True))
            return
        self.cancel_all()
        self.send(Close())

    def drain(self) -> None:
        """Take every event that is waiting and pass it on, the tokens of one request together."""
        if self._events is None:
            return
        tokens: dict[str, list[TokensGenerated]] = {}
        seen = 0
        ended = False
        while not ended:
            try:
                event = self._events.get_nowait()
            except Empty:
                break
            seen += 1
            name = type(event).__name__
            if _is_tokens(event):
                tokens.setdefault(event.request_id, []).append(event)
                continue
            # What was generated before this event is shown before it.
            self._pass_tokens(tokens)
            self._note(name, event)
            getattr(self, _SIGNALS[name]).emit(event)
            ended = name == "WorkerClosed"
        self._pass_tokens(tokens)
        busy = bool(seen or self._running or self._loads or self._deadline)
        self._timer.setInterval(BUSY_MS if busy else IDLE_MS)
        if ended or (self._deadline is not None and time.monotonic() > self._deadline):
            assert self._worker is not None
            self._end(clean=self._worker.close(1.0 if ended else 0.0))

    def _pass_tokens(self, tokens: dict[str, list[TokensGenerated]]) -> None:
        waiting = list(tokens.values())
        tokens.clear()
        for events in waiting:
            for event in coalesce(events):
                self.tokens_generated.emit(event)

    def _note(self, name: str, event: Event) -> None:
        if _ends_request(event):
            self._running.discard(event.request_id)
        elif name in ("ModelLoaded", "LoadFailed", "LoadCancelled"):
            self._count_load(-1)
        elif name == "WorkerClosed":
            self._running.clear()
            self._loads = 0

    def _count_load(self, step: int) -> None:
        before = self._loads
        self._loads = max(0, self._loads + step)
        if bool(before) != bool(self._loads):
            self.loading_changed.emit(self.is_loading)

    def _end(self, clean: bool) -> None:
        self._timer.stop()
        self._events = None
        self.closed.emit(clean)


# By name, because the classes are in events.py; see the imports above.
def _is_tokens(event: Event) -> TypeGuard[TokensGenerated]:
    return type(event).__name__ == "TokensGenerated"


def _ends_request(event: Event) -> TypeGuard[RequestFinished | RequestFailed]:
    return type(event).__name__ in ("RequestFinished", "RequestFailed")


def coalesce(events: list[TokensGenerated]) -> list[TokensGenerated]:
    """Join the token events of one request into as few as their scalings allow: one, unless rows are missing."""
    import numpy as np

    from loradesk_engine.events import TokensGenerated

    groups: list[list[TokensGenerated]] = []
    for event in events:
        if groups and _continues(groups[-1], event):
            groups[-1].append(event)
        else:
            groups.append([event])
    joined = []
    for group in groups:
        if len(group) == 1:
            joined.append(group[0])
            continue
        rows = [event for event in group if event.scalings is not None]
        joined.append(
            TokensGenerated(
                request_id=group[0].request_id,
                text="".join(event.text for event in group),
                token_ids=tuple(token for event in group for token in event.token_ids),
                token_texts=tuple(text for event in group for text in event.token_texts),
                scalings=np.concatenate([event.scalings for event in rows]) if rows else None,
                scaling_token_texts=tuple(text for event in rows for text in event.scaling_token_texts),
                scalings_start=rows[0].scalings_start if rows else 0,
                logprobs=tuple(entry for event in group for entry in event.logprobs),
            )
        )
    return joined


def _continues(group: list[TokensGenerated], event: TokensGenerated) -> bool:
    """Whether an event's scalings begin where those of the group end."""
    if event.scalings is None:
        return True
    last = next((earlier for earlier in reversed(group) if earlier.scalings is not None), None)
    if last is None or last.scalings is None:
        return True
    fits = last.scalings.shape[1:] == event.scalings.shape[1:]
    return fits and last.scalings_start + len(last.scalings) == event.scalings_start
