"""The log in the window: its model, its own window, reports, and the dialog after a defect."""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QEvent, QPoint, Qt, QTimer
from PySide6.QtGui import QDesktopServices, QGuiApplication
from PySide6.QtTest import QAbstractItemModelTester
from PySide6.QtWidgets import QApplication, QFileDialog

from loradesk_app.log.log_delegate import CHEVRON
from loradesk_app.log.log_desk import LogDesk
from loradesk_app.log.log_model import COL_MESSAGE, LogModel
from loradesk_app.log.report import PARTS
from loradesk_app.log.report_dialog import ReportDialog
from loradesk_engine.commands import Activate
from loradesk_engine.demo import demo_settings
from loradesk_engine.errors import FileFormatError
from loradesk_engine.events import WorkerClosed
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.log.entry import Entry
from loradesk_engine.log.levels import Levels
from loradesk_engine.log.trail import Trail
from loradesk_engine.serving.worker import EngineWorker

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR
TRACE = 'Traceback (most recent call last):\n  File "loop.py", line 214, in step\nRuntimeError: an illegal access'


def an_entry(number: int = 0, level: int = INFO, logger: str = "loradesk_engine.serving", detail: str = "") -> Entry:
    return Entry(1.8e9 + number, level, logger, f"request {number}: begun", detail)


@pytest.fixture
def trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any):
    """A running log. What pytest does about uncaught errors comes after it, and is kept from failing the test."""
    monkeypatch.setattr(threading, "excepthook", lambda given: None)
    with qtbot.capture_exceptions(), Trail("window", Levels(DEBUG), folder=tmp_path / "log") as trail:
        yield trail


@pytest.fixture
def window(make_window, trail: Trail):
    """A window with the demo pack on a scripted engine, and a log."""
    return make_window(demo_settings("xlora"), trail=trail)


def content(trail: Trail) -> str:
    return trail.file.path.read_text("utf-8")


# -- the model ---------------------------------------------------------------------------------------------------


def test_the_model_keeps_the_rules_of_qt_while_it_grows_drops_filters_and_folds(qtbot, theme) -> None:
    model = LogModel(theme, limit=20)
    QAbstractItemModelTester(model, QAbstractItemModelTester.FailureReportingMode.Fatal)
    levels, loggers = (DEBUG, INFO, WARNING, ERROR), ("loradesk_engine.serving", "loradesk_app.background", "asyncio")
    for start in range(0, 100, 7):
        entries = [
            an_entry(n, levels[n % 4], loggers[n % 3], TRACE if n % 4 == 3 else "") for n in range(start, start + 7)
        ]
        model.add(entries)
        if model.rowCount():
            model.unfold(model.rowCount() - 1, True)
        model.set_filter(levels[start % 4], "" if start % 2 else "engine")
    assert model.total == 20
    model.set_filter(DEBUG, "")
    assert [entry.message for entry in model.entries()] == [f"request {n}: begun" for n in range(85, 105)]
    assert sum(model.levels.values()) == 20 == sum(model.sources.values())
    model.set_entries(an_entry(n) for n in range(30))
    assert model.rowCount() == 20
    assert model.unfolded_rows() == []


def test_more_entries_at_once_than_the_model_holds(qtbot, theme) -> None:
    model = LogModel(theme, limit=5)
    QAbstractItemModelTester(model, QAbstractItemModelTester.FailureReportingMode.Fatal)
    model.add([an_entry(n) for n in range(3)])
    model.add([an_entry(n) for n in range(10, 30)])
    assert [entry.message for entry in model.entries()] == [f"request {n}: begun" for n in range(25, 30)]


def test_search_looks_into_messages_details_and_sources(qtbot, theme) -> None:
    model = LogModel(theme)
    model.add([an_entry(1), an_entry(2, ERROR, detail=TRACE), an_entry(3, logger="loradesk_app.x")])
    assert model.find("REQUEST 1") == [0]
    assert model.find("illegal access") == [1]
    assert model.find("window") == [2]


# -- the window --------------------------------------------------------------------------------------------------


@pytest.fixture
def log_window(window, trail: Trail, qtbot):
    log = logging.getLogger("loradesk_engine.test_log")
    log.debug("request 7: 63 prompt tokens")
    log.info("request 8: 118 prompt tokens")
    log.warning("no token was sent")
    log.info("plain\n%s", TRACE)
    log.debug("request 8: done")
    shown = window.log.open()
    qtbot.waitExposed(shown)
    return shown


def messages(log_window) -> list[str]:
    return [entry.message for entry in log_window.shown_entries()]


def test_the_menu_opens_it_and_it_is_live(window, trail, qtbot) -> None:
    action = next(action for action in window.actions() if action.text() == "&Log")
    action.trigger()
    assert window.log.window.isVisible()
    logging.getLogger("loradesk_engine.x").info("a new line")
    qtbot.waitUntil(lambda: "a new line" in messages(window.log.window))


def test_levels_and_sources_filter(log_window, qtbot) -> None:
    qtbot.mouseClick(log_window.levels.button("warning"), Qt.MouseButton.LeftButton)
    assert messages(log_window) == ["no token was sent"]
    assert log_window.levels.button("warning").text().endswith("1")
    qtbot.mouseClick(log_window.levels.button("error"), Qt.MouseButton.LeftButton)
    assert messages(log_window) == []
    assert log_window.pages.currentIndex() == 1
    qtbot.mouseClick(log_window.levels.button("all"), Qt.MouseButton.LeftButton)
    log_window.source.setCurrentIndex(log_window.source.findData("engine"))
    log_window.source.activated.emit(log_window.source.currentIndex())
    assert {entry.source for entry in log_window.shown_entries()} == {"engine"}


def test_search_goes_from_hit_to_hit_and_unfolds(log_window, qtbot) -> None:
    qtbot.keyClicks(log_window.search, "request 8")
    qtbot.waitUntil(lambda: log_window.hits.text() == "2 found")
    qtbot.keyClick(log_window.search, Qt.Key.Key_Return)
    first = log_window.table.currentIndex().row()
    qtbot.keyClick(log_window, Qt.Key.Key_F3)
    assert log_window.hits.text() == "2 of 2"
    assert log_window.table.currentIndex().row() > first
    log_window.search.setText("illegal access")
    qtbot.waitUntil(lambda: log_window.hits.text() == "1 found")
    log_window.next_hit(+1)
    row = log_window.table.currentIndex().row()
    assert log_window.model.is_unfolded(row)
    assert log_window.table.rowHeight(row) > 3 * log_window.table.verticalHeader().defaultSectionSize()


def test_a_traceback_folds_by_key_and_by_click(log_window, qtbot) -> None:
    row = messages(log_window).index("plain")
    log_window._choose(row)
    log_window.table.setFocus()
    qtbot.keyClick(log_window.table, Qt.Key.Key_Right)
    assert log_window.model.is_unfolded(row)
    qtbot.keyClick(log_window.table, Qt.Key.Key_Left)
    assert not log_window.model.is_unfolded(row)
    rect = log_window.table.visualRect(log_window.model.index(row, COL_MESSAGE))
    place = QPoint(rect.right() - CHEVRON // 2, rect.top() + 8)
    qtbot.mouseClick(log_window.table.viewport(), Qt.MouseButton.LeftButton, pos=place)
    assert log_window.model.is_unfolded(row)


def test_copy_takes_the_chosen_entries_or_all(log_window, qtbot) -> None:
    log_window.copy()
    assert "request 7" in QGuiApplication.clipboard().text()
    log_window._choose(messages(log_window).index("plain"))
    qtbot.mouseClick(log_window.copy_button, Qt.MouseButton.LeftButton)
    copied = QGuiApplication.clipboard().text()
    assert "plain" in copied
    assert "RuntimeError: an illegal access" in copied
    assert "request 7" not in copied


def test_follow_stops_for_a_reader_and_counts_new_entries(log_window, qtbot) -> None:
    log = logging.getLogger("loradesk_engine.x")
    for number in range(100):
        log.info("line %d", number)
    log_window.update_entries()
    bar = log_window.table.verticalScrollBar()
    assert bar.value() == bar.maximum()
    log_window.table.setFocus()
    log_window._choose(log_window.model.rowCount() - 1)
    qtbot.keyClick(log_window.table, Qt.Key.Key_PageUp)
    assert not log_window.follow.isChecked()
    bar.setValue(0)
    for number in range(12):
        log.info("later %d", number)
    log_window.update_entries()
    assert bar.value() == 0
    assert log_window.follow.text() == "12 new"
    log_window.table.setFocus()
    qtbot.keyClick(log_window.table, Qt.Key.Key_End)
    assert bar.value() == bar.maximum()
    assert log_window.follow.text() == "Follow"


def test_an_earlier_run_is_read_in_the_background(window, trail, qtbot, tmp_path) -> None:
    earlier = an_entry(41, ERROR, detail=TRACE)
    (trail.folder / "window-20260101-120000-41.log").write_text(f"{earlier.text}\n", "utf-8")
    shown = window.log.open()
    qtbot.waitUntil(lambda: shown.run.count() == 2)
    assert shown.run.itemText(1).startswith("window, 1 ")
    shown.run.setCurrentIndex(1)
    shown.run.activated.emit(1)
    qtbot.waitUntil(lambda: messages(shown) == [earlier.message])
    assert shown.model.entry(0).detail == TRACE
    shown.run.setCurrentIndex(0)
    shown.run.activated.emit(0)
    assert [message.split()[0] for message in messages(shown)] == ["Loradesk"]


def test_a_log_that_cannot_be_written_says_so(make_window, tmp_path, qtbot) -> None:
    (tmp_path / "log").write_text("no folder")
    with Trail("window", folder=tmp_path / "log") as trail:
        window = make_window(trail=trail)
        shown = window.log.open()
        shown.update_entries()
        assert "cannot be written" in shown.footer.text()
        assert "kept in memory" in shown.footer.text()
        assert messages(shown)


def test_open_folder(log_window, trail, monkeypatch, qtbot) -> None:
    opened = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    qtbot.mouseClick(log_window.folder_button, Qt.MouseButton.LeftButton)
    assert opened == [str(trail.folder)]


# -- reports -----------------------------------------------------------------------------------------------------


def test_a_report_is_saved_exactly_as_it_was_shown(window, log_window, tmp_path, monkeypatch, qtbot) -> None:
    window.settings.set("system_prompt", "You are a walrus.")
    window.settings.set("input_history", ["my secret diary"])
    window.settings.set("sampling", {"temperature": 0.5, "stop": ["my stop word"]})
    logging.getLogger("loradesk_engine.x").info("Reading %s", Path.home() / "models" / "a.gguf")
    target = tmp_path / "report.txt"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_arguments: (str(target), ""))
    qtbot.mouseClick(log_window.report_button, Qt.MouseButton.LeftButton)
    (dialog,) = log_window.findChildren(ReportDialog)
    qtbot.waitUntil(dialog.save.isEnabled)
    shown = dialog.preview.toPlainText()
    for expected in ("processor: ", "python: 3.", '"temperature": 0.5', "request 8: done", "~/models/a.gguf"):
        assert expected in shown
    for secret in ("walrus", "diary", "stop word", f"Reading {Path.home()}"):
        assert secret not in shown
    dialog.boxes["log"].setChecked(False)
    assert "request 8" not in dialog.preview.toPlainText()
    final = dialog.preview.toPlainText()
    with qtbot.waitSignal(window.log.saved):
        qtbot.mouseClick(dialog.save, Qt.MouseButton.LeftButton)
    assert target.read_text("utf-8") == final
    assert set(dict(PARTS)) == {"versions", "settings", "log"}


# -- defects -----------------------------------------------------------------------------------------------------


def the_dialog(window, qtbot):
    qtbot.waitUntil(lambda: window.log.dialog is not None)
    dialog = window.log.dialog
    assert dialog.isVisible()
    qtbot.waitUntil(lambda: "Checking" not in dialog.chat_line.text())
    return dialog


def test_a_background_job_leaves_a_traceback_and_a_dialog(window, trail, qtbot) -> None:
    def broken_job() -> None:
        raise RuntimeError("the job is broken")

    window.background.run(broken_job)
    dialog = the_dialog(window, qtbot)
    assert "in broken_job" in content(trail)
    assert "RuntimeError: the job is broken" in content(trail)
    assert "the job is broken" in dialog.what.text()
    assert dialog.model_line.text() == "The engine runs, and loradesk-demo is still loaded."
    assert dialog.chat_line.text() == "The conversation is saved."
    assert str(trail.file.path) in dialog.place.text().replace("\u200b", "")
    qtbot.mouseClick(dialog.copy_details, Qt.MouseButton.LeftButton)
    assert "in broken_job" in QGuiApplication.clipboard().text()
    qtbot.mouseClick(dialog.open_log, Qt.MouseButton.LeftButton)
    row = window.log.window.table.currentIndex().row()
    assert window.log.window.model.entry(row).level == ERROR
    assert window.log.window.model.is_unfolded(row)
    qtbot.mouseClick(dialog.close_button, Qt.MouseButton.LeftButton)
    assert window.log.dialog is None


def test_an_expected_error_of_a_job_is_no_defect(window, trail, qtbot) -> None:
    def missing() -> None:
        raise FileFormatError("The file does not exist.", file="/a/b")

    window.background.run(missing)
    qtbot.waitUntil(lambda: "WARNING loradesk_app.background: A background job failed" in content(trail))
    QApplication.processEvents()
    assert window.log.dialog is None


def test_a_slot_leaves_a_traceback_and_a_dialog(window, trail, qtbot) -> None:
    def broken_slot() -> None:
        raise KeyError("no such row")

    QTimer.singleShot(0, window, broken_slot)
    dialog = the_dialog(window, qtbot)
    assert "in broken_slot" in content(trail)
    assert "KeyError" in dialog.what.text()


def test_a_thread_leaves_a_traceback_and_a_dialog(window, trail, qtbot) -> None:
    def broken_thread() -> None:
        raise ValueError("the thread is broken")

    threading.Thread(target=broken_thread, name="loradesk-broken").start()
    dialog = the_dialog(window, qtbot)
    assert "in broken_thread" in content(trail)
    assert "loradesk-broken" in dialog.what.text()


@pytest.mark.parametrize("place", ["step", "activate"])
def test_the_worker_leaves_a_traceback_and_a_dialog(make_window, trail, qtbot, monkeypatch, place) -> None:
    window = make_window(worker=EngineWorker(), trail=trail)
    with qtbot.waitSignal(window.client.adapters_activated):
        window.load(demo_settings("lora"))

    def broken(*_arguments: object) -> None:
        raise TypeError("a slip in the engine")

    monkeypatch.setattr(EngineCore, place, broken)
    if place == "step":
        qtbot.keyClicks(window.chat.composer.edit, "What is 17 + 25?")
        qtbot.keyClick(window.chat.composer.edit, Qt.Key.Key_Return)
    else:
        window.client.send(Activate({"arithmetic": 1.0}))
    dialog = the_dialog(window, qtbot)
    assert "in broken" in content(trail)
    assert "TypeError: a slip in the engine" in content(trail)
    assert "is still loaded" in dialog.model_line.text()
    monkeypatch.undo()
    with qtbot.waitSignal(window.client.adapters_activated):  # so it is
        window.client.send(Activate({"arithmetic": 1.0}))


def test_the_dialog_does_not_claim_that_an_ended_worker_runs(window, worker, trail, qtbot) -> None:
    worker.closed = True
    worker.tell(WorkerClosed())
    logging.getLogger("loradesk_engine.x").error("It ended", exc_info=RuntimeError("gone"))
    dialog = the_dialog(window, qtbot)
    assert "has ended" in dialog.model_line.text()


def test_the_dialog_reports_a_conversation_that_cannot_be_saved(window, trail, qtbot, monkeypatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loradesk_app.autosave.write_atomic", full)
    window.background.run(lambda: 1 // 0)
    dialog = the_dialog(window, qtbot)
    assert "could not be saved" in dialog.chat_line.text()
    assert "No space left" in dialog.chat_line.text()


def test_defects_that_come_again_and_again_are_counted_in_one_dialog(window, trail, qtbot) -> None:
    for _ in range(40):
        window.background.run(lambda: 1 // 0)
    dialog = the_dialog(window, qtbot)
    qtbot.waitUntil(lambda: "39 more times" in dialog.count.text())
    assert window.log.dialog is dialog
    assert content(trail).count("Traceback") == 3


def test_a_defect_of_the_dialog_itself_ends_there(window, trail, qtbot, monkeypatch) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("the dialog is broken")

    monkeypatch.setattr("loradesk_app.log.defect_dialog.DefectDialog.show_model", broken)
    window.background.run(lambda: 1 // 0)
    qtbot.waitUntil(lambda: "The dialog for a defect cannot be shown" in content(trail))
    before = content(trail).count("the dialog is broken")
    for _ in range(3):
        window.background.run(lambda: 1 // 0)
    qtbot.wait(100)
    assert content(trail).count("the dialog is broken") == before


def test_a_defect_in_what_the_dialog_paints_does_not_pile_up(window, trail, qtbot, monkeypatch) -> None:
    from loradesk_app.log.defect_dialog import DefectDialog

    painted = []

    def broken(_self: DefectDialog, _event: QEvent) -> None:
        painted.append(1)
        raise RuntimeError("in painting")

    monkeypatch.setattr(DefectDialog, "paintEvent", broken, raising=False)
    window.background.run(lambda: 1 // 0)
    qtbot.waitUntil(lambda: bool(painted))
    qtbot.wait(100)
    assert len([each for each in QApplication.topLevelWidgets() if isinstance(each, DefectDialog)]) == 1
    window.log.dialog.close()


def test_no_dialog_while_the_window_closes(window, trail, qtbot) -> None:
    with qtbot.waitSignal(window.closed_down):
        window.close()
        window.background.run(lambda: 1 // 0)
    QApplication.processEvents()
    assert window.log.dialog is None
    assert "ZeroDivisionError" in content(trail)


def test_the_file_is_for_its_user_only(window, trail) -> None:
    if os.name == "posix":
        assert stat.S_IMODE(trail.file.path.stat().st_mode) == 0o600
    assert sys.excepthook is not sys.__excepthook__
    assert isinstance(window.log, LogDesk)
