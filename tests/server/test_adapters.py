"""The dialects of mistral.rs, vLLM and llama.cpp, and clients that do not disturb one another."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.clock import PATIENCE, pause

from loradesk_engine.commands import Activate, Cancel, ChatRequest, Message, Sampling
from loradesk_engine.serving.http import HttpServer
from loradesk_resources import resource_path

from .conftest import MODEL, Stage, chat, client_of

QUESTION = "What is 17 + 25?"


@pytest.fixture(autouse=True)
def inactive(client: httpx.Client) -> Iterator[None]:
    yield
    assert client.post("/activate_adapters", json={"adapter_names": []}).status_code == 200


def text_of(client: httpx.Client, **fields: object) -> str:
    answer = client.post("/v1/chat/completions", json=chat(QUESTION, **fields))
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_activation_as_in_mistral_rs(client: httpx.Client) -> None:
    assert "42" not in text_of(client)
    assert client.post("/activate_adapters", json={"adapter_names": ["arithmetic"]}).json() == {
        "adapter_names": ["arithmetic"]
    }
    assert "42" in text_of(client)
    assert "42" not in text_of(client, adapters=[])
    assert "42" not in text_of(client, adapters=["bard"])
    wrong = client.post("/activate_adapters", json={"adapter_names": ["arithmetic", "nobody"]})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "adapter_names"
    assert "42" in text_of(client)


def test_adapters_of_a_request(client: httpx.Client) -> None:
    named = text_of(client, adapters=["arithmetic"])
    assert "42" in named
    assert text_of(client, adapters={"arithmetic": 1.0}) == named
    assert text_of(client, model="arithmetic") == named
    assert text_of(client, lora=[{"id": 0, "scale": 1.0}]) == named
    assert text_of(client, adapters={"arithmetic": 0.0}) == text_of(client)
    for fields, param in (
        ({"adapters": ["nobody"]}, "adapters"),
        ({"adapters": {"arithmetic": 1000}}, "adapters.arithmetic"),
        ({"lora": [{"id": 9, "scale": 1}]}, "lora.0.id"),
        ({"lora": [{"id": 0, "scale": "1"}]}, "lora.0.scale"),
        ({"adapters": ["bard"], "lora": []}, "lora"),
        ({"model": "bard", "adapters": ["json"]}, "adapters"),
    ):
        answer = client.post("/v1/chat/completions", json=chat(QUESTION, **fields))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_scales_as_in_llama_cpp(client: httpx.Client) -> None:
    adapters = client.get("/lora-adapters").json()
    assert [(item["id"], item["name"], item["scale"]) for item in adapters] == [
        (0, "arithmetic", 0.0),
        (1, "capitals", 0.0),
        (2, "json", 0.0),
        (3, "bard", 0.0),
    ]
    assert client.post("/lora-adapters", json=[{"id": 0, "scale": 1.0}, {"id": 3, "scale": 0.25}]).status_code == 200
    assert [item["scale"] for item in client.get("/lora-adapters").json()] == [1.0, 0.0, 0.0, 0.25]
    client.post("/lora-adapters", json=[{"id": 0, "scale": 1}])
    assert "42" in text_of(client)
    assert client.post("/lora-adapters", json=[]).status_code == 200
    assert [item["scale"] for item in client.get("/lora-adapters").json()] == [0.0] * 4


def test_loading_and_unloading_as_in_vllm(lora: Stage, tmp_path: Path) -> None:
    root, outside = tmp_path / "adapters", tmp_path / "outside"
    shutil.copytree(resource_path("demo") / "adapters" / "arithmetic", root / "sums")
    shutil.copytree(root / "sums", outside)
    (root / "link").symlink_to(outside)
    (root / "broken").mkdir()
    server = lora.serve(adapter_roots=(str(root),))
    with client_of(server) as client:

        def load(name: str, path: str) -> httpx.Response:
            return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})

        for path in (str(outside), "../outside", "link", "/etc", "~", ".", str(root), "sums/../../outside", "/nowhere"):
            refused = load("sums", path)
            assert refused.status_code in (400, 403), path
            assert refused.json()["error"]["param"] == "lora_path"
        assert load("sums", "\0").status_code == 400
        assert load("sums", "nothing").json()["error"]["message"] == "There is no such folder."
        assert load("sums", "broken").status_code == 400
        assert load("bard", "sums").json()["error"]["param"] == "lora_name"
        assert load(MODEL, "sums").json()["error"]["param"] == "lora_name"
        try:
            assert load("sums", "sums").text == "Success: LoRA adapter 'sums' added successfully."
            assert "sums" in [model["id"] for model in client.get("/v1/models").json()["data"]]
            assert "42" in text_of(client, model="sums")
        finally:
            gone = client.post("/v1/unload_lora_adapter", json={"lora_name": "sums"})
        assert gone.status_code == 200
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "sums"}).status_code == 404
        assert client.post("/v1/chat/completions", json=chat(QUESTION, model="sums")).status_code == 404


def test_without_roots_no_adapter_is_loaded(client: httpx.Client) -> None:
    folder = str(resource_path("demo") / "adapters" / "bard")
    refused = client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": folder})
    assert refused.status_code == 403
    assert "--adapter-root" in refused.json()["error"]["message"]


def test_adapters_are_not_removed_under_a_running_answer(client: httpx.Client) -> None:
    body = chat("hello", max_tokens=900, ignore_eos=True, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the connection when the iterator goes
        next(lines)
        busy = client.post("/v1/unload_lora_adapter", json={"lora_name": "bard"})
        assert next(lines) is not None
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "busy")
    assert "bard" in [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_every_client_gets_the_answer_to_its_own_command(lora: Stage, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    server = lora.serve(adapter_roots=(str(tmp_path),))
    wrong: list[str] = []
    stop = threading.Event()

    def window() -> None:  # its commands have no tag; half of them fail
        while not stop.wait(0.002):
            lora.worker.send(Activate({"nobody of the window's": 1.0}))
            lora.worker.send(Activate({"json": 0.5}))

    def ask(number: int) -> None:
        with client_of(server) as mine:
            for turn in range(10):
                good = (number + turn) % 2 == 0
                # it is the engine that finds no adapter in the folder
                path, body = "/activate_adapters", {"adapter_names": ["bard"]}
                if not good:
                    path, body = "/v1/load_lora_adapter", {"lora_name": f"own_{number}_{turn}", "lora_path": "broken"}
                answer = mine.post(path, json=body)
                if answer.status_code != (200 if good else 400) or "nobody" in answer.text:
                    wrong.append(f"{number}, {turn}: {answer.status_code} {answer.text}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    toggler = threading.Thread(target=window)
    for thread in (toggler, *threads):
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    stop.set()
    toggler.join(PATIENCE)
    assert not wrong


def test_two_clients_with_different_adapters_and_two_who_toggle(
    lora: Stage, server: HttpServer, client: httpx.Client
) -> None:
    names = ("arithmetic", "capitals")
    long = {"max_tokens": 50, "ignore_eos": True}
    alone = {name: text_of(client, model=name, **long) for name in names}
    both = {name: text_of(client, adapters={name: 0.5, "bard": 1.0}, **long) for name in names}
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    toggles = 0
    stop = threading.Event()

    def ask(name: str) -> None:
        with httpx.Client(base_url=server.url, headers=client.headers, timeout=PATIENCE) as mine:
            for _ in range(4):
                mixed = text_of(mine, adapters={name: 0.5, "bard": 1.0}, **long)
                found[name].append((text_of(mine, model=name, **long), mixed))

    def toggle() -> None:
        nonlocal toggles
        with httpx.Client(base_url=server.url, headers=client.headers, timeout=PATIENCE) as mine:
            while not stop.is_set():
                chosen = [["bard"], [], ["json", "capitals"], ["arithmetic"]][toggles % 4]
                assert mine.post("/activate_adapters", json={"adapter_names": chosen}).status_code == 200
                toggles += 1
                pause(0.01)

    def window() -> None:
        """The chat pane answers in the same batch with the adapters of the moment, while its faders move."""
        sampling = Sampling(max_tokens=900, ignore_end=True)
        lora.worker.send(ChatRequest("pane", (Message("user", "hello"),), sampling, follow_activation=True))
        moves = 0
        while not stop.wait(0.01):
            moves += 1
            lora.worker.send(Activate({"bard": moves % 10 / 10, "arithmetic": 1.0 - moves % 10 / 10}))
        lora.worker.send(Cancel("pane"))

    togglers = [threading.Thread(target=toggle), threading.Thread(target=window)]
    askers = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in (*togglers, *askers):
        thread.start()
    for thread in askers:
        thread.join(PATIENCE)
    stop.set()
    for thread in togglers:
        thread.join(PATIENCE)
    assert toggles > 10
    for name in names:
        assert found[name] == [(alone[name], both[name])] * 4
    assert alone["arithmetic"] != alone["capitals"]


def test_a_request_keeps_the_adapters_it_started_with(client: httpx.Client) -> None:
    long = {"max_tokens": 60, "ignore_eos": True}
    base = text_of(client, **long)
    body = chat(QUESTION, stream=True, **long)
    pieces = []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for number, line in enumerate(answer.iter_lines()):
            if number == 4:
                assert client.post("/activate_adapters", json={"adapter_names": ["bard"]}).status_code == 200
            if line.startswith("data: {"):
                pieces.append(httpx.Response(200, content=line[6:]).json())
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == base
    assert text_of(client, **long) != base
