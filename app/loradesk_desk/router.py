"""Decides which events of a shared engine concern one of its users, such as the window.

The engine's worker sends every event to every subscriber: the window, the HTTP server, a Python program. What answers a
request or a command goes to its sender only; what changes the model goes to everybody.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from loradesk_desk.token_frames import join_tokens
from loradesk_engine.commands import (
    Activate,
    AddAdapter,
    ChatRequest,
    Command,
    CompletionRequest,
    Estimate,
    Load,
    LoadSettings,
    RemoveAdapter,
    Unload,
)

if TYPE_CHECKING:  # events.py imports numpy, which slows down the start of a window
    from loradesk_engine.events import Event, TokensGenerated

TAGGED = (Load, Estimate, Unload, Activate, AddAdapter, RemoveAdapter)
# Events are known by name here; see the import above.
REQUEST_EVENTS = {"RequestQueued", "RequestStarted", "TokensGenerated", "RequestFinished", "RequestFailed"}
REQUEST_ENDS = {"RequestFinished", "RequestFailed"}
LOAD_EVENTS = {"LoadProgressed", "LoadFailed", "LoadCancelled"}
LOAD_ENDS = {"ModelLoaded", "LoadFailed", "LoadCancelled"}
ESTIMATES = {"MemoryEstimated", "EstimateFailed"}


class Router:
    """Remembers what was sent, and picks the events that answer it or concern everybody.

    Of several loads, and of several estimates, only the newest counts: the engine drops the older ones.
    """

    def __init__(self) -> None:
        self._running: set[str] = set()  # ids of requests
        self._loads: dict[str, LoadSettings] = {}  # by tag, oldest first
        self._estimate: str | None = None  # tag of the newest
        self._commands: set[str] = set()  # tags of the others without an outcome
        self._model: LoadSettings | None = None

    @property
    def running(self) -> frozenset[str]:
        """Ids of the requests that have not ended."""
        return frozenset(self._running)

    @property
    def is_loading(self) -> bool:
        """Whether a load that was sent from here is under way."""
        return bool(self._loads)

    @property
    def model_settings(self) -> LoadSettings | None:
        """What the model in use was loaded from, if it was loaded from here."""
        return self._model

    def outgoing(self, command: Command) -> Command:
        """The command as it is to be sent, with a new tag where it takes one."""
        if isinstance(command, TAGGED):
            command = replace(command, tag=uuid.uuid4().hex)
        match command:
            case ChatRequest() | CompletionRequest():
                self._running.add(command.request_id)
            case Load(settings, str(tag)):
                self._loads[tag] = settings
            case Estimate(tag=str(tag)):
                self._estimate = tag
            case Activate(tag=str(tag)) | AddAdapter(tag=str(tag)) | RemoveAdapter(tag=str(tag)) | Unload(tag=str(tag)):
                self._commands.add(tag)
        return command

    def incoming(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events for this side, in order; consecutive tokens of a request are joined.

        State follows the iteration: while an event is handled, `running` and `is_loading` already reflect it.
        """
        waiting: dict[str, list[TokensGenerated]] = {}
        for event in events:
            concerns = self._concerns(event)
            if type(event).__name__ == "TokensGenerated":
                if concerns:
                    waiting.setdefault(event.request_id, []).append(event)  # type: ignore[union-attr,arg-type]
                continue
            if concerns:
                yield from _joined(waiting)  # what was generated before this event is shown before it
            self._note(event)
            if concerns:
                yield event
        yield from _joined(waiting)

    def _concerns(self, event: Event) -> bool:
        name, tag = type(event).__name__, getattr(event, "tag", None)
        if name in REQUEST_EVENTS:
            return event.request_id in self._running  # type: ignore[union-attr]
        if name in LOAD_EVENTS:
            return tag is not None and tag == next(reversed(self._loads), None)
        if name in ESTIMATES:
            return tag is not None and tag == self._estimate
        if name == "CommandFailed":
            return tag in self._commands
        return True

    def _note(self, event: Event) -> None:
        name, tag = type(event).__name__, getattr(event, "tag", None)
        if name in REQUEST_ENDS:
            self._running.discard(event.request_id)  # type: ignore[union-attr]
        elif name in LOAD_ENDS:
            settings = self._loads.pop(tag, None) if tag is not None else None
            self._model = settings if name == "ModelLoaded" else self._model
        elif name == "WorkerClosed":
            self._running.clear()
            self._loads.clear()
            self._commands.clear()
        else:
            self._commands.discard(tag)
        if name in ("ModelUnloaded", "WorkerClosed"):
            self._model = None


def _joined(waiting: dict[str, list[TokensGenerated]]) -> list[TokensGenerated]:
    groups = list(waiting.values())
    waiting.clear()
    return [event for group in groups for event in join_tokens(group)]
