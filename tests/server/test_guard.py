"""Nothing reaches a handler unless it is allowed: Host, Origin, key, method and content type."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx
import pytest
from support.clock import PATIENCE

from loradesk_engine.serving.http import HttpServer, ServerOptions
from loradesk_engine.serving.http.guard import Guard
from loradesk_engine.serving.http.metrics import Metrics

from .conftest import KEY, Stage, chat, client_of

PORT = 8357
LISTED = "https://desk.example"


class Handler:
    """Stands for all routes and counts what reaches it."""

    def __init__(self) -> None:
        self.reached = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


HOSTS: dict[str | None, bool] = {
    f"127.0.0.1:{PORT}": True,
    f"localhost:{PORT}": True,
    f"LOCALHOST:{PORT}": True,
    f"[::1]:{PORT}": True,
    "proxy.example": True,
    "127.0.0.1": False,
    "127.0.0.1:80": False,
    f"127.0.0.1.evil.example:{PORT}": False,
    f"evil.example:{PORT}": False,
    f"localhost.:{PORT}": False,
    f"127.1:{PORT}": False,
    f"0.0.0.0:{PORT}": False,
    f"[::1]:{PORT}@evil": False,
    f"10.0.0.1:{PORT}": False,
    "": False,
    None: False,
}
ORIGINS: dict[str | None, bool] = {
    None: True,
    LISTED: True,
    "same": True,  # stands for the server's own page
    "null": False,
    "https://evil.example": False,
    f"{LISTED}.evil.example": False,
    "https://DESK.example": False,
    "http://desk.example": False,
    "": False,
    f"http://127.0.0.1:{PORT + 1}": False,
}
METHODS = ("GET", "POST", "PUT", "OPTIONS")
TYPES: dict[str | None, bool] = {
    "application/json": True,
    "application/json; charset=utf-8": True,
    "Application/JSON": True,
    "text/plain": False,
    "application/x-www-form-urlencoded": False,
    "multipart/form-data; boundary=x": False,
    "application/jsonp": False,
    None: False,
}
KEYS = {f"Bearer {KEY}": True, f"Bearer {KEY}x": False, None: False}


def test_a_matrix_of_hosts_origins_methods_types_and_keys() -> None:
    handler = Handler()
    options = ServerOptions(port=PORT, key=KEY, allow_hosts=("proxy.example",), allow_origins=(LISTED,))
    guard = Guard(handler, options, Metrics(), lambda: PORT)
    tried = passed = 0

    async def send_all() -> None:
        nonlocal tried, passed
        for host, origin, method, kind, key in itertools.product(HOSTS, ORIGINS, METHODS, TYPES, KEYS):
            tried += 1
            shown = f"http://{host}" if origin == "same" else origin
            given = {"host": host, "origin": shown, "content-type": kind, "authorization": key}
            expected = HOSTS[host] and ORIGINS[origin] and KEYS[key] and (method != "POST" or TYPES[kind])
            status, headers = await _ask(guard, method, given)
            assert (handler.reached == passed + 1) == expected, (method, given)
            assert (status == 200) == expected, (method, given, status)
            assert ("access-control-allow-origin" in headers) <= (origin == LISTED and HOSTS[host])
            passed += expected

    asyncio.run(send_all())
    assert tried == 16 * 10 * 4 * 8 * 3 >= 1000
    assert passed == handler.reached > 0


async def _ask(guard: Guard, method: str, given: dict[str, str | None]) -> tuple[int, dict[str, str]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.encode(), value.encode()) for name, value in given.items() if value is not None]
    scope = {"type": "http", "method": method, "path": "/v1/models", "headers": headers, "client": ("127.0.0.1", 1)}
    await guard(scope, receive, send)
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_the_same_over_the_wire(server: HttpServer) -> None:
    port = server.url.rpartition(":")[2]
    good = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        assert client.get("/v1/models", headers=good).status_code == 200
        for host in (f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{int(port) + 1}"):
            assert client.get("/v1/models", headers={**good, "Host": host}).status_code == 403
            assert client.get("/health", headers={"Host": host}).status_code == 403
        for fetch in ("cross-site", "same-site"):
            assert client.get("/v1/models", headers={**good, "Sec-Fetch-Site": fetch}).status_code == 403
        plain = client.post("/activate_adapters", content=b'{"adapter_names": []}', headers=good)
        assert plain.status_code == 415


def routes(server: HttpServer) -> list[tuple[str, str]]:
    with client_of(server) as client:
        paths = client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods] + [
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
        ("GET", "/health/"),
        ("GET", "//health"),
        ("GET", "/health/../v1/models"),
        ("HEAD", "/v1/models"),
        ("TRACE", "/v1/models"),
    ]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}0",
        KEY,
        f"Basic {KEY}",
        "Bearer \xe9",
        "Basic !",
    ],
)
def test_every_route_needs_the_key(server: HttpServer, authorization: str | None) -> None:
    tried = routes(server)
    assert len(tried) >= 18
    headers = [] if authorization is None else [("Authorization", authorization.encode("latin-1"))]
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        for method, path in tried:
            if path == "/health":
                continue
            answer = client.request(method, path, headers=[*headers, ("Content-Type", "application/json")])
            assert answer.status_code == 401, (method, path)
            assert "www-authenticate" in answer.headers
        assert client.get("/health").json() == {"status": "ok"}


def test_the_documentation_opens_in_a_browser_with_the_key_as_password(server: HttpServer) -> None:
    with httpx.Client(base_url=server.url, auth=("", KEY), timeout=PATIENCE) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert "/v1/chat/completions" in page.text
        assert "<script" not in page.text
        assert client.get("/openapi.json").json()["openapi"].startswith("3.")
        assert client.get("/v1/models").status_code == 401


def test_listed_origins_get_cors_headers(lora: Stage) -> None:
    server = lora.serve(allow_origins=(LISTED,))
    with httpx.Client(base_url=server.url, headers={"Origin": LISTED}, timeout=PATIENCE) as client:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-evil"}
        preflight = client.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == LISTED
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        answer = client.post(
            "/v1/chat/completions", json=chat("hello", max_tokens=2), headers={"Authorization": f"Bearer {KEY}"}
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == LISTED
        assert answer.headers["vary"] == "Origin"
        foreign = client.options("/v1/chat/completions", headers={**asked, "Origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers


def test_without_a_key_foreign_pages_are_still_kept_out(lora: Stage) -> None:
    server = lora.serve(key=None)
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_unknown_routes_and_methods_have_the_same_shape(client: httpx.Client) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/activate_adapters", 405), ("PUT", "/health", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
