"""The local server's window: started, asked, watched and stopped, on the real engine and the demo pack."""

from __future__ import annotations

import json
import shutil
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from support.clock import PATIENCE

from loradesk_app.server.log_model import COL_DETAILS, COL_REQUEST, COL_SECONDS, COL_STATUS, LogModel
from loradesk_app.server.snippets import LANGUAGES, snippet
from loradesk_engine.commands import Activate
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import CommandFailed, Problem
from loradesk_engine.serving.http.record import RequestRecord
from loradesk_engine.serving.worker import EngineWorker


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def served(qtbot, make_window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The window with the demo pack and a running server."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    window = make_window(worker=EngineWorker())
    with qtbot.waitSignal(window.client.adapters_activated):
        window.load(demo_settings("xlora"))
    window.open_server()
    window.server_dialog.port.setValue(free_port())
    with qtbot.waitSignal(window.server.started):
        qtbot.mouseClick(window.server_dialog.toggle, Qt.MouseButton.LeftButton)
    return window


def call(dialog, body: dict, key: str | None):
    """POST a chat completion; returns once the answer is here."""
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{dialog.url.text()}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


QUESTION = {"model": "Loradesk demo", "messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}


def in_background(qtbot, window, work):
    """Run it off the GUI thread, so that the window lives on meanwhile."""
    found = []
    window.background.run(work, found.append, found.append)
    qtbot.waitUntil(lambda: bool(found))
    return found[0]


def test_start_ask_watch_and_stop(served, qtbot, tmp_path: Path):
    dialog = served.server_dialog
    key = dialog.key.text()
    file = tmp_path / "config" / "Loradesk" / "server.key"
    assert file.read_text(encoding="utf-8").strip() == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert served.status.server.text() == f"Serving {dialog.url.text().removeprefix('http://').removesuffix('/v1')}"

    answer = in_background(qtbot, served, lambda: call(dialog, QUESTION, key))
    assert answer["choices"][0]["message"]["content"] == "17 + 25 = 42."
    refused = in_background(qtbot, served, lambda: call(dialog, QUESTION, "wrong-key"))
    assert isinstance(refused, urllib.error.HTTPError)
    assert refused.code == 401
    qtbot.waitUntil(lambda: dialog.log.rowCount() == 2)
    cells = [dialog.log.index(row, COL_STATUS).data() for row in range(2)]
    assert cells == ["401", "200"]

    address = dialog.url.text()
    with qtbot.waitSignal(served.server.stopped):
        qtbot.mouseClick(dialog.toggle, Qt.MouseButton.LeftButton)
    assert dialog.toggle.text() == "Start"
    assert not served.status.server.text()
    gone = in_background(qtbot, served, lambda: urllib.request.urlopen(address, timeout=PATIENCE))
    assert isinstance(gone, urllib.error.URLError)


def test_the_desk_and_the_server_share_the_model(served, qtbot):
    dialog, key = served.server_dialog, served.server_dialog.key.text()
    strip = next(strip for strip in served.adapters.strips if strip.name.text() == "arithmetic")
    with qtbot.waitSignal(served.client.adapters_activated):
        qtbot.mouseClick(strip.switch, Qt.MouseButton.LeftButton)
    answer = in_background(qtbot, served, lambda: call(dialog, QUESTION, key))
    assert "42" not in answer["choices"][0]["message"]["content"]


def test_an_answer_to_a_program_is_not_the_windows(served, qtbot):
    dialog, key = served.server_dialog, served.server_dialog.key.text()
    with qtbot.waitSignal(served.client.request_finished):
        served.chat.send("What is the capital of Japan?")
    plot = served.scalings.model
    before = (plot.texts, plot.means.tolist(), served.status.speed.text(), served.chat.model.turns)
    seen = []
    for signal in (served.client.request_queued, served.client.request_started, served.client.tokens_generated):
        signal.connect(seen.append)
    answer = in_background(qtbot, served, lambda: call(dialog, QUESTION, key))
    assert "42" in answer["choices"][0]["message"]["content"]
    served.client.drain()
    assert not seen
    assert (plot.texts, plot.means.tolist(), served.status.speed.text(), served.chat.model.turns) == before


def test_what_a_program_activates_shows_on_the_desk_and_zero_stays_on(served, qtbot):
    dialog, key = served.server_dialog, served.server_dialog.key.text()
    strips = {strip.name.text(): strip for strip in served.adapters.strips}
    with qtbot.waitSignal(served.client.adapters_activated):
        strips["bard"].number.setValue(0)
    assert strips["bard"].switch.isChecked()

    def activate() -> int:
        body = json.dumps({"adapter_names": ["json", "capitals"]}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        address = dialog.url.text().removesuffix("/v1") + "/activate_adapters"
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=60) as reply:
            return reply.status

    with qtbot.waitSignal(served.client.adapters_activated):
        assert in_background(qtbot, served, activate) == 200
    assert [name for name, strip in strips.items() if strip.switch.isChecked()] == ["capitals", "json"]


def test_the_key_is_hidden_until_asked_for(served, qtbot):
    dialog = served.server_dialog
    key = dialog.key.text()
    assert key not in dialog.code.toPlainText()
    qtbot.mouseClick(dialog.copy_snippet, Qt.MouseButton.LeftButton)
    assert key in QGuiApplication.clipboard().text()
    qtbot.mouseClick(dialog.show_key, Qt.MouseButton.LeftButton)
    assert key in dialog.code.toPlainText()


def test_closing_the_window_stops_the_server(served, qtbot):
    address = served.server_dialog.url.text()
    with qtbot.waitSignal(served.closed_down):
        served.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=PATIENCE)


def test_a_port_in_use_is_said_and_the_window_lives_on(qtbot, window, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    window.open_server()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        window.server_dialog.port.setValue(taken.getsockname()[1])
        with qtbot.waitSignal(window.server.failed):
            qtbot.mouseClick(window.server_dialog.toggle, Qt.MouseButton.LeftButton)
    assert window.server_dialog.problem.isVisible()
    assert "port" in window.server_dialog.problem.sentence.text()
    assert window.server_dialog.toggle.isEnabled()


def test_the_log_keeps_the_newest(qtbot, theme):
    model = LogModel(theme)
    for number in range(600):
        model.add(RequestRecord(0.0, "127.0.0.1:1", "GET", f"/{number}", 200, adapters={"a": 1.0, "b": 0.5}))
    assert model.rowCount() == 500
    assert model.index(0, COL_REQUEST).data() == "GET /599"
    assert model.index(0, COL_DETAILS).data() == "a, b 0.5"
    model.add(RequestRecord(0.0, "127.0.0.1:1", "GET", "/x", 401, note="A key is needed."))
    assert model.index(0, COL_DETAILS).data() == "A key is needed."
    assert model.index(0, COL_STATUS).data(Qt.ItemDataRole.ForegroundRole) == theme.color("danger")
    assert model.index(1, COL_STATUS).data(Qt.ItemDataRole.ForegroundRole) is None


def test_the_window_shows_what_counts_now(served, qtbot):
    dialog = served.server_dialog
    assert not dialog.port.isVisible()
    assert dialog.url.isVisible()
    assert dialog.key.isVisible()
    assert not dialog.table.isVisible()  # nothing was asked yet
    in_background(qtbot, served, lambda: call(dialog, QUESTION, dialog.key.text()))
    qtbot.waitUntil(dialog.table.isVisible)
    for width, hidden in ((440, True), (720, False)):
        dialog.resize(width, 640)
        qtbot.waitUntil(lambda hidden=hidden: dialog.table.isColumnHidden(COL_SECONDS) == hidden)
        header = dialog.table.horizontalHeader()
        assert header.sectionSize(COL_REQUEST) > 100
    with qtbot.waitSignal(served.server.stopped):
        qtbot.mouseClick(dialog.toggle, Qt.MouseButton.LeftButton)
    assert dialog.port.isVisible()
    assert not dialog.url.isVisible()
    qtbot.mouseClick(dialog.clear_log, Qt.MouseButton.LeftButton)
    assert not dialog.table.isVisible()


def test_a_program_that_fails_to_activate_is_no_matter_of_the_window(qtbot, window, worker):
    problem = Problem("AdapterError", "There is no adapter 'x'.")
    worker.tell(CommandFailed(problem, "of a program"))
    window.client.drain()
    assert not window.banner.isVisible()
    window.adapters.model.set_on(0, False)
    worker.replies[Activate] = lambda command: [CommandFailed(problem)]
    window.adapters.model.set_on(1, False)
    qtbot.waitUntil(lambda: len(worker.commands(Activate)) == 2)
    window.client.drain()
    assert window.banner.isVisible()


@pytest.mark.parametrize("language", [language for language, _ in LANGUAGES])
@pytest.mark.parametrize("key", ["loradesk-0123456789", None])
def test_programs_are_whole(language: str, key: str | None, tmp_path: Path):
    text = snippet(language, "http://127.0.0.1:8357", key, 'a "model\'s"')
    assert "127.0.0.1:8357" in text
    assert (key or "Bearer") in text if key else "Bearer" not in text
    if language == "python":
        compile(text, "snippet", "exec")
    if language == "rust" and shutil.which("rustc"):
        (tmp_path / "client.rs").write_text(text, encoding="utf-8")
        subprocess.run(["rustc", "--emit=metadata", "client.rs"], cwd=tmp_path, check=True, timeout=120)
    if language == "curl":
        subprocess.run([shutil.which("sh") or "sh", "-n", "-c", text], check=True)


def test_the_program_has_the_port_that_is_chosen(window):
    window.open_server()
    dialog = window.server_dialog
    dialog.port.setValue(9123)
    assert "127.0.0.1:9123" in dialog.code.toPlainText()
