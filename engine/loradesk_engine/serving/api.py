"""The Python API: `Engine.load(...)`, `engine.chat(...)`, `engine.activate_adapters(...)`. It sits on the worker
thread.
"""

from __future__ import annotations

import queue
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from loradesk_engine import errors
from loradesk_engine.commands import (
    Activate,
    AdapterMode,
    AdapterSource,
    AddAdapter,
    Cancel,
    CancelLoad,
    ChatRequest,
    Command,
    CompletionRequest,
    Load,
    LoadSettings,
    Message,
    RemoveAdapter,
    Sampling,
)
from loradesk_engine.demo import demo_settings
from loradesk_engine.errors import Cancelled, LoradeskError
from loradesk_engine.events import (
    AdapterInfo,
    AdaptersActivated,
    CommandFailed,
    Event,
    LoadCancelled,
    LoadFailed,
    LoadProgressed,
    ModelInfo,
    ModelLoaded,
    Problem,
    RequestFailed,
    RequestFinished,
    RequestStarted,
    TokenLogprob,
    TokensGenerated,
    WorkerClosed,
)
from loradesk_engine.serving.worker import EngineWorker

Adapters = Mapping[str, float] | Iterable[str]
"""Adapters by name, each with weight 1, or name -> weight."""

Messages = str | Sequence[Message | Mapping[str, str]]
"""A user's message, or a conversation as `Message`s or as `{"role": ..., "content": ...}`."""


class Answer:
    """An answer that is being generated.

    Iterate over it for pieces of text as they come, or take `text`, which waits for the end. After the end `finished`
    tells counts and speed.
    """

    def __init__(self, worker: EngineWorker, events: queue.SimpleQueue[Event], request_id: str) -> None:
        self._worker = worker
        self._events = events
        self.request_id = request_id
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.started: RequestStarted | None = None
        self.finished: RequestFinished | None = None
        self._pieces: list[str] = []
        self._scalings: list[npt.NDArray[np.float32]] = []
        self._scalings_start: int | None = None
        self.scaling_tokens: list[str] = []
        self._error: LoradeskError | None = None
        weakref.finalize(self, worker.unsubscribe, events).atexit = False  # an answer that nobody reads to its end

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come.

        Raises:
            LoradeskError: the request could not be answered.
        """
        while self.finished is None:
            if self._error is not None:
                raise self._error
            piece = self._take(self._events.get())
            if piece:
                yield piece

    def _take(self, event: Event) -> str:
        if isinstance(event, WorkerClosed):
            self._end(LoradeskError("The engine was closed."))
        elif isinstance(event, RequestStarted):
            self.started = event
        elif isinstance(event, TokensGenerated):
            self._pieces.append(event.text)
            self.token_ids += event.token_ids
            self.logprobs += event.logprobs
            if event.scalings is not None:
                if self._scalings_start is None:
                    self._scalings_start = event.scalings_start
                self._scalings.append(event.scalings)
                self.scaling_tokens += event.scaling_token_texts
            return event.text
        elif isinstance(event, RequestFinished):
            self.finished = event
            self._worker.unsubscribe(self._events)
        elif isinstance(event, RequestFailed):
            self._end(_error_of(event.problem))
        return ""

    def _end(self, error: LoradeskError) -> None:
        self._error = error
        self._worker.unsubscribe(self._events)
        raise error

    @property
    def text(self) -> str:
        """The whole answer; waits for its end."""
        for _ in self:
            pass
        return "".join(self._pieces)

    @property
    def scalings(self) -> npt.NDArray[np.float32] | None:
        """X-LoRA scalings so far, float32 [tokens, layers, adapters] of prompt and answer; None without X-LoRA.

        Tokens taken over from an earlier turn are not among them: the first row is that of token `scalings_start`.
        """
        return np.concatenate(self._scalings) if self._scalings else None

    @property
    def scalings_start(self) -> int:
        """Index, in prompt and answer, of the token that the first row of `scalings` belongs to."""
        return self._scalings_start or 0

    def cancel(self) -> None:
        """Stop it; iteration ends within one token, and `finished.finish_reason` is `cancelled`."""
        self._worker.send(Cancel(self.request_id))


class Engine:
    """A loaded model. Use `Engine.load` or `Engine.demo`, best in a `with` statement. Thread-safe."""

    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker
        self._last: Answer | None = None

    @classmethod
    def load(
        cls,
        base: str = "",
        *,
        adapters: Mapping[str, str] | str | None = None,
        xlora: str | None = None,
        ordering: str | None = None,
        progress: Callable[[str, float | None], None] | None = None,
        **options: Any,
    ) -> Engine:
        """Load a base model, with LoRA adapters or an X-LoRA checkpoint.

        Args:
            base: local folder or hub id; empty takes the one that the ordering file names.
            adapters: LoRA: name -> folder or hub id. Or one folder or hub id in which the adapters of the ordering
                file's `order` are found by their names.
            xlora: X-LoRA: folder or hub id of the checkpoint.
            ordering: path of the ordering file.
            progress: called with a sentence and a fraction (None: unknown); what it raises cancels the load.
            options: further fields of `LoadSettings`: `device`, `dtype`, `quantize`, `context`,
                `tgt_non_granular_index`, `xlora_relu`, `revision`, `token`.

        Raises:
            LoradeskError: names file, field and remedy.
        """
        mode: AdapterMode = "xlora" if xlora else "lora" if adapters or ordering else "none"
        repository = adapters if isinstance(adapters, str) else None
        named = {} if adapters is None or isinstance(adapters, str) else adapters
        sources = tuple(AdapterSource(name, source) for name, source in named.items())
        settings = LoadSettings(
            base=base,
            mode=mode,
            adapters=sources,
            repository=repository,
            xlora=xlora,
            ordering=ordering,
            **options,
        )
        return cls.from_settings(settings, progress)

    @classmethod
    def demo(cls, mode: AdapterMode = "xlora") -> Engine:
        """The demo pack that ships with Loradesk."""
        return cls.from_settings(demo_settings(mode))

    @classmethod
    def from_settings(
        cls, settings: LoadSettings, progress: Callable[[str, float | None], None] | None = None
    ) -> Engine:
        """Load what `settings` describe; see `load`."""
        worker = EngineWorker()
        events = worker.subscribe()
        worker.start()
        tag = uuid.uuid4().hex
        worker.send(Load(settings, tag))
        try:
            while True:
                event = events.get()
                if isinstance(event, WorkerClosed):
                    raise LoradeskError("The engine ended while it was loading.")
                if getattr(event, "tag", None) != tag:
                    continue
                if isinstance(event, LoadProgressed) and progress is not None:
                    progress(event.stage, event.fraction)
                elif isinstance(event, ModelLoaded):  # what is active has been recorded with it
                    worker.unsubscribe(events)
                    return cls(worker)
                elif isinstance(event, LoadFailed | CommandFailed):
                    raise _error_of(event.problem)
                elif isinstance(event, LoadCancelled):
                    raise Cancelled("The load was cancelled.")
        except BaseException:
            worker.send(CancelLoad())
            worker.close()
            raise

    @property
    def worker(self) -> EngineWorker:
        """The thread behind it, for an `HttpServer` that answers with the same model."""
        return self._worker

    # --- requests -----------------------------------------------------------------------------------------------------

    def chat(self, messages: Messages, *, adapters: Adapters | None = None, **sampling: Any) -> Answer:
        """Answer a conversation.

        Args:
            messages: a user's message or the conversation so far.
            adapters: for this request alone; otherwise those that are active when it starts.
            sampling: fields of `Sampling`: `temperature`, `top_p`, `max_tokens`, `seed`, `stop`, ...

        Raises:
            RequestError: a sampling field is out of range. What else is wrong with the request is raised by the answer.
        """
        conversation = [Message("user", messages)] if isinstance(messages, str) else list(map(_message, messages))
        return self._ask(
            lambda request_id: ChatRequest(request_id, tuple(conversation), Sampling(**sampling), _weights(adapters))
        )

    def complete(self, prompt: str | Sequence[int], *, adapters: Adapters | None = None, **sampling: Any) -> Answer:
        """Continue a text or token ids without a chat template; arguments as in `chat`."""
        text = prompt if isinstance(prompt, str) else tuple(prompt)
        return self._ask(
            lambda request_id: CompletionRequest(request_id, text, Sampling(**sampling), _weights(adapters))
        )

    def _ask(self, make: Callable[[str], ChatRequest | CompletionRequest]) -> Answer:
        request = make(uuid.uuid4().hex)
        answer = Answer(self._worker, self._worker.subscribe(request.request_id), request.request_id)
        self._worker.send(request)
        self._last = answer
        return answer

    # --- adapters -----------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return next(event.info for event in self._worker.standing if isinstance(event, ModelLoaded))

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The loaded adapters."""
        return self.info.adapters

    @property
    def active_adapters(self) -> dict[str, float]:
        """Name -> weight of the adapters that the next request uses."""
        return next(dict(event.weights) for event in self._worker.standing if isinstance(event, AdaptersActivated))

    def activate_adapters(self, adapters: Adapters) -> None:
        """Set the active adapters: names, or name -> weight; those not named become inactive. It takes effect at the
        next request; running ones keep theirs. In X-LoRA mode the weights multiply the classifier's scalings.

        Raises:
            AdapterError: a name is not loaded or a weight is out of range; nothing changes then.
        """
        weights = _weights(adapters) or {}
        self._command(lambda tag: Activate(weights, tag))

    def add_adapter(self, name: str, source: str) -> None:
        """Load one more LoRA adapter; it starts inactive.

        Raises:
            AdapterError, FileFormatError, HubError: it cannot be used; nothing changes then.
            BusyError: requests are running.
        """
        self._command(lambda tag: AddAdapter(AdapterSource(name, source), tag))

    def remove_adapter(self, name: str) -> None:
        """Let go of a LoRA adapter.

        Raises:
            AdapterError: there is none.
            BusyError: requests are running.
        """
        self._command(lambda tag: RemoveAdapter(name, tag))

    def _command(self, make: Callable[[str], Command]) -> None:
        """Send a command and wait until it has been carried out; its tag tells its event from those of others."""
        tag = uuid.uuid4().hex
        events = self._worker.subscribe()
        try:
            self._worker.send(make(tag))
            while True:
                event = events.get()
                if isinstance(event, WorkerClosed):
                    raise LoradeskError("The engine is closed.")
                if getattr(event, "tag", None) == tag:
                    if isinstance(event, CommandFailed):
                        raise _error_of(event.problem)
                    return
        finally:
            self._worker.unsubscribe(events)

    @property
    def scalings(self) -> npt.NDArray[np.float32] | None:
        """X-LoRA scalings of the latest answer as far as it was read, float32 [tokens, layers, adapters]."""
        return self._last.scalings if self._last is not None else None

    # --- end ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop what runs and let go of the model."""
        self._worker.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _weights(adapters: Adapters | None) -> dict[str, float] | None:
    if adapters is None or isinstance(adapters, Mapping):
        return None if adapters is None else dict(adapters)
    return dict.fromkeys([adapters] if isinstance(adapters, str) else adapters, 1.0)


def _message(message: Message | Mapping[str, str]) -> Message:
    return message if isinstance(message, Message) else Message(message["role"], message["content"])


def _error_of(problem: Problem) -> LoradeskError:
    """The error that an event tells of, as an exception of its class."""
    kind = getattr(errors, problem.kind, LoradeskError)
    error: LoradeskError = kind(problem.problem, file=problem.file, field=problem.field, remedy=problem.remedy)
    return error
