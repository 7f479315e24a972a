"""Clients that leave: generation stops within two tokens, and no slot stays taken."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable

import httpx
import pytest
from support.clock import PATIENCE, pause, wait_until

from loradesk_engine.commands import Cancel, ChatRequest
from loradesk_engine.events import RequestFinished, TokensGenerated
from loradesk_engine.serving.http import HttpServer

from .conftest import Stage, chat, client_of
from .raw import connect, post, reset

CLIENTS = 8


def leave(url: str, number: int, dice: random.Random) -> None:
    """Ask for an endless answer and leave at some moment."""
    stream = dice.random() < 0.7
    body = chat(f"client {number}.", max_tokens=900, ignore_eos=True, stream=stream, n=dice.choice((1, 1, 1, 2)))
    data = post(url, "/v1/chat/completions", body)
    link = connect(url)
    moment = dice.random()
    if moment < 0.15:  # before the request is complete
        link.sendall(data[: dice.randrange(len(data))])
    else:
        link.sendall(data)
        if moment < 0.6:
            pause(dice.random() * 0.06)
        elif stream:
            wanted = dice.randrange(1, 3000)
            while wanted > 0:
                piece = link.recv(min(wanted, 4096))
                if not piece:  # the server was done first
                    break
                wanted -= len(piece)
    if dice.random() < 0.5:
        reset(link)
    else:
        link.close()


def soak(lora: Stage, server: HttpServer, idle: Callable[[], int], count: int) -> None:
    start = len(lora.worker.journal)
    left: list[int] = []
    numbers = iter(range(count))
    lock = threading.Lock()

    def run(seed: int) -> None:
        dice = random.Random(seed)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            leave(server.url, number, dice)
            left.append(number)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(left) == count
    wait_until(lambda: not idle(), "the end of every answer")
    begun = requests(lora, start)
    assert len(begun) > count // 2
    assert any([was_cancelled(lora, request) for request in begun])  # a busy machine may be done before it notices


def requests(lora: Stage, start: int) -> list[str]:
    """Those that the worker has got since its journal had `start` entries."""
    return [entry.request_id for entry in lora.worker.journal[start:] if isinstance(entry, ChatRequest)]


def was_cancelled(lora: Stage, request: str) -> bool:
    """Whether a request was cancelled; then it has ended within two tokens."""
    own = [entry for entry in lora.worker.journal if getattr(entry, "request_id", None) == request]
    assert any(isinstance(entry, RequestFinished) for entry in own), f"{request} never ended"
    cancels = [place for place, entry in enumerate(own) if isinstance(entry, Cancel)]
    if not cancels:
        return False
    assert sum(isinstance(entry, TokensGenerated) for entry in own[cancels[0] :]) <= 2
    return True


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_one_that_leaves_is_cancelled(
    lora: Stage, server: HttpServer, idle: Callable[[], int], stream: bool, end: Callable[[socket.socket], None]
) -> None:
    """The engine is held up, so the answer cannot end by itself before the server notices."""
    start = len(lora.worker.journal)
    link = connect(server.url)
    body = chat("hello", max_tokens=900, ignore_eos=True, stream=stream, n=2)
    link.sendall(post(server.url, "/v1/chat/completions", body))
    wait_until(lambda: any(isinstance(entry, TokensGenerated) for entry in lora.worker.journal[start:]), "a token")
    with lora.worker.held():
        end(link)
        wait_until(lambda: sum(isinstance(entry, Cancel) for entry in lora.worker.journal[start:]) == 2, "both cancels")
    wait_until(lambda: not idle(), "the end of the answer")
    assert all(was_cancelled(lora, request) for request in requests(lora, start))


def test_fifty_leave_and_the_next_is_answered(
    lora: Stage, server: HttpServer, client: httpx.Client, idle: Callable[[], int]
) -> None:
    before = client.post("/v1/chat/completions", json=chat("What is 6 times 7?", model="arithmetic")).json()
    soak(lora, server, idle, 50)
    after = client.post("/v1/chat/completions", json=chat("What is 6 times 7?", model="arithmetic")).json()
    assert after["choices"] == before["choices"]


@pytest.mark.slow
def test_five_hundred_leave(lora: Stage, server: HttpServer, client: httpx.Client, idle: Callable[[], int]) -> None:
    started = len(threading.enumerate())
    soak(lora, server, idle, 500)
    connections = "\nloradesk_connections_open 1\n"
    wait_until(lambda: connections in client.get("/metrics").text, "the end of every connection")
    assert len(threading.enumerate()) <= started
    assert "42" in client.post("/v1/chat/completions", json=chat("What is 17 + 25?", model="arithmetic")).text


def test_a_stopped_server_ends_what_it_runs(lora: Stage) -> None:
    server = lora.serve()
    other = lora.serve()
    body = chat("hello", max_tokens=900, ignore_eos=True, stream=True)
    lines: list[str] = []
    with (
        client_of(server) as client,
        client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer,
    ):
        reader = answer.iter_lines()
        lines.append(next(reader))
        assert server.stop(PATIENCE)
        lines += list(reader)
    assert any("The server was stopped." in line for line in lines)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", timeout=PATIENCE)
    with client_of(other) as client:
        assert client.post("/v1/chat/completions", json=chat("hello")).status_code == 200
