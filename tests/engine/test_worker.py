"""The worker thread: commands in, events out, nothing lost, nothing left running."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.clock import PATIENCE, pause
from support.threads import none_left

from loradesk_engine.commands import (
    Activate,
    AdapterSource,
    AddAdapter,
    Cancel,
    CancelLoad,
    ChatRequest,
    CompletionRequest,
    Load,
    LoadSettings,
    Message,
    RemoveAdapter,
    Sampling,
    Unload,
)
from loradesk_engine.errors import FileFormatError
from loradesk_engine.events import (
    AdaptersActivated,
    AdaptersChanged,
    CommandFailed,
    Event,
    LoadCancelled,
    LoadFailed,
    LoadProgressed,
    MemoryMeasured,
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
from loradesk_engine.generation import engine as engine_module
from loradesk_engine.generation import loading as loading_module
from loradesk_engine.serving.worker import EngineWorker


class Desk:
    """A worker and the events it sent."""

    def __init__(self) -> None:
        self.worker = EngineWorker()
        self.events = self.worker.subscribe()
        self.seen: list[Event] = []
        self.worker.start()

    def until(self, *kinds: type[Event], also: Callable[[Event], bool] = lambda event: True) -> Event:
        """The next event of one of these kinds."""
        while True:
            event = self.events.get(timeout=PATIENCE)
            self.seen.append(event)
            if isinstance(event, kinds) and also(event):
                return event

    def ask(self, name: str, tokens: int = 8) -> None:
        sampling = Sampling(max_tokens=tokens, ignore_end=True)
        self.worker.send(ChatRequest(name, (Message("user", "hello"),), sampling))


@pytest.fixture
def desk() -> Iterator[Desk]:
    with none_left():
        desk = Desk()
        yield desk
        assert desk.worker.close(PATIENCE)


def lora_settings(zoo) -> LoadSettings:  # type: ignore[no-untyped-def]
    adapters = tuple(AdapterSource(name, str(path)) for name, path in zoo.adapters.items())
    return LoadSettings(base=str(zoo.base), mode="lora", adapters=adapters)


def test_load_ask_activate_and_unload(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(desk.until(WorkerReady), WorkerReady)
    desk.worker.send(Load(lora_settings(zoo)))
    loaded = desk.until(ModelLoaded)
    assert isinstance(loaded, ModelLoaded)
    assert any(isinstance(event, LoadProgressed) for event in desk.seen)
    assert [info.name for info in loaded.info.adapters] == list(zoo.adapters)
    assert loaded.info.adapters[3].applied == "applied to 5 of 15 modules"
    assert desk.until(AdaptersActivated) == AdaptersActivated({})
    assert isinstance(desk.until(MemoryMeasured), MemoryMeasured)

    texts = []
    for weights in ({}, {"wide": 1.0}, {}):
        desk.worker.send(Activate(weights))
        assert desk.until(AdaptersActivated) == AdaptersActivated(weights)
        desk.ask("one")
        started = desk.until(RequestStarted)
        assert isinstance(started, RequestStarted)
        assert started.weights == weights
        end = desk.until(RequestFinished)
        assert isinstance(end, RequestFinished)
        texts.append(end.text)
    assert texts[0] == texts[2] != texts[1]
    desk.worker.send(Unload())
    desk.until(ModelUnloaded)
    desk.ask("two")
    failed = desk.until(RequestFailed)
    assert isinstance(failed, RequestFailed)
    assert failed.problem.remedy == "Load one first."


def test_a_failed_load_names_the_file_and_keeps_the_model(desk: Desk, zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Load(LoadSettings(base=str(zoo.base))))
    desk.until(ModelLoaded)
    desk.worker.send(Load(LoadSettings(base=str(tmp_path / "nowhere"))))
    failed = desk.until(LoadFailed)
    assert isinstance(failed, LoadFailed)
    assert failed.model_kept
    assert failed.problem.file == str(tmp_path / "nowhere")
    assert failed.problem.remedy
    desk.ask("still")
    assert isinstance(desk.until(RequestFinished), RequestFinished)


def test_a_load_can_be_cancelled_and_keeps_the_model(desk: Desk, zoo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Load(LoadSettings(base=str(zoo.base))))
    desk.until(ModelLoaded)
    entered = threading.Event()
    build = loading_module.build_decoder

    def slow(*args, progress, **options):  # type: ignore[no-untyped-def]
        entered.set()
        for _ in range(10_000):
            progress(0.5)  # raises once it is cancelled
            pause(0.01)
        return build(*args, progress=progress, **options)

    monkeypatch.setattr(loading_module, "build_decoder", slow)
    desk.worker.send(Load(LoadSettings(base=str(zoo.base), dtype="bfloat16")))
    assert entered.wait(PATIENCE)
    desk.ask("meanwhile")  # the model that is there answers while another one loads
    assert isinstance(desk.until(RequestFinished), RequestFinished)
    desk.worker.send(CancelLoad())
    assert desk.until(LoadCancelled, LoadFailed, ModelLoaded) == LoadCancelled(True)
    desk.ask("after")
    assert isinstance(desk.until(RequestFinished), RequestFinished)


def test_a_newer_load_takes_the_place_of_an_older_one(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Load(LoadSettings(base=str(zoo.base))))
    desk.worker.send(Load(lora_settings(zoo)))
    desk.until(ModelLoaded, also=lambda event: isinstance(event, ModelLoaded) and event.info.mode == "lora")


def test_every_load_has_one_outcome_with_its_tag(desk: Desk, zoo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Also those that never began, because a newer one or a cancellation came first."""
    blocked, entered = threading.Event(), threading.Event()
    build = loading_module.build_decoder

    def held(*args, **options):  # type: ignore[no-untyped-def]
        entered.set()
        assert blocked.wait(PATIENCE)
        return build(*args, **options)

    monkeypatch.setattr(loading_module, "build_decoder", held)
    settings = LoadSettings(base=str(zoo.base))
    desk.worker.send(Load(settings, "begun"))
    assert entered.wait(PATIENCE)
    for tag in ("replaced", "cancelled"):
        desk.worker.send(Load(settings, tag))
    desk.worker.send(CancelLoad())
    desk.worker.send(Load(settings, "last"))
    dropped = [desk.until(LoadCancelled) for _ in range(2)]
    assert dropped == [LoadCancelled(False, "replaced"), LoadCancelled(False, "cancelled")]
    blocked.set()
    assert desk.until(LoadCancelled, ModelLoaded) == LoadCancelled(False, "begun")
    loaded = desk.until(LoadCancelled, ModelLoaded)
    assert isinstance(loaded, ModelLoaded)
    assert loaded.tag == "last"
    desk.worker.send(Load(LoadSettings(base=str(zoo.base / "nowhere")), "failing"))
    failed = desk.until(LoadFailed)
    assert isinstance(failed, LoadFailed)
    assert failed.tag == "failing"
    progress = [event for event in desk.seen if isinstance(event, LoadProgressed)]
    assert {event.tag for event in progress} == {"begun", "last", "failing"}


def test_a_defect_at_the_end_of_a_load_is_the_outcome_of_that_load(desk: Desk, zoo, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def broken(self) -> None:  # type: ignore[no-untyped-def]
        if threading.current_thread().name == "loradesk-engine":
            raise ZeroDivisionError("a defect")
        enter(self)

    enter = engine_module.EngineCore.enter_thread
    monkeypatch.setattr(engine_module.EngineCore, "enter_thread", broken)
    desk.worker.send(Load(LoadSettings(base=str(zoo.base)), "mine"))
    failed = desk.until(LoadFailed, CommandFailed)
    assert isinstance(failed, LoadFailed)
    assert failed.tag == "mine"
    assert "a defect" in failed.problem.problem


def test_zero_is_inactive_and_the_tag_comes_back(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Load(lora_settings(zoo)))
    desk.until(ModelLoaded)
    assert desk.until(AdaptersActivated) == AdaptersActivated({}, None)
    desk.worker.send(Activate({"wide": 0.0, "adapter_1": 0.5}, "mine"))
    assert desk.until(AdaptersActivated) == AdaptersActivated({"adapter_1": 0.5}, "mine")
    desk.worker.send(Activate({"wide": 0.0}, "again"))
    assert desk.until(AdaptersActivated) == AdaptersActivated({}, "again")


def test_removing_an_adapter_activates_nothing(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Load(lora_settings(zoo)))
    desk.until(ModelLoaded)
    desk.worker.send(Activate({"wide": 1.0, "adapter_1": 1.0}, "before"))
    desk.until(AdaptersActivated, also=lambda event: event.tag == "before")  # type: ignore[union-attr]
    desk.worker.send(RemoveAdapter("wide", "mine"))
    changed = desk.until(AdaptersActivated, AdaptersChanged)
    assert isinstance(changed, AdaptersChanged)
    assert AdaptersActivated({"adapter_1": 1.0}) in desk.worker.standing


def test_cancelling_a_request_ends_it_soon(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Load(LoadSettings(base=str(zoo.base))))
    desk.until(ModelLoaded)
    desk.ask("long", tokens=400)
    desk.until(TokensGenerated)
    desk.worker.send(Cancel("long"))
    end = desk.until(RequestFinished)
    assert isinstance(end, RequestFinished)
    assert end.finish_reason == "cancelled"
    assert end.completion_tokens < 400


def test_closing_while_generating_ends_the_request_and_the_thread(zoo) -> None:  # type: ignore[no-untyped-def]
    desk = Desk()
    desk.worker.send(Load(LoadSettings(base=str(zoo.base))))
    desk.until(ModelLoaded)
    desk.ask("long", tokens=400)
    desk.until(TokensGenerated)
    assert desk.worker.close(PATIENCE)
    assert isinstance(desk.until(RequestFailed, RequestFinished), RequestFailed)
    assert isinstance(desk.until(WorkerClosed), WorkerClosed)
    with pytest.raises(queue.Empty):
        desk.events.get_nowait()


def test_commands_that_fail_say_why_and_change_nothing(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Activate({"nobody": 1.0}))
    assert desk.until(CommandFailed) == CommandFailed(
        Problem("NoModelError", "No model is loaded.", None, None, "Load one first.")
    )
    desk.worker.send(Load(lora_settings(zoo)))
    desk.until(ModelLoaded)
    for command in (
        Activate({"nobody": 1.0}),
        RemoveAdapter("nobody"),
        AddAdapter(AdapterSource("wide", str(zoo.adapters["wide"]))),
        AddAdapter(AdapterSource("new", str(zoo.base))),
    ):
        desk.worker.send(command)
        failed = desk.until(CommandFailed)
        assert isinstance(failed, CommandFailed)
        assert failed.problem.kind == "AdapterError"
    desk.worker.send(RemoveAdapter("wide"))
    changed = desk.until(AdaptersChanged)
    assert isinstance(changed, AdaptersChanged)
    assert len(changed.adapters) == 3


def test_a_late_subscriber_learns_how_things_stand(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    def told() -> list[Event]:
        events, seen = desk.worker.subscribe(), []
        while not events.empty():
            seen.append(events.get())
        desk.worker.unsubscribe(events)
        assert tuple(seen) == desk.worker.standing
        return seen

    ready = desk.until(WorkerReady)
    assert told() == [ready]
    desk.worker.send(Load(lora_settings(zoo)))
    loaded = desk.until(ModelLoaded)
    assert isinstance(loaded, ModelLoaded)
    desk.worker.send(Activate({"wide": 0.5, "adapter_1": 1.0}, "mine"))
    desk.until(AdaptersActivated, also=lambda event: event.tag == "mine")  # type: ignore[union-attr]
    assert told() == [ready, loaded, AdaptersActivated({"adapter_1": 1.0, "wide": 0.5})]
    desk.worker.send(RemoveAdapter("wide", "again mine"))
    changed = desk.until(AdaptersChanged)
    assert isinstance(changed, AdaptersChanged)
    assert changed.tag == "again mine"
    left = replace(loaded.info, adapters=changed.adapters)
    assert told() == [ready, ModelLoaded(left), AdaptersActivated({"adapter_1": 1.0})]
    desk.worker.send(Unload())
    desk.until(ModelUnloaded)
    assert told() == [ready]
    assert desk.worker.close(PATIENCE)
    assert told() == [ready, WorkerClosed()]


def test_a_subscriber_to_one_request_hears_of_it_alone(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Load(LoadSettings(base=str(zoo.base))))
    desk.until(ModelLoaded)
    mine = desk.worker.subscribe("mine")
    for name in ("other", "mine"):
        desk.ask(name)
    for _ in range(2):
        desk.until(RequestFinished)
    assert desk.worker.close(PATIENCE)
    seen = []
    while not mine.empty():
        seen.append(mine.get())
    assert {event.request_id for event in seen[:-1]} == {"mine"}
    assert [type(event) for event in (seen[0], seen[1], seen[-2], seen[-1])] == [
        RequestQueued, RequestStarted, RequestFinished, WorkerClosed
    ]  # fmt: skip


def test_a_request_is_checked_before_it_waits(desk: Desk, zoo) -> None:  # type: ignore[no-untyped-def]
    desk.worker.send(Load(LoadSettings(base=str(zoo.base), context=8)))
    desk.until(ModelLoaded)
    desk.ask("too long")
    failed = desk.until(RequestFailed, RequestQueued)
    assert isinstance(failed, RequestFailed)
    assert failed.problem.kind == "ContextLengthError"
    desk.worker.send(CompletionRequest("short", "abc", Sampling(max_tokens=2, ignore_end=True)))
    assert desk.until(RequestFailed, RequestQueued, RequestStarted) == RequestQueued("short")
    desk.until(RequestFinished)


def test_an_error_inside_a_step_fails_its_requests_and_nothing_else(  # type: ignore[no-untyped-def]
    desk: Desk, zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.worker.send(Load(LoadSettings(base=str(zoo.base))))
    desk.until(ModelLoaded)
    with monkeypatch.context() as patch:
        patch.setattr(engine_module.Runner, "run", lambda *args: (_ for _ in ()).throw(RuntimeError("out of memory")))
        desk.ask("unlucky")
        failed = desk.until(RequestFailed)
    assert isinstance(failed, RequestFailed)
    assert failed.problem.problem == "out of memory"
    desk.ask("next")
    assert isinstance(desk.until(RequestFinished), RequestFinished)


def test_a_fault_in_a_step_loses_requests_but_not_the_thread(  # type: ignore[no-untyped-def]
    desk: Desk, zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.worker.send(Load(LoadSettings(base=str(zoo.base))))
    desk.until(ModelLoaded)

    def broken(_scheduler: object) -> None:
        raise IndexError

    with monkeypatch.context() as patch:
        patch.setattr(engine_module.Scheduler, "schedule", broken)
        desk.ask("unlucky")
        failed = desk.until(RequestFailed)
    assert isinstance(failed, RequestFailed)
    assert failed.problem.kind == "IndexError"
    desk.ask("next")
    assert isinstance(desk.until(RequestFinished), RequestFinished)


def test_mode_switch_shares_the_base(zoo) -> None:  # type: ignore[no-untyped-def]
    first = engine_module.EngineCore.load(LoadSettings(base=str(zoo.base)))
    second = engine_module.EngineCore.load(lora_settings(zoo), previous=first)
    assert second.decoder is first.decoder
    other = engine_module.EngineCore.load(LoadSettings(base=str(zoo.base), dtype="bfloat16"), previous=first)
    assert other.decoder is not first.decoder


def test_problem_carries_the_parts_of_an_error() -> None:
    problem = Problem.of(FileFormatError("It is broken.", file="a.json", field="x", remedy="Mend it."))
    assert problem == Problem("FileFormatError", "It is broken.", "a.json", "x", "Mend it.")
    assert str(problem) == "a.json, x: It is broken. Mend it."
