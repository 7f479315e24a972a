"""Servers over the demo pack, loaded once a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clock import PATIENCE

from loradesk_engine.commands import AdapterMode, Command, Load
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import AdaptersActivated, Event, LoadFailed
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.serving.http import HttpServer, RequestRecord, ServerOptions
from loradesk_engine.serving.worker import EngineWorker

KEY = "test-key-0123456789"
MODEL = "Loradesk demo"


class SpyWorker(EngineWorker):
    """Notes commands and events in their order, and can be held up between two steps.

    Attributes:
        journal: commands, each once it is queued, and events.
    """

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[Command | Event] = []
        self._go = threading.Event()
        self._go.set()

    def send(self, command: Command) -> None:
        super().send(command)
        self.journal.append(command)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Generates nothing meanwhile, so that what runs does not end, however fast the machine is."""
        self._go.clear()
        try:
            yield
        finally:
            self._go.set()

    def _emit(self, *events: Event) -> None:
        self.journal.extend(events)
        super()._emit(*events)

    def _step(self, engine: EngineCore) -> None:
        self._go.wait(PATIENCE)
        super()._step(engine)


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


def load(mode: AdapterMode) -> Stage:
    worker = SpyWorker()
    events = worker.subscribe()
    worker.start()
    worker.send(Load(demo_settings(mode)))
    event: Event | None = None
    while not isinstance(event, AdaptersActivated):
        event = events.get(timeout=PATIENCE)
        assert not isinstance(event, LoadFailed), event
    worker.unsubscribe(events)
    return Stage(worker)


def stage_of(mode: AdapterMode) -> Iterator[Stage]:
    stage = load(mode)
    yield stage
    assert all(server.stop(PATIENCE) for server in stage.servers)
    assert stage.worker.close(PATIENCE)
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
    with client_of(server) as client:
        yield client


@pytest.fixture
def idle(server: HttpServer, client: httpx.Client) -> Callable[[], int]:
    """How many generations of the server still run."""

    def running() -> int:
        lines = client.get("/metrics").text.splitlines()
        return int(next(line for line in lines if line.startswith("loradesk_generations_running ")).split()[1])

    return running


def client_of(server: HttpServer) -> httpx.Client:
    """A client with the key."""
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE)


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """A greedy chat's body."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 60}
    return {**body, **fields}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Short answers, so that much can be tried, and a worker of its own, so that nothing else fails with it."""
    for stage in stage_of("lora"):
        yield stage.serve(max_tokens=3, max_choices=2, adapter_roots=(str(tmp_path_factory.mktemp("roots")),))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """To collect the long run takes seconds, which `make test` would spend in each of its processes for nothing."""
    is_quick = config.getoption("markexpr") == "not slow"
    return True if is_quick and collection_path.name == "test_fuzz_long.py" else None
