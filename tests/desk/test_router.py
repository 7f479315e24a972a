"""Whose event it is: answers go to the sender, changes of the model to everybody."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from loradesk_desk.router import Router
from loradesk_engine.commands import (
    Activate,
    AdapterSource,
    AddAdapter,
    ChatRequest,
    Estimate,
    Load,
    LoadSettings,
    Message,
    RemoveAdapter,
    Unload,
)
from loradesk_engine.events import (
    AdaptersActivated,
    AdaptersChanged,
    CommandFailed,
    EstimateFailed,
    Event,
    LoadCancelled,
    LoadFailed,
    LoadProgressed,
    MemoryEstimate,
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

PROBLEM = Problem("AdapterError", "No.")
SETTINGS = LoadSettings("base")
INFO = ModelInfo("m", "base", "LlamaForCausalLM", "none", (), (), 1, 4, "cpu", "float32", 512, None, 0.1)
ESTIMATE = MemoryEstimate("cpu", "float32", 512, (), 1)


def one_of_each(info, request_id: str, tag: str | None) -> list[Event]:
    return [
        LoadProgressed("Reading", 0.5, tag),
        ModelLoaded(info, tag),
        ModelUnloaded(tag),
        LoadFailed(PROBLEM, True, tag),
        LoadCancelled(True, tag),
        AdaptersActivated({}, tag),
        AdaptersChanged((), tag),
        CommandFailed(PROBLEM, tag),
        RequestQueued(request_id),
        RequestStarted(request_id, 1, 0, {}),
        TokensGenerated(request_id, "a", (1,)),
        RequestFinished(request_id, "a", "stop", 1, 1, 0, 0.1, 1.0),
        RequestFailed(request_id, PROBLEM),
        MemoryMeasured(1, 2, 3),
        MemoryEstimated(SETTINGS, ESTIMATE, tag),
        EstimateFailed(SETTINGS, PROBLEM, tag),
        WorkerReady("2", ("cpu",), 0.1),
        WorkerClosed(),
    ]


FOR_EVERYBODY = {
    *(ModelLoaded, ModelUnloaded, AdaptersActivated, AdaptersChanged, MemoryMeasured, WorkerReady, WorkerClosed)
}


def chat(name: str) -> ChatRequest:
    return ChatRequest(name, (Message("user", "hello"),))


def taken(router: Router, *events: Event) -> list[Event]:
    return list(router.incoming(events))


@pytest.mark.parametrize("tag", [None, "of a program"])
def test_of_others_only_what_concerns_the_model_comes_through(tag):
    events = one_of_each(INFO, "theirs", tag)
    assert {type(event) for event in events} == set(get_args(Event))  # a new event needs a decision here
    router = Router()
    for command in (chat("mine"), Load(SETTINGS), Estimate(SETTINGS), Activate({}), Unload()):
        router.outgoing(command)
    assert {type(event) for event in taken(router, *events)} == FOR_EVERYBODY


def test_every_event_comes_through_to_the_one_who_asked():
    for place, event in enumerate(one_of_each(INFO, "mine", None)):
        router = Router()
        router.outgoing(chat("mine"))
        sent = {
            LoadProgressed: Load(SETTINGS),
            LoadFailed: Load(SETTINGS),
            LoadCancelled: Load(SETTINGS),
            MemoryEstimated: Estimate(SETTINGS),
            EstimateFailed: Estimate(SETTINGS),
            CommandFailed: (Activate({}), AddAdapter(AdapterSource("a", "b")), RemoveAdapter("a"), Unload())[place % 4],
        }.get(type(event))
        answer = event if sent is None else replace(event, tag=router.outgoing(sent).tag)
        assert taken(router, answer) == [answer]


def test_tags_are_made_here_and_never_twice():
    router = Router()
    tags = [router.outgoing(command).tag for command in (Activate({}), Activate({}), Load(SETTINGS), Load(SETTINGS))]
    assert len(set(tags)) == 4
    assert all(tags)


@pytest.mark.parametrize("command", [Activate({}), AddAdapter(AdapterSource("a", "b")), RemoveAdapter("a"), Unload()])
def test_a_failure_comes_through_once(command):
    router = Router()
    failed = CommandFailed(PROBLEM, router.outgoing(command).tag)
    assert taken(router, failed, failed) == [failed]


def test_a_request_is_over_once():
    router = Router()
    router.outgoing(chat("mine"))
    assert router.running == {"mine"}
    end = RequestFinished("mine", "", "stop", 1, 0, 0, 0.1, 0.0)
    assert taken(router, end, TokensGenerated("mine", "late", (1,))) == [end]
    assert not router.running


def test_of_several_loads_the_newest_counts():
    router = Router()
    first, second, third = (router.outgoing(Load(LoadSettings(base))).tag for base in ("one", "two", "three"))
    ends = (LoadCancelled(True, second), LoadFailed(PROBLEM, True, first))
    assert taken(router, LoadProgressed("Reading", 0.1, first), *ends) == []
    assert router.is_loading
    assert taken(router, LoadFailed(PROBLEM, True, third))
    assert not router.is_loading
    assert router.model_settings is None


def test_a_load_of_others_ends_none_of_ours():
    router = Router()
    mine = router.outgoing(Load(LoadSettings("mine"))).tag
    assert len(taken(router, ModelLoaded(INFO, "theirs"), LoadFailed(PROBLEM, True, "theirs"))) == 1
    assert router.is_loading
    assert router.model_settings is None
    taken(router, ModelLoaded(INFO, mine))
    assert not router.is_loading
    assert router.model_settings == LoadSettings("mine")
    taken(router, ModelLoaded(INFO, "theirs again"))
    assert router.model_settings is None


def test_of_several_estimates_the_newest_counts():
    router = Router()
    first, second = (router.outgoing(Estimate(SETTINGS)).tag for _ in range(2))
    old, new = (MemoryEstimated(SETTINGS, ESTIMATE, tag) for tag in (first, second))
    assert taken(router, old, new) == [new]


def test_tokens_come_before_what_follows_them_and_others_split_none():
    router = Router()
    router.outgoing(chat("mine"))
    mine = [TokensGenerated("mine", text, (1,)) for text in "ab"]
    theirs = RequestStarted("theirs", 1, 0, {})
    end = RequestFinished("mine", "ab", "stop", 1, 2, 0, 0.1, 5.0)
    joined, last = taken(router, mine[0], theirs, TokensGenerated("theirs", "x", (1,)), mine[1], end)
    assert (joined.text, last) == ("ab", end)
