"""A model hub on the loopback address: what huggingface_hub asks for when it downloads a repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

from support.clock import PATIENCE

CHUNK = 2**16
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Repositories by id, and what was asked.

    Attributes:
        gated: ids that answer only to a token.
        cut: names of files whose connection ends in the middle, once.
        damaged: names of files that arrive with a changed byte.
        asked: method and path of every request.
        ranges: what parts of files were asked for: name -> header `Range`.
        stall: file name -> event to wait for before the second half of the file is sent.
        whole: whether files are always sent whole, whatever part was asked for.
        served: bytes of files that were sent: name -> count.
        names: what the hub says of a repository's files instead of the truth: id -> list of siblings.
    """

    repositories: dict[str, Path]
    gated: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    ranges: dict[str, str] = field(default_factory=dict)
    stall: dict[str, threading.Event] = field(default_factory=dict)
    whole: bool = False
    served: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    url: str = ""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve on a free port; `hub.url` is the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path))
            if path.startswith("/api/models/"):
                parts = path.removeprefix("/api/models/").split("/revision/")
                if self.allowed(parts[0]) and self.known(parts[1] if len(parts) > 1 else "main"):
                    self.info(parts[0])
            elif "/resolve/" in path:
                repo, _, rest = path[1:].partition("/resolve/")
                revision, _, name = rest.partition("/")
                if self.allowed(repo) and self.known(revision):
                    self.file(hub.repositories[repo] / name, body)
            else:
                self.refuse(404, "EntryNotFound")

        def allowed(self, repo: str) -> bool:
            if repo not in hub.repositories:
                self.refuse(401, "RepoNotFound")
                return False
            token, given = hub.gated.get(repo), self.headers.get("Authorization")
            if given is not None and given not in {f"Bearer {known}" for known in hub.gated.values()}:
                self.refuse(401, "", "Invalid credentials in Authorization header")
                return False
            if token is not None and given != f"Bearer {token}":
                self.refuse(403, "GatedRepo")
                return False
            return True

        def known(self, revision: str) -> bool:
            if revision not in ("main", COMMIT):
                self.refuse(404, "RevisionNotFound")
                return False
            return True

        def refuse(self, status: int, code: str, message: str = "") -> None:
            self.send_response(status)
            for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def info(self, repo: str) -> None:
            folder = hub.repositories[repo]
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            data = json.dumps(
                {
                    "_id": "1",
                    "id": repo,
                    "modelId": repo,
                    "sha": COMMIT,
                    "siblings": hub.names.get(
                        repo,
                        [
                            {"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size, **large(path)}
                            for path in files
                        ],
                    ),
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def file(self, path: Path, body: bool) -> None:
            if not path.is_file():
                self.refuse(404, "EntryNotFound")
                return
            data = path.read_bytes()
            tag, whole = hashlib.sha256(data).hexdigest(), len(data)
            if path.name in hub.damaged:
                data = data[:-1] + bytes([data[-1] ^ 1])
            wanted = self.headers.get("Range")
            part = wanted is not None and body and not hub.whole
            if wanted is not None and body:
                hub.ranges[path.name] = wanted
            if wanted is not None and part:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                end = min(int(last) + 1, whole) if last else whole
                data = data[int(first) : end]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{whole}")
            else:
                self.send_response(200)
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                half = len(data) // 2
                self.send(path.name, data[:half])
                if path.name in hub.stall:
                    self.wfile.flush()
                    hub.stall[path.name].wait(PATIENCE)
                if path.name in hub.cut:
                    hub.cut.discard(path.name)
                    self.close_connection = True
                    return
                self.send(path.name, data[half:])

        def send(self, name: str, data: bytes) -> None:
            """Send a file's bytes and count them; whoever asked may have gone before the end."""
            try:
                for start in range(0, len(data), CHUNK):
                    self.wfile.write(data[start : start + CHUNK])
                    hub.served[name] += len(data[start : start + CHUNK])
            except ConnectionError:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    def large(path: Path) -> dict[str, object]:
        """What the hub tells of files in its large-file storage."""
        if path.suffix not in (".safetensors", ".gguf"):
            return {}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"lfs": {"size": path.stat().st_size, "sha256": digest, "pointerSize": 134}}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # its end waits so long
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Make huggingface_hub ask the hub at an address, with a cache of its own."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
