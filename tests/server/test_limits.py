"""Slow clients, large bodies and too many of them: answered with 4xx, and nobody else waits."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from support.clock import PATIENCE, pause, wait_until

from loradesk_engine.serving.http import HttpServer

from .conftest import KEY, Stage, chat, client_of
from .raw import connect, post, request, status

MIB = 2**20


@pytest.fixture(scope="module")
def small(lora: Stage) -> HttpServer:
    """A server that takes little, and has patience."""
    return lora.serve(
        header_seconds=PATIENCE,
        body_seconds=PATIENCE,
        send_seconds=PATIENCE,
        max_header_bytes=8192,
        max_requests=4,
        max_connections=24,
    )


@pytest.fixture(scope="module")
def hasty(lora: Stage) -> HttpServer:
    """A server without patience."""
    return lora.serve(header_seconds=0.5, body_seconds=0.5)


def assert_it_answers(server: HttpServer) -> None:
    """Others are answered, although what is under way has not ended."""
    with client_of(server) as client:
        for _ in range(3):
            assert client.get("/v1/models").status_code == 200


def test_large_bodies_are_answered_with_413(small: HttpServer) -> None:
    body = b'{"model": "' + b"x" * (8 * MIB) + b'"}'

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]
            if at == MIB // 2:  # half of what is allowed
                assert_it_answers(small)

    for _ in range(4):
        with client_of(small) as client:
            declared = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
            assert declared.status_code == 413
            assert "1,048,576" in declared.json()["error"]["message"]
            chunked = client.post("/v1/completions", content=pieces(), headers={"Content-Type": "application/json"})
            assert chunked.status_code == 413


def test_an_absurd_length_is_refused_at_once(small: HttpServer) -> None:
    for length in ("99999999999999", str(8 * MIB)):
        with connect(small.url) as link:
            link.sendall(request(small.url, "POST", "/v1/completions", Content_Length=length, Expect="100-continue"))
            assert status(link) == 413
    for length in ("-1", "1e3", "0x10", "5, 6"):
        with connect(small.url) as link:
            link.sendall(request(small.url, "POST", "/v1/completions", Content_Length=length))
            assert status(link) == 400


def test_large_headers(small: HttpServer) -> None:
    with connect(small.url) as link:
        link.sendall(request(small.url, "GET", "/v1/models", X_Large="x" * 6000))
        assert status(link) == 200
    for path, large in (("/v1/models", "x" * 20_000), ("/" + "y" * 20_000, "")):
        with connect(small.url) as link:
            link.sendall(request(small.url, "GET", path, X_Large=large))
            assert status(link) == 431


def beginnings(server: HttpServer) -> list[socket.socket]:
    """Connections whose requests end in the middle of the headers, right after them, and in the body."""
    whole = post(server.url, "/v1/chat/completions", chat("hello"))
    end_of_headers = whole.index(b"\r\n\r\n") + 4
    links = []
    for sent in (0, 1, 60, end_of_headers, end_of_headers + 10):
        links.append(connect(server.url))
        links[-1].sendall(whole[:sent])
    return links


def test_slow_headers_and_bodies_are_answered_with_408(hasty: HttpServer) -> None:
    links = beginnings(hasty)
    drops = connect(hasty.url)
    for byte in post(hasty.url, "/v1/chat/completions", chat("hello"))[:12]:  # one now and then does not gain time
        try:
            drops.sendall(bytes([byte]))
        except OSError:
            break
        pause(0.1)
    for link in (*links, drops):
        assert status(link) == 408
        link.close()


def test_slow_headers_and_bodies_hold_up_nobody(small: HttpServer) -> None:
    links = beginnings(small)
    assert_it_answers(small)
    for link in links:
        link.close()


def test_a_client_that_reads_nothing_is_cut_off(lora: Stage) -> None:
    listener = lora.serve(send_seconds=0.5)
    body = chat("hello", max_tokens=900, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20, n=8)
    with connect(listener.url, buffer=4096) as link:
        seen = len(lora.records)
        link.sendall(post(listener.url, "/v1/chat/completions", body))
        assert_it_answers(listener)
        cut_off = "The client took nothing"
        wait_until(lambda: any(record.note.startswith(cut_off) for record in lora.records[seen:]), cut_off)
    _wait_until_idle(listener)


def test_an_answer_that_takes_too_long_ends(lora: Stage) -> None:
    server = lora.serve(request_seconds=3.0)
    body = chat("hello", n=4, max_tokens=900, ignore_eos=True)
    with client_of(server) as client:
        with lora.worker.held():
            late = client.post("/v1/chat/completions", json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (408, "timeout")
        _wait_until_idle(server)
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
            assert stream.status_code == 200
            reader = stream.iter_lines()
            first = next(reader)
            with lora.worker.held():
                lines = [line for line in (first, *reader) if line]
        assert '"code":"timeout"' in lines[-2]
        assert lines[-1] == "data: [DONE]"
    _wait_until_idle(server)


def test_too_many_answers_are_refused_with_429(small: HttpServer, lora: Stage) -> None:
    endless = chat("hello", n=3, max_tokens=900, ignore_eos=True, stream=True)
    with client_of(small) as client:
        with client.stream("POST", "/v1/chat/completions", json=endless) as running:
            lines = running.iter_lines()  # kept: httpx closes the connection when the iterator goes
            next(lines)
            with lora.worker.held():
                refused = client.post("/v1/chat/completions", json=chat("hello", n=2))
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "queue_full"
        _wait_until_idle(small)
        assert client.post("/v1/chat/completions", json=chat("hello", n=2, max_tokens=5)).status_code == 200


def test_too_many_connections_are_refused_with_429(lora: Stage) -> None:
    server = lora.serve(max_connections=5, header_seconds=PATIENCE)
    links = [connect(server.url) for _ in range(5)]
    for link in links:  # accepted for sure
        link.sendall(request(server.url, "GET", "/health"))
        assert status(link) == 200
    with connect(server.url) as one_more:
        assert status(one_more) == 429
    for link in links:
        link.close()

    def accepted() -> bool:
        with connect(server.url) as again:
            again.sendall(request(server.url, "GET", "/health"))
            return status(again) == 200

    wait_until(accepted, "a place for one more")


def test_what_is_not_http(small: HttpServer) -> None:
    for text in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n", b"GET /\r\n\r\n"):
        with connect(small.url) as link:
            link.sendall(text + b"\r\n\r\n")
            assert status(link) in (400, 403)
    for twice in ("{}\r\nHost: evil.example", "{}, evil.example"):
        with connect(small.url) as link:
            link.sendall(request(small.url, "GET", "/v1/models", Host=twice.format(small.url[7:])))
            assert status(link) in (400, 403)


@pytest.mark.slow
def test_two_hundred_slow_clients_and_large_bodies_hold_up_nobody(lora: Stage) -> None:
    """Clients, server and engine, which answers four requests, share this process and its lock."""
    server = lora.serve(header_seconds=4.0, body_seconds=4.0)
    whole = post(server.url, "/v1/chat/completions", chat("hello"))
    in_body = whole.index(b"\r\n\r\n") + 4
    body = b'{"model": "' + b"x" * (8 * MIB) + b'"}'
    counts: Counter[int] = Counter()
    answered = 0
    stop = threading.Event()

    def crawl() -> None:
        """Half of them never end their headers, the others their body: a byte each in every round."""
        links = [(connect(server.url), 0 if number % 2 else in_body) for number in range(200)]
        for link, start in links:
            link.sendall(whole[:start])
        place = 0
        while any(start + place < len(whole) - 1 for _, start in links) and not stop.wait(0.2):
            for link, start in links:
                with suppress(OSError):  # answered and closed by now
                    link.send(whole[start + place : start + place + 1])
            place += 1
            if place * 0.2 > 6:  # longer than the server is patient
                break
        for link, _ in links:
            with suppress(OSError):
                counts[status(link)] += 1
            link.close()

    def pour() -> None:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE) as client:
            while not stop.is_set():
                pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
                for content in (body, pieces):
                    with suppress(httpx.WriteError):  # closed while the rest was still on its way
                        counts[client.post("/v1/completions", content=content).status_code] += 1

    def listen() -> None:
        endless = chat("hello", n=4, max_tokens=900, ignore_eos=True, stream=True)
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE) as client:
            while not stop.is_set():
                with client.stream("POST", "/v1/chat/completions", json=endless) as answer:
                    counts[answer.status_code] += 1
                    for _ in answer.iter_lines():
                        if stop.is_set():
                            break

    crawler = threading.Thread(target=crawl)
    others = [threading.Thread(target=work) for work in (pour, pour, listen)]
    for thread in (crawler, *others):
        thread.start()
    while crawler.is_alive():
        assert_it_answers(server)
        answered += 3
    stop.set()
    for thread in others:
        thread.join(PATIENCE)
    assert answered > 3
    assert counts[408] >= 190
    assert counts[413] > 0
    assert set(counts) <= {0, 200, 408, 413}


def _wait_until_idle(server: HttpServer) -> None:
    with client_of(server) as client:
        idle = "\nloradesk_generations_running 0\n"
        wait_until(lambda: idle in client.get("/metrics").text, "the end of every answer")
