"""The editor as people use it: keys, mouse, drops, tabs, files that change, and crashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QApplication, QFileDialog, QLineEdit, QMessageBox, QPushButton
from support.clock import PATIENCE, processor_time

from loradesk_app.ordering import disk
from loradesk_app.ordering.editor_window import EditorWindow
from loradesk_app.ordering.layers_model import COL_INDEX
from loradesk_app.ordering.order_model import COL_NAME
from loradesk_app.ordering.preload_model import COL_ID
from loradesk_app.ordering.recovery import has_unsaved_work
from loradesk_app.ordering.regenerate_dialog import RegenerateDialog
from loradesk_engine.ordering.schema import OrderingFile
from loradesk_resources import resource_path

ALT, CTRL = Qt.KeyboardModifier.AltModifier, Qt.KeyboardModifier.ControlModifier
LEFT = Qt.MouseButton.LeftButton


def names(view) -> tuple[str, ...]:
    return view.document.ordering.order or ()


def drop(widget, data: QMimeData, at: QPointF) -> QDropEvent:
    event = QDropEvent(at, Qt.DropAction.MoveAction, data, LEFT, Qt.KeyboardModifier.NoModifier)
    widget.dropEvent(event)
    return event


def files(*paths: str) -> QMimeData:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(path) for path in paths])
    return data


def answer(window, text: str) -> None:
    box = window.findChild(QMessageBox)
    button = next(button for button in box.findChildren(QPushButton) if button.text() == text)
    button.click()


# -- tables -----------------------------------------------------------------------------------------------------------


def test_rows_are_moved_with_alt_and_arrows(open_view, xlora, qtbot):
    view = open_view(xlora)
    view.form.order.select_rows([0])
    qtbot.keyClick(view.form.order, Qt.Key.Key_Down, ALT)
    assert names(view) == ("code", "math", "poetry")
    assert view.form.order.selected_rows() == [1]
    qtbot.keyClick(view.form.order, Qt.Key.Key_Down, ALT)
    qtbot.keyClick(view.form.order, Qt.Key.Key_Down, ALT)
    assert names(view) == ("code", "poetry", "math")
    qtbot.keyClick(view.form.order, Qt.Key.Key_Up, ALT)
    assert names(view) == ("code", "math", "poetry")
    assert view.document.stack.count() == 3


def test_rows_are_moved_by_dragging(open_view, xlora, qtbot):
    view = open_view(xlora)
    table, model = view.form.order, view.form.order_model
    data = model.mimeData([model.index(2, COL_NAME)])
    top = table.visualRect(model.index(0, COL_NAME)).topLeft() + QPoint(5, 2)
    drop(table, data, QPointF(top))
    assert names(view) == ("poetry", "math", "code")
    assert table.selected_rows() == [0]
    assert model.rowCount() == 3
    other = QMimeData()
    other.setData("application/x-loradesk-ordering-rows", b"12345 0")  # of another table
    drop(table, other, QPointF(top))
    assert names(view) == ("poetry", "math", "code")


def test_cells_are_edited_in_place(open_view, lora, qtbot):
    view = open_view(lora)
    view.form.show_page("preload_adapters")
    table = view.form.preload
    table.edit_cell(1, COL_ID)
    editor = table.findChild(QLineEdit)
    editor.selectAll()
    qtbot.keyClicks(editor, "/models/code")
    qtbot.keyClick(editor, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: view.document.ordering.preload_adapters[1].adapter_model_id == "/models/code")
    assert '"revision": "main"' in view.document.ordering.dumps()


def test_entries_are_added_and_removed_with_keys(open_view, xlora, window, qtbot):
    view = open_view(xlora)
    window.add_action.trigger()
    editor = view.form.order.findChild(QLineEdit)
    editor.selectAll()
    qtbot.keyClicks(editor, "law")
    qtbot.keyClick(editor, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: names(view)[-1] == "law")
    view.form.order.select_rows([0, 1])
    qtbot.keyClick(view.form.order, Qt.Key.Key_Delete)
    assert names(view) == ("poetry", "law")
    for _ in range(3):
        window.undo_action.trigger()
    assert names(view) == ("math", "code", "poetry")
    assert not view.document.is_dirty


def test_folders_dropped_on_the_preloads_are_added(open_view, lora, tmp_path):
    view = open_view(lora)
    view.form.show_page("preload_adapters")
    drop(view.form.preload, files(str(tmp_path / "poetry")), QPointF(5, 5))
    added = view.document.ordering.preload_adapters[-1]
    assert (added.name, added.adapter_model_id) == ("poetry", str(tmp_path / "poetry"))


def test_models_are_sound(open_view, lora, xlora, qtmodeltester):
    for path in (lora, xlora):
        form = open_view(path).form
        for model in (form.order_model, form.preload_model, form.layers.model):
            qtmodeltester.check(model, force_py=True)


def test_the_base_is_edited(open_view, xlora, qtbot):
    view = open_view(xlora)
    view.form.base.edit.selectAll()
    qtbot.keyClicks(view.form.base.edit, "org/new")
    qtbot.keyClick(view.form.base.edit, Qt.Key.Key_Return)
    assert view.document.ordering.base_model_id == "org/new"
    view.document.undo()
    assert view.form.base.text() == "org/base"


# -- layers -----------------------------------------------------------------------------------------------------------


def test_layers_are_locked_until_asked_for(open_view, xlora, qtbot):
    view = open_view(xlora)
    view.form.show_page("layers")
    layers = view.form.layers
    block = layers.model.index(0, 0)
    index = layers.model.index(1, COL_INDEX, block)
    assert layers.model.path(index) == "model.layers.0.self_attn.v_proj"
    assert not layers.model.setData(index, "7")
    assert not index.flags() & Qt.ItemFlag.ItemIsEditable
    qtbot.mouseClick(layers.lock_button, LEFT)
    assert index.flags() & Qt.ItemFlag.ItemIsEditable
    assert layers.model.setData(index, "7")
    assert view.document.ordering.layers["model.layers.0.self_attn.v_proj"] == 7
    assert "nonsense" in layers.lock_text.text()
    assert not layers.model.setData(index, "seven")
    qtbot.mouseClick(layers.lock_button, LEFT)
    assert layers.model.is_locked


def test_layers_are_searched(open_view, xlora, qtbot):
    layers = open_view(xlora).form.layers
    qtbot.keyClicks(layers.search, "attn V_PROJ")
    qtbot.waitUntil(lambda: layers.count.text() == "1 of 3 layers")
    layers.search.setText("2")  # an index
    qtbot.waitUntil(lambda: layers.model.path(layers.model.index(0, 0)) == "lm_head")
    layers.show_layer("model.layers.0.self_attn.q_proj")
    assert layers.search.text() == ""
    assert layers.model.path(layers.tree.currentIndex()) == "model.layers.0.self_attn.q_proj"


def test_layers_are_regenerated(open_view, xlora, window, qtbot):
    view = open_view(xlora)
    window.regenerate_action.trigger()
    dialog = view.findChild(RegenerateDialog)
    assert not dialog.done_button.isEnabled()
    dialog.source.edit.setText(str(resource_path("demo", "base")))
    qtbot.mouseClick(dialog.read_button, LEFT)
    qtbot.waitUntil(lambda: dialog.summary.text() == "3 layers")
    dialog.tree.leaf("k_proj").setCheckState(0, Qt.CheckState.Checked)
    assert dialog.summary.text() == "9 layers"
    qtbot.mouseClick(dialog.done_button, LEFT)
    assert len(view.document.ordering.layers) == 9
    assert view.document.stack.undoText() == "Regenerate the layers"
    assert view.document.ordering.value("note") == {"kept": True}


# -- text -------------------------------------------------------------------------------------------------------------


def test_typing_becomes_a_step_and_a_change_of_the_form_becomes_text(open_view, xlora, qtbot, settled):
    view = open_view(xlora)
    view.json.go_to(4, 7, select=False)
    qtbot.keyClicks(view.json, "xy")
    qtbot.waitUntil(lambda: names(view)[0] == "mxyath")
    assert view.form.order_model.text(0, COL_NAME) == "mxyath"
    settled(view.document)
    cursor = view.json.textCursor().position()
    view.document.add_name("law")
    settled(view.document)
    assert '"law"' in view.json.text()
    assert view.json.text() == view.document.ordering.dumps()
    assert view.json.textCursor().position() == cursor
    qtbot.keyClick(view.json, Qt.Key.Key_Z, CTRL)
    qtbot.keyClick(view.json, Qt.Key.Key_Z, CTRL)
    assert names(view)[0] == "math"


def test_pending_text_is_not_lost_by_an_undo(open_view, xlora, qtbot):
    view = open_view(xlora)
    view.json.go_to(4, 6, select=False)
    qtbot.keyClicks(view.json, "q")
    view.document.undo()  # before the typing was read: it becomes a step and is undone
    assert names(view)[0] == "math"
    view.document.redo()
    assert names(view)[0] == "qmath"


def test_signs_that_a_text_field_would_swallow_stay(open_view, write, qtbot, settled):
    name = "no\u00a0break\u2028line\u2029paragraph"
    view = open_view(write('{\n  "order": ["' + name + '"],\n  "base_model_id": "b"\n}'))
    assert names(view) == (name,)
    assert view.json.blockCount() == 4
    view.json.go_to(3, 21, select=False)
    qtbot.keyClicks(view.json, "c")
    qtbot.waitUntil(lambda: view.document.ordering.base_model_id == "cb")
    assert names(view) == (name,)


def test_malformed_text_is_shown_where_it_breaks(open_view, write, window, qtbot, settled):
    text = '{\n  "base_model_id": "org/base",\n  "order": ["a", "b"\n  "layers": {}\n}\n'
    path = write(text, "broken.json")
    view = open_view(path)
    assert view.text_notice.isVisible()
    assert view.text_notice.message.text().startswith("Line 4, column 3:")
    assert view.json.text() == text
    assert view.json.mark(4)[0] == "error"
    assert not view.form.base.isEnabled()
    qtbot.mouseClick(view.text_notice.buttons[0], LEFT)
    assert view.json.textCursor().blockNumber() == 3
    window.save()
    assert "not saved" in view.disk_notice.message.text()
    assert Path(path).read_text() == text
    view.json.go_to(3, 100, select=False)
    qtbot.keyClicks(view.json, "],")
    qtbot.waitUntil(lambda: view.document.is_readable)
    assert not view.text_notice.isVisible()
    assert names(view) == ("a", "b")
    assert view.form.base.isEnabled()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe{}", "Not UTF-8"), (None, "does not exist")],
)
def test_files_that_cannot_be_opened_are_explained(window, tmp_path, qtbot, content, words):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    window.open_file(str(path))
    qtbot.waitUntil(window.notice.isVisible)
    assert words in window.notice.message.text()
    assert str(path) in window.notice.detail.text()
    assert window.views == []


def test_a_file_without_permission_to_read_is_explained(window, xlora, qtbot, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("loradesk_engine.files.open", refuse, raising=False)
    window.open_file(xlora)
    qtbot.waitUntil(window.notice.isVisible)
    assert window.notice.message.text() == "No permission to read the file."
    assert "Change its permissions" in window.notice.detail.text()


# -- findings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(write):
    return write(
        {"base_model_id": "org/base", "order": ["a", "a", ""], "layers": {"model.layers.0.x": 0, "model.layers.0.y": 0}}
    )


def test_problems_are_listed_marked_and_fixed(open_view, faulty, qtbot, settled):
    view = open_view(faulty)
    panel = view.findings
    assert panel.summary.text() == "3 errors"
    assert view.json.mark(5)[0] == "error"
    model = view.form.order_model
    assert model.data(model.index(1, COL_NAME), Qt.ItemDataRole.DecorationRole) is not None
    assert model.data(model.index(0, COL_NAME), Qt.ItemDataRole.DecorationRole) is None
    assert "twice" in model.data(model.index(1, COL_NAME), Qt.ItemDataRole.ToolTipRole)
    row = next(row for row in panel.rows if row.finding.rule == "order-duplicate")
    qtbot.mouseClick(row, LEFT)
    assert view.form.order.selected_rows() == [1]
    assert view.json.textCursor().blockNumber() == 4
    qtbot.mouseClick(row.fix_button, LEFT)
    assert names(view) == ("a", "")
    settled(view.document)
    assert panel.summary.text() == "2 errors"
    qtbot.mouseClick(panel.fix_all, LEFT)
    qtbot.waitUntil(lambda: panel.summary.text() == "No problems")
    assert list(view.document.ordering.layers.values()) == [0, 1]


def test_f8_goes_from_problem_to_problem(open_view, faulty, window):
    view = open_view(faulty)
    pages = []
    for _ in range(3):
        window.next_action.trigger()
        pages.append(view.form.page)
    assert sorted(pages) == ["layers", "order", "order"]
    assert view.form.layers.model.path(view.form.layers.tree.currentIndex()).startswith("model.layers.0.")


def test_a_base_on_this_computer_is_used_and_adapters_are_compared(open_view, write, qtbot, settled):
    base = str(resource_path("demo", "base"))
    view = open_view(write({"base_model_id": base, "order": ["Arithmetic", "bard"], "layers": {"model.odd": 0}}))
    qtbot.waitUntil(lambda: "6 blocks" in view.form.base_text.text())
    settled(view.document)
    assert "layer-not-in-model" in {finding.rule for finding in view.document.findings}
    view.compare(str(resource_path("demo", "adapters")))
    qtbot.waitUntil(lambda: "order-unknown" in {finding.rule for finding in view.document.findings})
    view.document.fix_all()
    qtbot.waitUntil(lambda: names(view) == ("arithmetic", "bard"))
    assert len(view.document.ordering.layers) == 42


# -- files and tabs ---------------------------------------------------------------------------------------------------


def test_several_files_have_tabs_of_their_own(open_view, window, xlora, lora, qtbot):
    first, second = open_view(xlora), open_view(lora)
    assert [window.tabs.tabText(row) for row in (0, 1)] == ["xlora.json", "lora.json"]
    window.open_file(xlora)
    assert window.view() is first
    first.document.add_name("law")
    assert window.tabs.tabText(0) == "● xlora.json"
    assert window.isWindowModified()
    window.tabs.setCurrentIndex(1)
    window.tabs.moveTab(0, 1)
    assert window.view() is second
    window.close_current()
    assert window.documents() == [first.document]


def test_saving_and_recent_files(open_view, window, xlora, tmp_path, qtbot):
    told = []
    window.recent_changed.connect(told.append)
    view = open_view(xlora)
    assert told[-1] == [xlora]
    view.document.add_name("law")
    with qtbot.waitSignal(view.document.saved):
        window.save_action.trigger()
    assert OrderingFile.read(xlora).order[-1] == "law"
    other = str(tmp_path / "copy.json")
    with qtbot.waitSignal(view.document.saved):
        window.save_to(view.document, other)
    assert window.tabs.tabText(0) == "copy.json"
    assert window.recent() == [other, xlora]
    window.close_current()
    with qtbot.waitSignal(window.document_opened):
        window.recent_menu.actions()[1].trigger()
    assert window.document().path == xlora


def test_reverting_takes_what_is_on_disk(open_view, window, xlora, qtbot):
    view = open_view(xlora)
    view.document.add_name("law")
    with qtbot.waitSignal(view.document.changed):
        window.revert_action.trigger()
    assert names(view) == ("math", "code", "poetry")
    assert not view.document.is_dirty
    assert not window.revert_action.isEnabled()


def test_the_published_files_open_as_copies(window, qtbot, settled):
    for hub_id, counts in (("lamm-mit/x-lora", (9, 160)), ("lamm-mit/x-lora-gemma-7b", (4, 196))):
        with qtbot.waitSignal(window.document_opened):
            window.start_page.ready_buttons[hub_id].click()
        document = window.document()
        assert (len(document.ordering.order), len(document.ordering.layers)) == counts
        assert document.path is None
        assert not document.is_dirty
        settled(document)
        assert not [finding for finding in document.findings if finding.severity == "error"]


def test_a_file_is_loaded_after_it_is_saved(open_view, window, xlora, qtbot):
    view = open_view(xlora)
    with qtbot.waitSignal(window.load_requested) as told:
        window.load_button.click()
    assert told.args == [xlora]
    view.document.add_name("law")
    with qtbot.waitSignal(window.load_requested):
        window.load_action.trigger()
    assert OrderingFile.read(xlora).order[-1] == "law"


def test_dropped_files_are_opened(window, xlora, lora, qtbot):
    data = files(xlora, lora, "/somewhere/else.txt")
    drop(window, data, QPointF(50, 50))
    qtbot.waitUntil(lambda: len(window.views) == 2)
    assert not window.views[0].json.canInsertFromMimeData(data)


@pytest.mark.parametrize(("text", "closes"), [("Cancel", False), ("Discard", True), ("Save", True)])
def test_closing_asks_about_changes(open_view, window, xlora, tmp_path, qtbot, text, closes):
    view = open_view(xlora)
    view.document.add_name("law")
    window.recovery.save()
    window.close()
    assert window.isVisible()
    answer(window, text)
    if not closes:
        QApplication.processEvents()
        assert window.isVisible()
        assert view.document.is_dirty
        return
    qtbot.waitUntil(lambda: not window.isVisible())
    assert (OrderingFile.read(xlora).order[-1] == "law") == (text == "Save")
    window.background.wait(PATIENCE)
    assert not has_unsaved_work(tmp_path / "recovery")


def test_another_program_changes_the_file(open_view, xlora, qtbot):
    view = open_view(xlora)
    Path(xlora).write_text('{"base_model_id": "theirs"}')
    qtbot.waitUntil(view.disk_notice.isVisible)
    assert "Another program changed xlora.json" in view.disk_notice.message.text()
    qtbot.mouseClick(view.disk_notice.buttons[0], LEFT)
    qtbot.waitUntil(lambda: view.document.ordering.base_model_id == "theirs")
    assert not view.disk_notice.isVisible()
    Path(xlora).unlink()
    qtbot.waitUntil(view.disk_notice.isVisible)
    assert "removed" in view.disk_notice.message.text()
    qtbot.mouseClick(view.disk_notice.buttons[0], LEFT)
    with qtbot.waitSignal(view.document.saved):
        view.document.save()
    assert Path(xlora).exists()


def test_saving_is_no_outside_change(open_view, xlora, qtbot):
    view = open_view(xlora)
    told = []
    view.document.outside_change.connect(told.append)
    for name in ("one", "two"):
        view.document.add_name(name)
        with qtbot.waitSignal(view.document.saved):
            view.document.save()
        qtbot.wait(250)
    assert told == []


# -- recovery ---------------------------------------------------------------------------------------------------------


def test_unsaved_work_comes_back_after_a_crash(open_view, window, make_window, xlora, tmp_path, qtbot):
    view = open_view(xlora)
    view.document.add_name("law")
    broken = window.add_document(type(view.document)(window.background, title="draft"))
    broken.document.edit_text('{"order": [')
    window.recovery.save()
    window.background.wait(PATIENCE)
    assert has_unsaved_work(tmp_path / "recovery")
    second = make_window()
    second.start()
    second.background.wait(PATIENCE)
    QApplication.processEvents()
    assert second.views == []  # the first one is alive, its work is its own
    window.recovery._lock.unlock()  # as the end of its process does
    second.start()
    qtbot.waitUntil(lambda: len(second.views) == 2)
    found = {document.title: document for document in second.documents()}
    assert found["xlora.json"].ordering.order[-1] == "law"
    assert found["xlora.json"].is_dirty
    assert found["draft"].state.draft == '{"order": ['
    with qtbot.waitSignal(found["xlora.json"].saved):
        found["xlora.json"].save()
    second.recovery.save()
    second.background.wait(PATIENCE)
    assert len(list((tmp_path / "recovery").rglob("*.json"))) == 1
    for view in list(window.views):  # so that the fixture's end does not write them again
        window._remove(view)


def test_the_end_of_the_application_keeps_unsaved_work_without_asking(open_view, window, make_window, xlora, qtbot):
    view = open_view(xlora)
    view.json.go_to(4, 6, select=False)
    qtbot.keyClicks(view.json, "q")  # not even read yet
    window.shut_down()
    assert not window.isVisible()
    second = make_window()
    second.start()
    qtbot.waitUntil(lambda: len(second.views) == 1)
    assert second.document().ordering.order[0] == "qmath"
    second.document().undo()
    assert second.document().is_dirty


def test_nothing_is_left_when_all_is_saved(open_view, window, xlora, tmp_path):
    open_view(xlora)
    window.shut_down()
    assert not has_unsaved_work(tmp_path / "recovery")


# -- layout -----------------------------------------------------------------------------------------------------------


def test_a_narrow_window_shows_one_part(make_window, xlora, qtbot):
    window = make_window((720, 560))
    with qtbot.waitSignal(window.document_opened):
        window.open_file(xlora)
    view = window.view()
    assert (window.width(), window.height()) == (720, 560)
    assert view.form.isVisible()
    assert not view.json.isVisible()
    qtbot.mouseClick(window.layouts.button("json"), LEFT)
    assert view.json.isVisible()
    assert not view.form.isVisible()
    right = window.rect().right()
    assert window.load_button.mapTo(window, window.load_button.rect().topRight()).x() <= right


def test_everything_that_takes_keys_has_a_name(open_view, lora):
    view = open_view(lora)
    for kind in (QPushButton, QLineEdit):
        for widget in view.findChildren(kind):
            if widget.isVisible() and widget.focusPolicy() != Qt.FocusPolicy.NoFocus:
                assert widget.accessibleName() or getattr(widget, "text", str)(), widget


# -- size -------------------------------------------------------------------------------------------------------------


def test_a_large_file_opens_and_is_edited_without_lag(window, write, qtbot, settled):
    adapters = [f"adapter_{number}" for number in range(500)]
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = {f"model.layers.{number // 4}.self_attn.{parts[number % 4]}": number for number in range(10_000)}
    preloads = [{"name": name, "adapter_model_id": f"org/{name}"} for name in adapters]
    path = write(
        json.loads(
            json.dumps({"base_model_id": "b", "order": adapters, "layers": layers, "preload_adapters": preloads})
        )
    )
    with processor_time(10.0):
        with qtbot.waitSignal(window.document_opened):
            window.open_file(path)
        view = window.view()
        settled(view.document)
        QApplication.processEvents()
    assert view.json.blockCount() > 12_000
    view.form.show_page("layers")
    view.form.layers.toggle_lock()
    edits = (
        lambda: view.document.move_names([0], 500),
        lambda: view.document.remove_names([250]),
        lambda: view.document.set_layer_index("model.layers.9.self_attn.q_proj", 5),
        lambda: view.document.add_preload("new", "/x"),
        view.document.fix_all,
        view.document.undo,
        lambda: view.form.layers.model.set_filter("v_proj"),
    )
    for edit in edits:
        with processor_time(5.0):  # of the GUI's thread, ten times what is allowed
            edit()
            QApplication.processEvents()
        settled(view.document)


def test_the_window_needs_no_engine():
    import subprocess
    import sys

    code = "import sys, loradesk_app.ordering.editor_window; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_closed_window_ends_its_threads(make_window, xlora, qtbot):
    window: EditorWindow = make_window()
    with qtbot.waitSignal(window.document_opened):
        window.open_file(xlora)
    window.shut_down()
    assert window.background._pool.activeThreadCount() == 0


def test_malformed_text_comes_first_in_a_narrow_window(make_window, write, qtbot, settled):
    window = make_window((720, 560))
    with qtbot.waitSignal(window.document_opened):
        window.open_file(write('{\n  "order": [1]\n}', "types.json"))
    view = window.view()
    settled(view.document)
    assert view.json.isVisible()
    assert window.layouts.current() == "json"
    assert view.text_notice.message.text().startswith("Line 2, column 13: A string is expected")
    assert (view.json.textCursor().blockNumber(), view.json.textCursor().positionInBlock()) == (1, 12)


def test_undo_works_from_the_base_field(open_view, xlora, window, qtbot):
    view = open_view(xlora)
    view.document.add_name("law")
    view.form.base.edit.setFocus()
    qtbot.keyClick(view.form.base.edit, Qt.Key.Key_Z, CTRL)
    assert names(view) == ("math", "code", "poetry")
    qtbot.keyClick(view.form.base.edit, Qt.Key.Key_Z, CTRL | Qt.KeyboardModifier.ShiftModifier)
    assert names(view)[-1] == "law"


def test_work_that_cannot_be_kept_is_told_once(open_view, window, xlora, qtbot, monkeypatch):
    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    view = open_view(xlora)
    monkeypatch.setattr("loradesk_app.ordering.recovery.write_atomic", fail)
    told = []
    window.recovery.failed.connect(told.append)
    for name in ("one", "two"):
        view.document.add_name(name)
        window.recovery.save()
    window.background.wait(PATIENCE)
    qtbot.waitUntil(window.notice.isVisible)
    QApplication.processEvents()
    assert len(told) == 1
    assert "No space left" in window.notice.message.text()


def test_the_theme_reaches_everything(open_view, xlora, theme, window):
    view = open_view(xlora)
    theme.set_mode("dark")
    assert theme.tokens.field in window.styleSheet()
    view.grab()
    theme.set_mode("light")


def test_lines_are_numbered_and_colours_follow_the_scrolling(open_view, write, qtbot, settled):
    layers = {f"model.layers.{number}.mlp.up_proj": number for number in range(3_000)}
    view = open_view(write({"base_model_id": "b", "layers": layers}))
    edit = view.json
    assert edit.document().findBlockByNumber(2_900).userState() != 1
    edit.go_to(2_900)
    QApplication.processEvents()
    block = edit.document().findBlockByNumber(2_900)
    assert block.userState() == 1
    assert block.layout().formats()
    view.document.set_layer_index("model.layers.2895.mlp.up_proj", 0)
    settled(view.document)
    assert edit.textCursor().blockNumber() == 2_899
    assert edit.firstVisibleBlock().blockNumber() > 2_800


def test_what_is_still_being_edited_is_saved_too(open_view, xlora, window, qtbot):
    view = open_view(xlora)
    view.form.order.edit_cell(0, COL_NAME)
    editor = view.form.order.findChild(QLineEdit)
    editor.selectAll()
    qtbot.keyClicks(editor, "physics")
    view.form.base.edit.setText("org/typed")
    with qtbot.waitSignal(view.document.saved):
        window.save_action.trigger()
    saved = OrderingFile.read(xlora)
    assert (saved.base_model_id, saved.order[0]) == ("org/typed", "physics")


def test_rows_may_be_dragged_and_other_things_not(open_view, lora, qtbot):
    view = open_view(lora)
    table, model = view.form.order, view.form.order_model
    for data, taken in (
        (model.mimeData([model.index(0, COL_NAME)]), True),
        (view.form.preload_model.mimeData([view.form.preload_model.index(0, 1)]), False),
        (files("/some/ordering.json"), False),
    ):
        actions, no_keys = Qt.DropAction.MoveAction | Qt.DropAction.CopyAction, Qt.KeyboardModifier.NoModifier
        event = QDragEnterEvent(QPoint(5, 5), actions, data, LEFT, no_keys)
        table.dragEnterEvent(event)
        assert event.isAccepted() == taken


def test_a_copy_of_a_published_file_is_saved_before_it_is_loaded(window, tmp_path, qtbot):
    with qtbot.waitSignal(window.document_opened):
        window.open_ready("lamm-mit/x-lora")
    window.load_current()
    dialog = window.findChild(QFileDialog)
    assert dialog.isVisible()
    path = str(tmp_path / "mine.json")
    with qtbot.waitSignal(window.load_requested) as told:
        dialog.fileSelected.emit(path)
    assert told.args == [path]
    assert Path(path).read_bytes() == resource_path("ordering", "x-lora-zephyr-7b-beta.json").read_bytes()
    dialog.reject()


def test_a_busy_folder_does_not_read_the_file_again(open_view, xlora, qtbot, monkeypatch):
    view = open_view(xlora)
    reads = []
    original = disk.content
    monkeypatch.setattr(disk, "content", lambda path: reads.append(path) or original(path))
    for _ in range(3):
        view.document.look_at_disk()
    qtbot.wait(50)
    for _ in range(3):
        view.document.look_at_disk()
    qtbot.wait(50)
    assert len(reads) <= 3
    assert not view.disk_notice.isVisible()


# -- the same abilities as the terminal -------------------------------------------------------------------------------


def test_all_adapters_of_a_folder_are_preloaded_in_one_step(open_view, lora, qtbot, settled):
    adapters = str(resource_path("demo", "adapters"))
    view = open_view(lora)
    view.document.add_preload("bard", "org/old")
    before = view.document.ordering
    view.form.preload_requested.emit(adapters)
    qtbot.waitUntil(lambda: len(view.document.ordering.preload_adapters) == 6)
    entries = {entry.name: entry.adapter_model_id for entry in view.document.ordering.preload_adapters}
    assert list(entries) == ["math", "code", "bard", "arithmetic", "capitals", "json"]
    assert [entries[name] for name in ("math", "bard", "json")] == ["org/math", adapters, adapters]
    settled(view.document)
    assert not [finding for finding in view.document.findings if finding.rule == "preload-broken"]
    view.document.undo()
    assert view.document.ordering == before


def test_a_preload_adapter_that_is_not_in_its_folder_is_marked(open_view, write, settled):
    adapters = str(resource_path("demo", "adapters"))
    entries = [{"name": name, "adapter_model_id": adapters} for name in ("bard", "nobody")]
    view = open_view(write({"base_model_id": "b", "preload_adapters": entries}))
    settled(view.document)
    (finding,) = view.document.findings
    assert (finding.rule, finding.place) == ("preload-broken", "/preload_adapters/1/adapter_model_id")


def test_a_text_of_a_wrong_structure_shows_all_that_is_wrong(open_view, write, settled):
    view = open_view(write('{\n"order": [1],\n"layers": {"x": "y"},\n"preload_adapters": [{}],\n"Order": 1}'))
    settled(view.document)
    rules = [finding.rule for finding in view.document.findings]
    assert rules.count("structure") == 4
    assert {"base-missing", "key-misspelt"} <= set(rules)
    assert len(view.findings.rows) == len(rules)
    assert view.document.last_analysis.positions["/layers/x"][0] == 3
