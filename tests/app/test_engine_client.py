"""The client: events become signals, tokens of one frame become one, closing waits for nobody. What concerns the window
is tested with the router.
"""

from __future__ import annotations

import numpy as np
import pytest

from loradesk_app.engine_client import EngineClient
from loradesk_engine.commands import CancelLoad, ChatRequest, Close, Load, LoadSettings, Message
from loradesk_engine.events import MemoryMeasured, ModelLoaded, RequestFinished, TokensGenerated


@pytest.fixture
def client(worker, qapp):
    client = EngineClient(worker)
    client.start()
    yield client
    client._timer.stop()


def tokens(start: int, count: int, text: str, layers: int = 3) -> TokensGenerated:
    rows = np.full((count, layers, 2), start, np.float32)
    return TokensGenerated("r", text, tuple(range(count)), (text,) * count, rows, (text,) * count, start)


def test_every_event_becomes_the_signal_of_its_name(client, worker, qtbot):
    with qtbot.waitSignal(client.worker_ready) as ready:
        client.drain()
    assert ready.args[0].torch_version == "2.13.0"
    worker.tell(MemoryMeasured(1, 2, 3))
    with qtbot.waitSignal(client.memory_measured) as measured:
        client.drain()
    assert measured.args == [MemoryMeasured(1, 2, 3)]


def ask(client, worker, *names: str) -> None:
    """Send requests that the test answers."""
    worker.replies[ChatRequest] = lambda command: []
    for name in names:
        client.send(ChatRequest(name, (Message("user", "hello"),)))


def test_tokens_of_one_frame_arrive_as_one(client, worker):
    ask(client, worker, "r")
    seen = []
    client.tokens_generated.connect(seen.append)
    worker.tell(tokens(0, 4, "a"), tokens(4, 1, "b"), tokens(5, 1, "c"))
    client.drain()
    (event,) = seen
    assert event.text == "abc"
    assert event.scalings.shape == (6, 3, 2)
    assert event.scalings[:, 0, 0].tolist() == [0, 0, 0, 0, 4, 5]
    assert event.scaling_token_texts == ("a", "a", "a", "a", "b", "c")
    assert (event.scalings_start, event.token_ids) == (0, (0, 1, 2, 3, 0, 0))


def test_tokens_are_passed_before_the_end_of_their_request(client, worker):
    ask(client, worker, "r")
    seen = []
    client.tokens_generated.connect(lambda event: seen.append(event.text))
    client.request_finished.connect(lambda event: seen.append("end"))
    worker.tell(tokens(0, 1, "a"), tokens(1, 1, "b"), RequestFinished("r", "ab", "stop", 1, 2, 0, 0.1, 5.0))
    client.drain()
    assert seen == ["ab", "end"]


def test_requests_are_joined_apart(client, worker):
    ask(client, worker, "r", "other")
    other = TokensGenerated("other", "x", (1,), ("x",))
    seen = []
    client.tokens_generated.connect(lambda event: seen.append((event.request_id, event.text)))
    worker.tell(tokens(0, 1, "a"), other, tokens(1, 1, "b"))
    client.drain()
    assert seen == [("r", "ab"), ("other", "x")]


def test_the_window_is_loading_until_its_load_ends(client, worker, script):
    worker.replies[Load] = lambda command: []
    client.send(Load(LoadSettings("base")))
    assert client.is_loading
    worker.answer_newest(Load, ModelLoaded(script.model_info()))
    client.drain()
    assert not client.is_loading


def test_closing_cancels_what_runs_and_reports_the_end(client, worker, qtbot):
    worker.replies[Load] = worker.replies[ChatRequest] = lambda command: []
    client.send(Load(LoadSettings("base")))
    client.send(ChatRequest("r", (Message("user", "hello"),)))
    with qtbot.waitSignal(client.closed) as closed:
        client.close()
    assert closed.args == [True]
    assert worker.closed
    assert [type(command).__name__ for command in worker.sent[2:]] == ["Cancel", "CancelLoad", "Close"]
    assert worker.commands(CancelLoad)


def test_a_worker_that_never_ends_is_given_up(client, worker, qtbot):
    worker.ends = False
    with qtbot.waitSignal(client.closed) as closed:
        client.close(seconds=0.05)
    assert closed.args == [False]
    assert worker.commands(Close)


def test_closing_before_the_start_ends_at_once(qtbot, worker):
    client = EngineClient(worker)
    with qtbot.waitSignal(client.closed) as closed:
        client.close()
    assert closed.args == [True]
    assert worker.sent == []
