"""The one place that talks to the engine: commands in, events out as Qt signals. What concerns the window is decided by
`Router`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty
from typing import TYPE_CHECKING, Protocol

from PySide6.QtCore import QObject, QTimer, Signal

from loradesk_desk.router import Router
from loradesk_engine.commands import Cancel, CancelLoad, Close, Command, LoadSettings

if TYPE_CHECKING:  # events.py imports numpy, which the window can do without until it is painted
    from queue import SimpleQueue

    from loradesk_engine.events import Event

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

    @property
    def alive(self) -> bool: ...


class EngineClient(QObject):
    """Owns the worker. Every signal carries the event of the same name; all of it happens on the GUI thread.

    Other programs may use the same worker. Signals of requests, loads, estimates and failed commands are emitted only
    for what was sent from here; those that change the model are emitted whoever caused them.

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
    closed = Signal(bool)  # whether the worker's thread has ended

    def __init__(self, worker: Worker | None = None, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._worker = worker
        self._events: SimpleQueue[Event] | None = None
        self._router = Router()
        self._deadline: float | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(IDLE_MS)
        self._timer.timeout.connect(self.drain)

    @property
    def started(self) -> bool:
        return self._events is not None

    @property
    def is_loading(self) -> bool:
        """Whether a load that was sent from here is under way."""
        return self._router.is_loading

    @property
    def running(self) -> frozenset[str]:
        """Ids of the requests that have not ended."""
        return self._router.running

    @property
    def model_settings(self) -> LoadSettings | None:
        """What the model in use was loaded from, if it was loaded from here."""
        return self._router.model_settings

    @property
    def worker(self) -> Worker | None:
        """The worker once it was started, for the server that shares it."""
        return self._worker if self.started else None

    @property
    def alive(self) -> bool:
        """Whether the worker's thread runs."""
        return self._worker is not None and self._worker.alive

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

    def send(self, command: Command) -> str | None:
        """Give the engine a command; never waits. Starts the worker if need be.

        Returns:
            The tag that the outcome will carry; None for commands that have none.
        """
        self.start()
        assert self._worker is not None
        command = self._router.outgoing(command)
        self._timer.setInterval(BUSY_MS)
        self._worker.send(command)
        return getattr(command, "tag", None)

    def cancel_all(self) -> None:
        """Stop whatever is loading or being answered."""
        for request_id in sorted(self.running):
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
        """Take every event that is waiting and emit those that concern the window, the tokens of a request together."""
        if self._events is None:
            return
        waiting = _Waiting(self._events)
        ended = False
        for event in self._router.incoming(waiting):
            name = type(event).__name__
            getattr(self, _SIGNALS[name]).emit(event)
            ended = ended or name == "WorkerClosed"
        busy = bool(waiting.count or self.running or self.is_loading or self._deadline)
        self._timer.setInterval(BUSY_MS if busy else IDLE_MS)
        if ended or (self._deadline is not None and time.monotonic() > self._deadline):
            assert self._worker is not None
            self._end(clean=self._worker.close(1.0 if ended else 0.0))

    def _end(self, clean: bool) -> None:
        self._timer.stop()
        self._events = None
        self.closed.emit(clean)


class _Waiting:
    """The events that are in the queue, up to the worker's last one, and how many they were."""

    def __init__(self, events: SimpleQueue[Event]) -> None:
        self._events = events
        self.count = 0

    def __iter__(self) -> Iterator[Event]:
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                return
            self.count += 1
            yield event
            if type(event).__name__ == "WorkerClosed":
                return
