"""Nothing that was said, and no key or token, is in the log after a chat over the window and over HTTP."""

from __future__ import annotations

import json
import logging
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt

from loradesk_engine.commands import LoadSettings
from loradesk_engine.demo import demo_settings
from loradesk_engine.formats.tokenizer import Tokenizer
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.log.levels import Levels
from loradesk_engine.log.trail import Trail
from loradesk_engine.serving.worker import EngineWorker

IN_WINDOW = "Zanzibar quokka, what is 17 + 25?"
OVER_HTTP = "Timbuktu axolotl, what is the capital of Japan?"
SYSTEM = "You are a cassowary."
WRONG_KEY = "wrong-key-of-a-pangolin"
API_KEY = "sk-proj-Wombat0123456789"
TOKEN = "hf_NumbatToken0123456789"
PLAIN_TOKEN = "bandicoot-token-without-a-prefix"
WORDS = ("Zanzibar", "quokka", "17 + 25", "= 42", "Timbuktu", "axolotl", "Tokyo", "cassowary", "pangolin")
SECRETS = ("Wombat", "Numbat", "bandicoot", "kookaburra")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def served(qtbot: Any, make_window: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The window on the real engine with its server, and a log of everything; gives the window and its log."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_TOKEN", PLAIN_TOKEN)
    with Trail("window", Levels(logging.DEBUG), folder=tmp_path / "log") as trail:
        window = make_window(worker=EngineWorker(), trail=trail)
        with qtbot.waitSignal(window.client.adapters_activated):
            window.load(demo_settings("xlora"))
        window.chat.set_sampling({"temperature": 0.0}, SYSTEM)
        window.open_server()
        window.server_dialog.port.setValue(free_port())
        with qtbot.waitSignal(window.server.started):
            qtbot.mouseClick(window.server_dialog.toggle, Qt.MouseButton.LeftButton)
        yield window, trail


def post(url: str, path: str, body: bytes, key: str) -> int:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body, headers), timeout=60) as answer:
            return answer.read() and answer.status
    except urllib.error.HTTPError as problem:
        return problem.code
    except (urllib.error.URLError, ConnectionError):  # a defect of the server ends the connection
        return 0


def ask(window: Any, qtbot: Any, text: str, signal: Any) -> None:
    qtbot.keyClicks(window.chat.composer.edit, text)
    with qtbot.waitSignal(signal):
        qtbot.keyClick(window.chat.composer.edit, Qt.Key.Key_Return)


def in_background(qtbot: Any, window: Any, work: Any) -> Any:
    found: list[Any] = []
    window.background.run(work, found.append, found.append)
    qtbot.waitUntil(lambda: bool(found))
    return found[0]


def chat_body(**changes: Any) -> bytes:
    message = {"role": "user", "content": OVER_HTTP}
    return json.dumps({"model": "Loradesk demo", "messages": [message], "temperature": 0, **changes}).encode()


def test_neither_keys_nor_tokens_nor_what_was_said_are_in_the_log(served, qtbot, tmp_path, monkeypatch) -> None:
    window, trail = served
    url, key = window.server_dialog.url.text(), window.server_dialog.key.text()
    ask(window, qtbot, IN_WINDOW, window.client.request_finished)

    def over_http() -> list[int]:
        """What clients send, right and wrong."""
        bodies = [
            chat_body(),
            chat_body(stream=True),
            chat_body(top_p=OVER_HTTP),
            chat_body(messages=[{"role": OVER_HTTP, "content": OVER_HTTP}]),
            chat_body(messages=OVER_HTTP),
            chat_body(**{OVER_HTTP: 1}),
            chat_body(model=OVER_HTTP),
            chat_body(stop=[OVER_HTTP], max_tokens=-1),
            chat_body()[:-5],
            json.dumps(OVER_HTTP).encode(),
        ]
        codes = [post(url, "/chat/completions", body, key) for body in bodies]
        codes += [post(url, "/chat/completions", chat_body(), wrong) for wrong in (WRONG_KEY, API_KEY, "x")]
        codes.append(post(url, f"/models?api_key={API_KEY}", b"{}", key))
        codes.append(
            post(url, "/completions", json.dumps({"model": "Loradesk demo", "prompt": OVER_HTTP}).encode(), key)
        )
        return codes

    codes = in_background(qtbot, window, over_http)
    assert codes[:2] == [200, 200]
    assert all(code >= 400 for code in codes[2:6])
    assert codes[10:13] == [401, 401, 401]

    # Defects that quote what they were given: in the engine's step, in its tokenizer, in a job of the window.
    def broken_step(self: EngineCore) -> None:
        raise RuntimeError(f"cannot go on with {IN_WINDOW} and {OVER_HTTP!r}")

    def broken_tokenizer(self: Tokenizer, messages: Any) -> None:
        raise ValueError(messages)

    with monkeypatch.context() as patch:
        patch.setattr(EngineCore, "step", broken_step)
        ask(window, qtbot, IN_WINDOW, window.client.request_failed)
        in_background(qtbot, window, lambda: post(url, "/chat/completions", chat_body(), key))
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "chat_ids", broken_tokenizer)
        ask(window, qtbot, IN_WINDOW, window.client.request_failed)
        in_background(qtbot, window, lambda: post(url, "/chat/completions", chat_body(), key))
    in_background(qtbot, window, lambda: {}[IN_WINDOW])
    in_background(qtbot, window, lambda: int(f"{API_KEY} {key}"))

    # Tokens of the hub, in a load that fails and in messages of libraries.
    with qtbot.waitSignal(window.client.load_failed):
        window.load(LoadSettings(base=str(tmp_path / "gone"), token="kookaburra-token"))
    library = logging.getLogger("huggingface_hub.file_download")
    library.warning("denied: Authorization: Bearer %s, %s, %s, kookaburra-token", TOKEN, PLAIN_TOKEN, key)

    text = "".join(path.read_text("utf-8") for path in trail.folder.glob("*.log"))
    for hidden in (*WORDS, *SECRETS, key, key.removeprefix("loradesk-")[:12]):
        assert hidden not in text
        assert all(hidden not in entry.text for entry in trail.ring.since(0)[0])
    for expected in ("Request ", "tokens/s", "POST /v1/chat/completions: 200", ": 401 in", "broken_step", "chat_ids"):
        assert expected in text
    window.log.dialog.close()
