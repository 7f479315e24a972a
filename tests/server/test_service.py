"""Starting, stopping, keys, health, metrics, log, and what happens without a model."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from support.clock import PATIENCE, wait_until

from loradesk_engine.errors import FileFormatError, LoradeskError, RequestError
from loradesk_engine.events import AdaptersActivated
from loradesk_engine.serving.http import HttpServer, ServerOptions
from loradesk_engine.serving.http.keys import own_key
from loradesk_engine.serving.worker import EngineWorker

from .conftest import KEY, MODEL, Stage, chat, client_of


def test_importing_the_server_imports_no_torch() -> None:
    script = (
        "import sys, loradesk_engine.serving.http, loradesk_engine.cli.serve\n"
        "assert 'torch' not in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('PySide6')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)


def test_a_server_leaves_no_threads(lora: Stage) -> None:
    before = set(threading.enumerate())
    server = lora.serve()
    assert server.running
    assert httpx.get(f"{server.url}/health", timeout=PATIENCE).json() == {"status": "ok"}
    assert server.stop()
    assert not server.running
    assert server.stop()
    assert set(threading.enumerate()) <= before


def test_a_port_in_use_is_named(lora: Stage, server: HttpServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(RequestError) as caught:
        lora.serve(port=port)
    assert caught.value.field == "port"
    assert str(port) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"host": "0.0.0.0", "key": KEY}, "host"),
        ({"host": "192.0.2.1", "key": KEY}, "host"),
        ({"host": "0.0.0.0", "allow_remote": True}, "key"),
        ({"host": "example.org", "key": KEY, "allow_remote": True}, "host"),
        ({"port": 70000}, "port"),
        ({"key": "short"}, "key"),
        ({"key": "with spaces in it"}, "key"),
        ({"key": "schlüssel-schlüssel"}, "key"),
        ({"allow_origins": ("*",)}, "allow_origins"),
        ({"allow_origins": ("https://example.org/",)}, "allow_origins"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"request_seconds": float("nan")}, "request_seconds"),
    ],
)
def test_unsafe_options_are_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        ServerOptions(**changes)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_on_all_addresses_only_bare_addresses_are_hosts(lora: Stage) -> None:
    server = lora.serve(host="0.0.0.0", allow_remote=True, allow_hosts=("desk.example",))
    port = server.url.rpartition(":")[2]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
        for host, status in (
            (f"127.0.0.1:{port}", 200),
            (f"192.0.2.7:{port}", 200),
            ("desk.example", 200),
            (f"rebound.example:{port}", 403),
        ):
            assert client.get("/health", headers={"Host": host}).status_code == status
        assert client.get("/v1/models").status_code == 401


def test_the_key_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "server.key"
    key = own_key(path)
    assert len(key) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert own_key(path) == key
    path.chmod(0o644)  # others could have read it
    fresh = own_key(path)
    assert fresh != key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("")
    assert own_key(path) not in (key, fresh, "")
    target = tmp_path / "elsewhere"
    target.write_text("x" * 40)
    path.unlink()
    path.symlink_to(target)
    with pytest.raises(FileFormatError):
        own_key(path)
    assert target.read_text() == "x" * 40


def test_without_a_model() -> None:
    worker = EngineWorker()
    server = HttpServer(worker, ServerOptions(port=0, key=None))
    worker.start()
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            assert client.get("/health").json() == {"status": "no model"}
            assert client.get("/v1/models").json() == {"object": "list", "data": []}
            assert client.get("/lora-adapters").json() == []
            for path, body in (("/v1/chat/completions", chat("x")), ("/lora-adapters", [])):
                answer = client.post(path, json=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_model")
            assert worker.close(60)
            assert client.get("/health").status_code == 503
            answer = client.post("/lora-adapters", json=[])
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_model")
    finally:
        assert server.stop()
    late = HttpServer(worker, ServerOptions(port=0, key=None))  # the engine has ended long since
    late.start()
    try:
        assert httpx.get(f"{late.url}/health", timeout=PATIENCE).json() == {"status": "closed"}
    finally:
        assert late.stop()


def test_metrics_count(lora: Stage) -> None:
    server = lora.serve()
    with client_of(server) as client:
        usage = client.post("/v1/chat/completions", json=chat("hello", max_tokens=7)).json()["usage"]
        client.post("/v1/chat/completions", json=chat("hello", max_tokens=-7))
        client.get("/made/up/by/a/client")
        page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert values['loradesk_tokens_total{kind="completion"}'] == str(usage["completion_tokens"])
    assert values['loradesk_tokens_total{kind="prompt"}'] == str(usage["prompt_tokens"])
    for status in ("200", "400"):
        label = f'{{method="POST",route="/v1/chat/completions",status="{status}"}}'
        assert values[f"loradesk_http_requests_total{label}"] == "1"
    assert values["loradesk_first_token_seconds_count"] == "1"
    assert "made/up" not in page.text
    assert all(re.fullmatch(r'loradesk_\w+(\{(\w+="[^"]*",?)+\})?', name) for name in values)


def test_the_log_has_no_texts_and_no_key(lora: Stage) -> None:
    server = lora.serve()
    seen = len(lora.records)
    with client_of(server) as client:
        client.post("/v1/chat/completions", json=chat("a secret", model="bard", max_tokens=5))
        client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    # a line is written when the answer's last byte has left
    wait_until(lambda: len(lora.records) >= seen + 2, "the lines of both requests")
    answered, refused = lora.records[seen:]
    assert (answered.status, answered.model, answered.adapters) == (200, "bard", {"bard": 1.0})
    assert answered.completion_tokens == 5
    assert answered.seconds > 0
    assert refused.status == 401
    assert refused.note
    assert "secret" not in repr(lora.records)
    assert KEY not in repr(lora.records)


def test_what_the_window_does_is_seen(lora: Stage, client: httpx.Client) -> None:
    from loradesk_engine.commands import Activate

    lora.worker.send(Activate({"json": 0.5}))

    def scale() -> float:
        return {item["name"]: item["scale"] for item in client.get("/lora-adapters").json()}["json"]

    wait_until(lambda: scale() == 0.5, "the window's weight")
    client.post("/activate_adapters", json={"adapter_names": []})
    assert lora.worker.standing[-1] == AdaptersActivated({})


def test_a_server_knows_what_was_loaded_before_it(lora: Stage, client: httpx.Client) -> None:
    client.post("/lora-adapters", json=[{"id": 2, "scale": 0.5}])
    late = lora.serve()
    with client_of(late) as other:
        assert other.get("/health").json() == {"status": "ok"}
        assert other.get("/v1/models").json()["data"][0]["id"] == MODEL
        assert [item["scale"] for item in other.get("/lora-adapters").json()] == [0.0, 0.0, 0.5, 0.0]
    client.post("/activate_adapters", json={"adapter_names": []})


def test_the_server_starts_once(lora: Stage) -> None:
    server = lora.serve()
    with pytest.raises(LoradeskError):
        server.start()
    assert server.stop()


def test_the_model_id(client: httpx.Client) -> None:
    assert client.get(f"/v1/models/{MODEL}").json()["id"] == MODEL
