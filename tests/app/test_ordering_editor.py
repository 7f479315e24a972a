"""The editor of ordering files from the window: opened, filled in, and back to the loader."""

from __future__ import annotations

import json
from pathlib import Path

from PySide6.QtCore import Qt

from loradesk_engine.demo import demo_settings


def test_the_editor_opens_a_file_and_hands_it_to_the_loader(window, qtbot, tmp_path: Path):
    window.open_loader()
    path = str(tmp_path / "mine.json")
    Path(path).write_bytes(Path(demo_settings("xlora").ordering or "").read_bytes())
    window.loader.mode.choose("xlora") if hasattr(window.loader.mode, "choose") else None
    window.loader.ordering.set_text(path)
    qtbot.mouseClick(window.loader.edit_ordering, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: window.editor is not None and len(window.editor.views) == 1)
    assert window.editor.isVisible()
    document = window.editor.views[0].document
    qtbot.waitUntil(lambda: document.ordering.order is not None)
    assert document.ordering.order == ("arithmetic", "capitals", "json", "bard")

    window.loader.ordering.set_text("")
    window.editor.load_requested.emit(path)
    assert window.loader.ordering.text() == path
    window.loader.close()


def test_unsaved_work_on_an_ordering_file_survives_closing(make_window, qtbot, tmp_path: Path):
    window = make_window()
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base_model_id": "b", "order": ["one"]}), encoding="utf-8")
    window.open_editor(str(path))
    qtbot.waitUntil(lambda: len(window.editor.views) == 1)
    document = window.editor.views[0].document
    qtbot.waitUntil(lambda: document.ordering.order == ("one",))
    document.add_name("two")
    with qtbot.waitSignal(window.closed_down):
        window.close()
    assert json.loads(path.read_text(encoding="utf-8"))["order"] == ["one"]

    again = make_window()
    qtbot.waitUntil(lambda: again.editor is not None and again.editor.isVisible())
