"""A window on a scripted engine: real widgets and real events, no torch and no display."""

from __future__ import annotations

import os

os.environ["QT_QPA_PLATFORM"] = "offscreen"

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from PySide6.QtWidgets import QApplication
from support.clock import PATIENCE
from support.pool_trace import traced_pool  # noqa: F401 - a fixture
from support.qt import delete_widgets
from support.threads import none_left

# Windows import the plots in a thread of their own. Done once here: Qt classes that a thread makes while a test makes
# others have crashed the interpreter on a busy machine.
import loradesk_app.scalings.plots  # noqa: F401
from loradesk_app.engine_client import EngineClient
from loradesk_app.main_window import MainWindow
from loradesk_app.settings import Settings
from loradesk_app.theme import Theme
from loradesk_engine.activation import active_weights
from loradesk_engine.commands import (
    Activate,
    AddAdapter,
    ChatRequest,
    Close,
    Command,
    Load,
    LoadSettings,
    RemoveAdapter,
    Unload,
)
from loradesk_engine.demo import demo_settings
from loradesk_engine.errors import LoradeskError
from loradesk_engine.events import (
    AdapterInfo,
    AdaptersActivated,
    AdaptersChanged,
    CommandFailed,
    EstimateFailed,
    Event,
    LoadCancelled,
    LoadFailed,
    LoadProgressed,
    MemoryEstimated,
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
    WorkerReady,
)
from loradesk_engine.log.trail import Trail

ADAPTERS = ("arithmetic", "capitals", "json", "bard")
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MODULES += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LAYER_PATHS = tuple(f"model.layers.{layer}.{module}" for layer in range(6) for module in MODULES)
MIB = 2**20
OUTCOMES = (
    *(
        LoadProgressed,
        ModelLoaded,
        ModelUnloaded,
        LoadFailed,
        LoadCancelled,
        AdaptersActivated,
        AdaptersChanged,
        CommandFailed,
    ),
    *(MemoryEstimated, EstimateFailed),
)
NO_MODEL = CommandFailed(Problem("NoModelError", "No model is loaded.", remedy="Load one first."))

PROMPT = ("<|user|>", "What", " is", " 1", "2", " +", " 3", "0", ",", " and", " what", " is", " the", " capital", " of")
PROMPT += (" France", "?", "<|end|>", "<|model|>")
ANSWER = ("1", "2", " +", " 3", "0", " is", " 4", "2", ",", " and", " the", " capital", " of", " France", " is")
ANSWER += (" Paris", ".")


def adapter_info(name: str) -> AdapterInfo:
    targets = tuple(module.rpartition(".")[2] for module in MODULES)
    return AdapterInfo(name, f"/models/demo/adapters/{name}", 8, 42, targets, "applied to 42 of 43 modules", 2 * MIB)


def model_info(mode: str = "xlora", **changes: Any) -> ModelInfo:
    values: dict[str, Any] = {
        "name": "loradesk-demo",
        "base": demo_settings("none").base,
        "architecture": "LlamaForCausalLM",
        "mode": mode,
        "adapters": tuple(adapter_info(name) for name in ADAPTERS) if mode != "none" else (),
        "layer_paths": LAYER_PATHS if mode != "none" else (),
        "parameters": 4_200_000,
        "weight_bytes": 17 * MIB,
        "device": "cpu",
        "dtype": "float32",
        "context": 1024,
        "ordering": None,
        "load_seconds": 0.4,
    }
    return ModelInfo(**(values | changes))


def scalings_for(texts: tuple[str, ...], seed: int = 0) -> np.ndarray:
    """[tokens, layers, adapters] that look like a trained classifier's: sums for digits, capitals for countries."""
    random = np.random.default_rng(seed)
    logits = np.zeros((len(texts), len(LAYER_PATHS), len(ADAPTERS)), np.float32)
    focus = np.array([0.3, 0.3, 0.0, 0.0])
    for token, text in enumerate(texts):
        wanted = np.array([0.2, 0.2, 0.1, 0.1])
        if any(sign.isdigit() or sign in "+=" for sign in text):
            wanted = np.array([3.6, 0.2, 0.0, -0.4])
        elif text.strip() in ("capital", "of", "France", "Paris", "the", "Japan", "Tokyo"):
            wanted = np.array([0.0, 3.4, 0.1, 0.2])
        elif text.strip() in ("{", "}", '"', ":", "name", "age"):
            wanted = np.array([0.2, 0.0, 3.5, 0.0])
        focus = 0.35 * focus + 0.65 * wanted
        depth = np.linspace(0.4, 1.3, len(LAYER_PATHS))[:, None]
        logits[token] = focus * depth + random.normal(0, 0.35, (len(LAYER_PATHS), len(ADAPTERS)))
    weights = np.exp(logits)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def answer_events(
    request_id: str,
    answer: tuple[str, ...] = ANSWER,
    prompt: tuple[str, ...] = PROMPT,
    mode: str = "xlora",
    weights: dict[str, float] | None = None,
    reason: str = "stop",
) -> list[Event]:
    """What the engine tells about one answer, a token at a time."""
    weights = dict.fromkeys(ADAPTERS, 1.0) if weights is None else weights
    events: list[Event] = [RequestQueued(request_id), RequestStarted(request_id, len(prompt), 0, weights)]
    texts = prompt + answer
    scalings = scalings_for(texts)
    for number, text in enumerate(answer):
        start = 0 if number == 0 else len(prompt) + number - 1
        end = len(prompt) + number
        events.append(
            TokensGenerated(
                request_id,
                text,
                (100 + number,),
                (text,),
                scalings[start:end] if mode == "xlora" else None,
                texts[start:end] if mode == "xlora" else (),
                start if mode == "xlora" else 0,
            )
        )
    whole = "".join(answer)
    events.append(RequestFinished(request_id, whole, reason, len(prompt), len(answer), 0, 0.031, 182.4))
    return events


@dataclass
class ScriptedWorker:
    """Has the four methods of the engine's worker, and sends what a test put into its script.

    `replies` maps a command's type to a function that gives the events which follow it. What a test does not script is
    as the real worker has it: outcomes repeat the command's tag, weights are normalised and names checked by the
    engine's own function, a request is queued before it starts, and without a model commands fail.
    """

    replies: dict[type, Callable[[Any], list[Event]]] = field(default_factory=dict)
    sent: list[Command] = field(default_factory=list)
    closed: bool = False
    ends: bool = True

    def __post_init__(self) -> None:
        self._queues: list[SimpleQueue[Event]] = []
        self.info: ModelInfo | None = None
        self.active: dict[str, float] = {}
        defaults: dict[type, Callable[[Any], list[Event]]] = {
            Load: self._load,
            Unload: self._unload,
            Activate: self._activate,
            AddAdapter: self._add,
            RemoveAdapter: self._remove,
            Close: lambda _command: [WorkerClosed()] if self.ends else [],
            ChatRequest: self._answer,
        }
        self.replies = defaults | self.replies

    def start(self) -> None:
        self.tell(WorkerReady("2.13.0", ("cpu",), 0.8))

    def send(self, command: Command) -> None:
        self.sent.append(command)
        self.answer(command, *self.replies.get(type(command), lambda _command: [])(command))

    def answer(self, command: Command, *events: Event) -> None:
        """Send events as the outcome of a command: those that take its tag carry it."""
        tag = getattr(command, "tag", None)
        for event in events:
            initial = isinstance(command, Load) and isinstance(event, AdaptersActivated)  # nobody's `Activate`
            self.tell(replace(event, tag=tag) if type(event) in OUTCOMES and not initial else event)

    def answer_newest(self, kind: type, *events: Event) -> None:
        """Send events as the outcome of the newest command of a type."""
        self.answer(self.commands(kind)[-1], *events)

    def subscribe(self) -> SimpleQueue[Event]:
        queue: SimpleQueue[Event] = SimpleQueue()
        self._queues.append(queue)
        return queue

    @property
    def alive(self) -> bool:
        return not self.closed

    def close(self, timeout: float) -> bool:
        self.closed = True
        return self.ends

    def tell(self, *events: Event) -> None:
        for queue in self._queues:
            for event in events:
                queue.put(event)

    def commands(self, kind: type) -> list[Any]:
        """Commands of one type, oldest first."""
        return [command for command in self.sent if isinstance(command, kind)]

    def _load(self, command: Load) -> list[Event]:
        mode = command.settings.mode
        self.info = model_info(mode)
        events: list[Event] = [LoadProgressed("Reading the weights", 0.5), ModelLoaded(self.info)]
        names = {"none": (), "lora": ("arithmetic",), "xlora": ADAPTERS}[mode]
        self.active = dict.fromkeys(names, 1.0)
        events.append(AdaptersActivated(dict(self.active)))
        return [*events, MemoryMeasured(412 * MIB, 0, 6 * MIB)]

    def _unload(self, _command: Unload) -> list[Event]:
        self.info, self.active = None, {}
        return [ModelUnloaded()]

    def _activate(self, command: Activate) -> list[Event]:
        if self.info is None:
            return [NO_MODEL]
        try:
            self.active = active_weights(command.weights, [adapter.name for adapter in self.info.adapters])
        except LoradeskError as problem:
            return [CommandFailed(Problem.of(problem))]
        return [AdaptersActivated(dict(self.active))]

    def _add(self, command: AddAdapter) -> list[Event]:
        if self.info is None:
            return [NO_MODEL]
        if any(adapter.name == command.adapter.name for adapter in self.info.adapters):
            return [CommandFailed(Problem("AdapterError", "This name is taken.", field=command.adapter.name))]
        return self._change((*self.info.adapters, adapter_info(command.adapter.name)))

    def _remove(self, command: RemoveAdapter) -> list[Event]:
        if self.info is None:
            return [NO_MODEL]
        left = tuple(adapter for adapter in self.info.adapters if adapter.name != command.name)
        if left == self.info.adapters:
            return [CommandFailed(Problem("AdapterError", "There is none of this name.", field=command.name))]
        self.active.pop(command.name, None)
        return self._change(left)

    def _change(self, adapters: tuple[AdapterInfo, ...]) -> list[Event]:
        assert self.info is not None
        self.info = replace(self.info, adapters=adapters)
        return [AdaptersChanged(adapters)]

    def _answer(self, command: ChatRequest) -> list[Event]:
        if self.info is None:
            return [RequestFailed(command.request_id, NO_MODEL.problem)]
        weights = dict(self.active) if command.adapters is None else dict(command.adapters)
        return answer_events(command.request_id, mode=self.info.mode, weights=weights)


class Script:
    """What tests need of this file, as one fixture."""

    ADAPTERS, ANSWER, LAYER_PATHS, PROMPT = ADAPTERS, ANSWER, LAYER_PATHS, PROMPT
    Worker = ScriptedWorker
    adapter_info = staticmethod(adapter_info)
    answer_events = staticmethod(answer_events)
    model_info = staticmethod(model_info)
    scalings_for = staticmethod(scalings_for)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the platform without a display says it cannot do is no warning about our code."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.qt_log_ignore("This plugin does not support"))


@pytest.fixture
def script() -> type[Script]:
    return Script


@pytest.fixture
def worker() -> ScriptedWorker:
    return ScriptedWorker()


@pytest.fixture
def settings(tmp_path: Path, qapp: QApplication) -> Settings:
    return Settings(tmp_path / "settings.ini")


@pytest.fixture
def theme(qapp: QApplication) -> Iterator[Theme]:
    theme = Theme(qapp, "light")
    yield theme
    theme.set_font_scale(100)  # the next theme takes the application's font for the normal one
    qapp.styleHints().colorSchemeChanged.disconnect(theme._follow_system)
    theme.deleteLater()


@pytest.fixture
def make_window(
    qtbot: Any, settings: Settings, theme: Theme, worker: ScriptedWorker, tmp_path: Path
) -> Iterator[Callable[..., MainWindow]]:
    """Makes a shown and started window; all are closed, and their engine ended, after the test."""
    windows: list[MainWindow] = []

    def make(
        first: LoadSettings | None = None,
        worker: ScriptedWorker = worker,
        size: tuple[int, int] = (1280, 800),
        trail: Trail | None = None,
    ) -> MainWindow:
        window = MainWindow(settings, theme, EngineClient(worker), tmp_path / "conversation.json", trail=trail)
        windows.append(window)
        window.resize(*size)
        window.show()
        qtbot.waitExposed(window)
        window.start(first)
        qtbot.waitUntil(lambda: window.autosave._ready)
        if first is not None:
            window.client.drain()
        return window

    with none_left():
        yield make
        for window in windows:
            if not window._closed:
                with qtbot.waitSignal(window.closed_down):
                    window.close()
            window.background.wait(PATIENCE)
            window.deleteLater()
        delete_widgets()


@pytest.fixture
def window(make_window: Callable[..., MainWindow]) -> MainWindow:
    """A window with the demo pack in X-LoRA mode."""
    return make_window(demo_settings("xlora"))
