"""Servers over the demo pack, loaded once a run."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from loradesk_engine.commands import AdapterMode, Cancel, ChatRequest, Command, CompletionRequest, Load
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import AdaptersActivated, Event, LoadFailed, RequestFinished, TokensGenerated
from loradesk_engine.serving.http import HttpServer, RequestRecord, ServerOptions
from loradesk_engine.serving.worker import EngineWorker

KEY = "test-key-0123456789"
MODEL = "Loradesk demo"


class SpyWorker(EngineWorker):
    """Notes when commands were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[float, Command]] = []

    def send(self, command: Command) -> None:
        self.sent.append((time.monotonic(), command))
        super().send(command)


@dataclass
class Watch:
    """When the requests of a worker got their tokens and their end."""

    events: queue.SimpleQueue[Event]
    tokens: dict[str, list[float]] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        while (event := self.events.get()) is not None:
            if isinstance(event, TokensGenerated):
                self.tokens.setdefault(event.request_id, []).append(time.monotonic())
            elif isinstance(event, RequestFinished):
                self.ends[event.request_id] = time.monotonic()


@dataclass
class Stage:
    """A loaded worker, and the means to put servers on it."""

    worker: SpyWorker
    servers: list[HttpServer] = field(default_factory=list)
    records: list[RequestRecord] = field(default_factory=list)

    def serve(self, **changes: Any) -> HttpServer:
        """Another server on the same worker."""
        options = replace(ServerOptions(port=0, key=KEY, max_tokens=1000), **changes)
        server = HttpServer(self.worker, options, on_record=self.records.append)
        server.start()
        self.servers.append(server)
        return server

    def requests(self) -> list[tuple[float, ChatRequest | CompletionRequest]]:
        return [(when, c) for when, c in self.worker.sent if isinstance(c, ChatRequest | CompletionRequest)]

    def cancels(self) -> dict[str, float]:
        return {c.request_id: when for when, c in self.worker.sent if isinstance(c, Cancel)}


def load(mode: AdapterMode) -> Stage:
    worker = SpyWorker()
    events = worker.subscribe()
    worker.start()
    worker.send(Load(demo_settings(mode)))
    event: Event | None = None
    while not isinstance(event, AdaptersActivated):
        event = events.get(timeout=60)
        assert not isinstance(event, LoadFailed), event
    worker.unsubscribe(events)
    return Stage(worker)


def stage_of(mode: AdapterMode) -> Iterator[Stage]:
    stage = load(mode)
    yield stage
    assert all(server.stop() for server in stage.servers)
    assert stage.worker.close()
    assert not any(server.running for server in stage.servers)


@pytest.fixture(scope="session")
def lora() -> Iterator[Stage]:
    yield from stage_of("lora")


@pytest.fixture(scope="session")
def xlora() -> Iterator[Stage]:
    yield from stage_of("xlora")


@pytest.fixture(scope="session")
def server(lora: Stage) -> HttpServer:
    """The ordinary server in LoRA mode."""
    return lora.serve()


@pytest.fixture
def client(server: HttpServer) -> Iterator[httpx.Client]:
    """A client with the key."""
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


@pytest.fixture
def idle(server: HttpServer, client: httpx.Client) -> Callable[[], int]:
    """How many generations of the server still run."""

    def running() -> int:
        lines = client.get("/metrics").text.splitlines()
        return int(next(line for line in lines if line.startswith("loradesk_generations_running ")).split()[1])

    return running


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """A greedy chat's body."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 60}
    return {**body, **fields}
