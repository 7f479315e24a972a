"""Clients that leave: generation stops within two tokens or one second, and no slot stays taken."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from loradesk_engine.commands import ChatRequest
from loradesk_engine.serving.http import HttpServer

from .conftest import KEY, Stage, Watch, chat
from .raw import connect, post, reset

CLIENTS = 8


def leave(url: str, number: int, dice: random.Random) -> float:
    """Ask for an endless answer and leave at some moment; when."""
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
            time.sleep(dice.random() * 0.06)
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
    return time.monotonic()


def soak(lora: Stage, server: HttpServer, idle: Callable[[], int], count: int) -> None:
    watch = Watch(lora.worker.subscribe())
    watcher = threading.Thread(target=watch.run, daemon=True)
    watcher.start()
    seen = len(lora.worker.sent)
    left: dict[int, float] = {}
    numbers = iter(range(count))
    lock = threading.Lock()

    def run(seed: int) -> None:
        dice = random.Random(seed)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            left[number] = leave(server.url, number, dice)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert len(left) == count
    deadline = time.monotonic() + 1
    while idle():
        assert time.monotonic() < deadline, "slots are still taken a second after the last client left"
        time.sleep(0.01)
    time.sleep(0.1)
    lora.worker.unsubscribe(watch.events)
    watch.events.put(None)  # type: ignore[arg-type]
    watcher.join(5)

    begun = [c for _, c in lora.worker.sent[seen:] if isinstance(c, ChatRequest)]
    assert len(begun) > count // 2
    for request in begun:
        assert request.request_id in watch.ends, "it never ended"
        number = int(request.messages[0].content.split()[1].rstrip("."))
        late = watch.ends[request.request_id] - left[number]
        tokens = sum(when > left[number] for when in watch.tokens.get(request.request_id, ()))
        assert late < 1 or tokens <= 2, (number, late, tokens)


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
    deadline = time.monotonic() + 5
    while connections not in client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(threading.enumerate()) <= started
    assert "42" in client.post("/v1/chat/completions", json=chat("What is 17 + 25?", model="arithmetic")).text


def test_a_stopped_server_ends_what_it_runs(lora: Stage) -> None:
    server = lora.serve()
    other = lora.serve()
    body = chat("hello", max_tokens=900, ignore_eos=True, stream=True)
    lines: list[str] = []
    with (
        httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as client,
        client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer,
    ):
        reader = answer.iter_lines()
        lines.append(next(reader))
        started = time.monotonic()
        assert server.stop()
        assert time.monotonic() - started < 3
        lines += list(reader)
    assert any("The server was stopped." in line for line in lines)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    answer = httpx.post(
        f"{other.url}/v1/chat/completions", json=chat("hello"), headers={"Authorization": f"Bearer {KEY}"}, timeout=20
    )
    assert answer.status_code == 200
