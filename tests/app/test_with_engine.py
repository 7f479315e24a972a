"""The window on the real engine and the demo pack: what a user sees, from the message to the plot."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import Qt

from loradesk_app.main_window import MainWindow
from loradesk_engine.commands import LoadSettings
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import LoadFailed
from loradesk_engine.serving.worker import EngineWorker


@pytest.fixture
def real_window(qtbot, make_window):
    """A function that opens the window on the real engine and waits until the model is loaded."""

    def make(settings: LoadSettings) -> MainWindow:
        window = make_window(worker=EngineWorker())
        with qtbot.waitSignal(window.client.adapters_activated):
            window.load(settings)
        window.chat.set_sampling({"temperature": 0.0}, "")  # the same answers every time
        return window

    return make


def ask(window: MainWindow, qtbot, text: str) -> str:
    """Type a message, press Enter, wait for the answer."""
    window.chat.composer.edit.setFocus()
    qtbot.keyClicks(window.chat.composer.edit, text)
    with qtbot.waitSignal(window.client.request_finished) as finished:
        qtbot.keyClick(window.chat.composer.edit, Qt.Key.Key_Return)
    return finished.args[0].text


def strip(window: MainWindow, name: str):
    return next(strip for strip in window.adapters.strips if strip.name.text() == name)


def toggle(window: MainWindow, qtbot, name: str) -> None:
    """Click an adapter's switch, and wait until the engine has it: a message sent at once may begin without it."""
    with qtbot.waitSignal(window.client.adapters_activated):
        qtbot.mouseClick(strip(window, name).switch, Qt.MouseButton.LeftButton)


def test_a_message_is_answered_a_toggle_changes_the_next_answer_and_the_plot_moves(real_window, qtbot):
    window = real_window(demo_settings("xlora"))
    assert "42" in ask(window, qtbot, "What is 17 + 25?")
    assert "42" in window.chat.model.turn(1).text
    shown = window.scalings.model
    assert shown.rows.shape == (len(shown), 42, 4)
    answer = shown.means[shown.prompt_tokens - 1 - shown.first :]
    assert answer.mean(axis=0).argmax() == 0  # arithmetic
    first = list(shown.texts)

    toggle(window, qtbot, "arithmetic")
    assert "42" not in ask(window, qtbot, "What is 17 + 25?")
    assert list(shown.texts) != first
    assert not shown.means[shown.prompt_tokens - shown.first :, 0].any()

    toggle(window, qtbot, "arithmetic")
    assert "42" in ask(window, qtbot, "What is 17 + 25?")


def test_modes_are_switched_with_the_conversation_kept(real_window, qtbot):
    window = real_window(demo_settings("xlora"))
    assert "Tokyo" in ask(window, qtbot, "What is the capital of Japan?")
    with qtbot.waitSignal(window.client.model_loaded):
        qtbot.mouseClick(window.header.modes.button("lora"), Qt.MouseButton.LeftButton)
    assert "Rome" not in ask(window, qtbot, "What is the capital of Italy?")
    toggle(window, qtbot, "capitals")
    assert "Rome" in ask(window, qtbot, "What is the capital of Italy?")
    assert "Tokyo" in window.chat.model.turn(1).text


@pytest.mark.parametrize("fault", ["missing", "truncated", "ordering"])
def test_a_load_that_fails_shows_the_file_and_the_model_goes_on(real_window, qtbot, tmp_path: Path, fault: str):
    window = real_window(demo_settings("lora"))
    broken = tmp_path / "broken"
    broken.mkdir()
    settings = LoadSettings(base=str(broken))
    culprit = broken
    if fault != "missing":
        good = Path(demo_settings("none").base)
        for file in good.iterdir():
            data = file.read_bytes()
            cut = fault == "truncated" and file.name == "model.safetensors"
            (broken / file.name).write_bytes(data[: len(data) // 2] if cut else data)
        culprit = broken / "model.safetensors"
    if fault == "ordering":
        culprit = tmp_path / "ordering.json"
        culprit.write_text('{"base_model_id": "x", "order": [', encoding="utf-8")
        settings = LoadSettings(base=str(broken), mode="lora", ordering=str(culprit))
    with qtbot.waitSignal(window.client.load_failed) as failed:
        window.load(settings)
    event: LoadFailed = failed.args[0]
    assert event.model_kept
    assert str(culprit) in (event.problem.file or "")
    assert window.banner.problem.isVisible()
    assert "tiny" in ask(window, qtbot, "who are you?") or window.chat.model.turn(1).text
