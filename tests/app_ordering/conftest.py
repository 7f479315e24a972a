"""Documents and editor windows: real widgets and real events, no display, no engine."""

from __future__ import annotations

import os

os.environ["QT_QPA_PLATFORM"] = "offscreen"

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QApplication
from support.clock import PATIENCE
from support.pool_trace import traced_pool  # noqa: F401 - a fixture
from support.qt import delete_widgets

from loradesk_app.ordering.document import Document
from loradesk_app.ordering.document_view import DocumentView
from loradesk_app.ordering.editor_window import EditorWindow
from loradesk_app.theme import Theme

XLORA = {
    "base_model_id": "org/base",
    "order": ["math", "code", "poetry"],
    "layers": {"model.layers.0.self_attn.q_proj": 0, "model.layers.0.self_attn.v_proj": 1, "lm_head": 2},
    "note": {"kept": True},
}
LORA = {
    "base_model_id": "org/base",
    "order": ["math"],
    "preload_adapters": [
        {"name": "math", "adapter_model_id": "org/math"},
        {"name": "code", "adapter_model_id": "org/code", "revision": "main"},
    ],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the platform without a display says it cannot do is no warning about our code."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.qt_log_ignore("This plugin does not support"))


@pytest.fixture
def theme(qapp: QApplication) -> Iterator[Theme]:
    theme = Theme(qapp, "light")
    yield theme
    qapp.styleHints().colorSchemeChanged.disconnect(theme._follow_system)
    theme.deleteLater()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a file, from JSON or text, and gives its path."""

    def make(content: Any, name: str = "file.json") -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2), "utf-8")
        return str(path)

    return make


@pytest.fixture
def xlora(write: Callable[..., str]) -> str:
    return write(XLORA, "xlora.json")


@pytest.fixture
def lora(write: Callable[..., str]) -> str:
    return write(LORA, "lora.json")


@pytest.fixture
def make_window(qtbot: Any, theme: Theme, tmp_path: Path) -> Iterator[Callable[..., EditorWindow]]:
    """Makes shown editor windows; their threads end after the test."""
    windows: list[EditorWindow] = []

    def make(size: tuple[int, int] = (1100, 760)) -> EditorWindow:
        window = EditorWindow(theme, tmp_path / "recovery")
        windows.append(window)
        window.resize(*size)
        window.show()
        qtbot.waitExposed(window)
        return window

    yield make
    for window in windows:
        window.shut_down()
        window.readers.wait(PATIENCE)
        window.deleteLater()
    delete_widgets()


@pytest.fixture
def window(make_window: Callable[..., EditorWindow]) -> EditorWindow:
    return make_window()


@pytest.fixture
def open_view(qtbot: Any, window: EditorWindow) -> Callable[[str], DocumentView]:
    """Opens a file in the window and waits until it is checked."""

    def open_file(path: str) -> DocumentView:
        with qtbot.waitSignal(window.document_opened):
            window.open_file(path)
        view = window.view()
        assert view is not None
        settle(qtbot, view.document)
        return view

    return open_file


def settle(qtbot: Any, document: Document) -> None:
    """Wait until the newest state is checked against the newest facts and shown."""
    qtbot.waitUntil(lambda: document.is_checked)


@pytest.fixture
def settled(qtbot: Any) -> Callable[[Document], None]:
    return lambda document: settle(qtbot, document)
