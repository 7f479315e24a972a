"""The worker thread that owns the engine: commands in by a queue, events out by queues.

Importing this module does not import torch: the thread does, so that a window is on screen before. A model is loaded by
a second thread while requests go on with the one that is there; only the worker thread touches an engine that answers
requests.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loradesk_engine.commands import (
    Activate,
    AddAdapter,
    Cancel,
    CancelLoad,
    ChatRequest,
    Close,
    Command,
    CompletionRequest,
    Estimate,
    Load,
    RemoveAdapter,
    Unload,
)
from loradesk_engine.errors import Cancelled, LoradeskError, MemoryShortageError, NoModelError
from loradesk_engine.events import (
    AdaptersActivated,
    AdaptersChanged,
    CommandFailed,
    EstimateFailed,
    Event,
    LoadCancelled,
    LoadFailed,
    LoadProgressed,
    ModelLoaded,
    ModelUnloaded,
    Problem,
    RequestFailed,
    RequestQueued,
    WorkerClosed,
    WorkerReady,
)
from loradesk_engine.log.defects import log_defect
from loradesk_engine.serving.estimator import Estimator
from loradesk_engine.serving.event_log import note_command, note_event

if TYPE_CHECKING:
    from loradesk_engine.generation.engine import EngineCore

logger = logging.getLogger(__name__)

MEMORY_SECONDS = 1.0  # between two measurements while requests run
LOAD_END_SECONDS = 3.0  # that closing waits for a load to stop
PROGRESS_SECONDS = 0.05  # between two progress events of the same stage


@dataclass
class _LoadDone:
    """What the loading thread puts into the command queue when it is done."""

    job: _LoadJob
    engine: EngineCore | None
    error: BaseException | None

    @property
    def tag(self) -> str | None:
        return self.job.command.tag


@dataclass(eq=False)
class _LoadJob:
    """A load under way."""

    command: Load
    cancelled: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class EngineWorker:
    """Start it, subscribe, send commands. All methods may be called from any thread and none waits, but `close`."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command | _LoadDone] = queue.SimpleQueue()
        self._subscribers: dict[queue.SimpleQueue[Event], str | None] = {}  # queue -> the request it is for
        self._standing: dict[type[Event], Event] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="loradesk-engine", daemon=True)
        self._engine: EngineCore | None = None
        self._job: _LoadJob | None = None
        self._next_load: Load | None = None
        self._last_memory = 0.0
        self._estimator = Estimator(self._emit)

    def start(self) -> None:
        """Start the thread; it imports torch and then sends `WorkerReady`."""
        self._thread.start()

    def subscribe(self, request_id: str | None = None) -> queue.SimpleQueue[Event]:
        """A queue that receives every event from now on, after those of `standing`; or only what concerns one request:
        its own events and `WorkerClosed`.
        """
        subscriber: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with self._lock:
            for event in self._standing.values():
                if _concerns(event, request_id):
                    subscriber.put(event)
            self._subscribers[subscriber] = request_id
        return subscriber

    @property
    def standing(self) -> tuple[Event, ...]:
        """How things stand, as the events that told it: `WorkerReady`, `ModelLoaded` with the adapters as they are now,
        `AdaptersActivated`, `WorkerClosed`, each once it has come about. After the end they tell of the last model.
        """
        with self._lock:
            return tuple(self._standing.values())

    def unsubscribe(self, subscriber: queue.SimpleQueue[Event]) -> None:
        """Send no more events to a queue."""
        with self._lock:
            self._subscribers.pop(subscriber, None)

    def send(self, command: Command) -> None:
        """Queue a command; what comes of it is told by events."""
        note_command(command)
        self._commands.put(command)

    def close(self, timeout: float = 10.0) -> bool:
        """Stop loading and generating, and end the thread. Returns whether it ended in time (seconds)."""
        self.send(Close())
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._import_engine()
            while True:
                command = self._next_command()
                if isinstance(command, Close):
                    break
                if command is not None:
                    self._carry_out(command)
                elif self._engine is not None and self._engine.busy:
                    self._step(self._engine)
        finally:
            self._end_loading()
            self._estimator.end()
            if self._engine is not None:
                self._emit(*self._engine.end_all(NoModelError("The engine was closed.")))
                self._engine = None
            self._emit(WorkerClosed())

    def _step(self, engine: EngineCore) -> None:
        try:
            self._emit(*engine.step())
        except Exception as problem:  # noqa: BLE001 - a fault of ours: the requests are lost, the thread and the model must not be
            log_defect(logger, "A step of the engine", problem)
            self._emit(*engine.end_all(problem))
        self._measure_memory(idle=not engine.busy)

    def _end_loading(self) -> None:
        """Let a load under way see that it is cancelled; one that hangs in a download is a daemon and dies with the
        process.
        """
        if self._job is not None:
            self._job.cancelled.set()
            if self._job.thread is not None:
                self._job.thread.join(LOAD_END_SECONDS)

    def _import_engine(self) -> None:
        started = time.perf_counter()
        import torch

        from loradesk_engine.generation import engine as _engine  # noqa: F401 - the first load must not wait for it
        from loradesk_engine.model.device import available_devices
        from loradesk_engine.serving.machine import machine_facts

        self._emit(WorkerReady(torch.__version__, available_devices(), time.perf_counter() - started))
        try:
            logger.info("Machine: %s", "; ".join(f"{name} {fact}" for name, fact in machine_facts().items()))
        except Exception as problem:  # noqa: BLE001 - a driver that cannot be asked must not end the engine
            log_defect(logger, "Describing the machine", problem)

    def _next_command(self) -> Command | _LoadDone | None:
        """The next command; waits for one only when there is nothing else to do."""
        busy = self._engine is not None and self._engine.busy
        try:
            return self._commands.get(block=not busy)
        except queue.Empty:
            return None

    def _emit(self, *events: Event) -> None:
        for event in events:
            note_event(event)
        with self._lock:
            for event in events:
                self._keep(event)
                for subscriber, request_id in self._subscribers.items():
                    if _concerns(event, request_id):
                        subscriber.put(event)

    def _keep(self, event: Event) -> None:
        """Keep what later subscribers must know."""
        match event:
            case WorkerReady() | WorkerClosed():
                self._standing[type(event)] = event
            case ModelLoaded() | AdaptersActivated():
                self._standing[type(event)] = replace(event, tag=None)
            case AdaptersChanged(adapters):
                loaded = self._standing[ModelLoaded]
                assert isinstance(loaded, ModelLoaded)
                self._standing[ModelLoaded] = ModelLoaded(replace(loaded.info, adapters=adapters))
                activated = self._standing[AdaptersActivated]
                assert isinstance(activated, AdaptersActivated)
                names = {adapter.name for adapter in adapters}
                left = {name: weight for name, weight in activated.weights.items() if name in names}
                self._standing[AdaptersActivated] = AdaptersActivated(left)
            case ModelUnloaded():
                self._standing.pop(ModelLoaded, None)
                self._standing.pop(AdaptersActivated, None)

    def _measure_memory(self, *, idle: bool) -> None:
        now = time.monotonic()
        if self._engine is not None and (idle or now - self._last_memory > MEMORY_SECONDS):
            self._last_memory = now
            self._emit(self._engine.memory())

    def _carry_out(self, command: Command | _LoadDone) -> None:
        try:
            match command:
                case Load():
                    self._start_load(command)
                case Estimate():
                    self._estimator.ask(command, self._engine)
                case CancelLoad():
                    self._cancel_load()
                case _LoadDone():
                    self._end_load(command)
                case Unload(tag):
                    self._unload(tag)
                case ChatRequest() | CompletionRequest():
                    self._submit(command)
                case Cancel(request_id):
                    if self._engine is not None:
                        self._engine.cancel(request_id)
                case Activate(weights):
                    self._emit(replace(self._need_engine().activate(weights), tag=command.tag))
                case AddAdapter(adapter):
                    self._emit(replace(self._need_engine().add_adapter(adapter), tag=command.tag))
                case RemoveAdapter(name):
                    self._emit(replace(self._need_engine().remove_adapter(name), tag=command.tag))
        except Exception as problem:  # noqa: BLE001 - whatever a command does wrong, the thread and the model stay
            log_defect(logger, f"The command {type(command).__name__.lstrip('_')}", problem)
            self._emit(self._failure(command, problem))

    def _failure(self, command: Command | _LoadDone, problem: Exception) -> Event:
        """The outcome of a command that raised. Each kind of command has one kind of failure."""
        match command:
            case Load(tag=tag) | _LoadDone(tag=tag):
                return LoadFailed(_load_problem(problem), self._engine is not None, tag)
            case Estimate(settings, tag=tag):
                return EstimateFailed(settings, Problem.of(problem), tag)
            case _:
                return CommandFailed(Problem.of(problem), getattr(command, "tag", None))

    def _need_engine(self) -> EngineCore:
        if self._engine is None:
            raise NoModelError("No model is loaded.", remedy="Load one first.")
        return self._engine

    def _submit(self, request: ChatRequest | CompletionRequest) -> None:
        try:
            self._need_engine().submit(request)
        except Exception as problem:  # noqa: BLE001 - log_defect logs it
            log_defect(logger, "Taking a request", problem)
            self._emit(RequestFailed(request.request_id, Problem.of(problem)))
        else:
            self._emit(RequestQueued(request.request_id))

    # --- loading ------------------------------------------------------------------------------------------------------

    def _start_load(self, command: Load) -> None:
        if self._job is not None:  # the newer wish counts; it starts when the older one has let go
            self._job.cancelled.set()
            self._drop_next_load()
            self._next_load = command
            return
        self._job = _LoadJob(command)
        previous = self._engine
        self._job.thread = threading.Thread(
            target=self._load, args=(self._job, previous), name="loradesk-load", daemon=True
        )
        self._job.thread.start()

    def _load(self, job: _LoadJob, previous: EngineCore | None) -> None:
        """Runs in the loading thread."""
        from loradesk_engine.generation.engine import EngineCore

        last_stage, last_time = "", 0.0

        def progress(stage: str, fraction: float | None) -> None:
            nonlocal last_stage, last_time
            if job.cancelled.is_set():
                raise Cancelled("The load was cancelled.")
            now = time.monotonic()
            if stage != last_stage or now - last_time > PROGRESS_SECONDS:
                last_stage, last_time = stage, now
                self._emit(LoadProgressed(stage, fraction, job.command.tag))

        try:
            progress("Starting", 0.0)
            engine = EngineCore.load(job.command.settings, progress, previous=previous)
            self._commands.put(_LoadDone(job, engine, None))
        except BaseException as problem:  # noqa: BLE001 - log_defect logs it
            log_defect(logger, "A load", problem)
            self._commands.put(_LoadDone(job, None, problem))

    def _cancel_load(self) -> None:
        self._drop_next_load()
        if self._job is not None:
            self._job.cancelled.set()

    def _drop_next_load(self) -> None:
        """Report the end of a load that never began: every load has one outcome."""
        dropped, self._next_load = self._next_load, None
        if dropped is not None:
            self._emit(LoadCancelled(self._engine is not None, dropped.tag))

    def _end_load(self, done: _LoadDone) -> None:
        self._job = None
        kept = self._engine is not None
        if done.job.cancelled.is_set() or isinstance(done.error, Cancelled):
            self._emit(LoadCancelled(kept, done.tag))
        elif done.engine is None:
            self._emit(LoadFailed(_load_problem(done.error), kept, done.tag))
        else:
            if self._engine is not None:
                self._emit(*self._engine.end_all(NoModelError("Another model was loaded.")))
            self._engine = done.engine
            self._engine.enter_thread()
            self._emit(
                ModelLoaded(self._engine.info, done.tag),
                AdaptersActivated(dict(self._engine.active)),
                self._engine.memory(),
            )
        if self._next_load is not None:
            command, self._next_load = self._next_load, None
            self._start_load(command)

    def _unload(self, tag: str | None) -> None:
        if self._engine is not None:
            self._emit(*self._engine.end_all(NoModelError("The model was unloaded.")))
            self._engine = None
        self._emit(ModelUnloaded(tag))


def _concerns(event: Event, request_id: str | None) -> bool:
    if request_id is None or isinstance(event, WorkerClosed):
        return True
    return getattr(event, "request_id", None) == request_id


def _load_problem(error: BaseException | None) -> Problem:
    if isinstance(error, MemoryError):
        return Problem.of(MemoryShortageError("There is not enough memory.", remedy="Use a smaller model or type."))
    if isinstance(error, LoradeskError):
        return Problem.of(error)
    problem = Problem.of(error or RuntimeError("unknown"))
    return Problem(problem.kind, f"The load failed: {problem.problem}")
