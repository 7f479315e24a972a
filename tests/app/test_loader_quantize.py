"""The loader's choice to quantize a base while it loads."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt

from loradesk_app.loader import recent
from loradesk_app.loader.load_form import LoadForm
from loradesk_engine.commands import Load, LoadSettings
from loradesk_engine.demo import demo_settings


@pytest.fixture
def dialog(window):
    window.open_loader()
    return window.loader


def choose(qtbot, segmented, key: str) -> None:
    qtbot.mouseClick(segmented.button(key), Qt.MouseButton.LeftButton)


def test_the_choice_reaches_the_engine_and_is_remembered(dialog, window, worker, qtbot):
    choose(qtbot, dialog.source, "hub")
    choose(qtbot, dialog.mode, "none")
    qtbot.keyClicks(dialog.hub_id, "org/model")
    assert dialog.quantize.currentData() == "none"
    dialog.quantize.setFocus()
    qtbot.keyClick(dialog.quantize, Qt.Key.Key_Down)
    assert dialog.quantize.currentData() == "nf4"
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert worker.commands(Load)[-1].settings == LoadSettings(base="org/model", quantize="nf4")
    window.client.drain()
    assert recent.readable(window.settings.get("recent_models"))[0].quantize == "nf4"


def test_a_gguf_file_cannot_be_quantized_and_the_dialog_says_why(dialog, worker, qtbot):
    choose(qtbot, dialog.source, "local")
    choose(qtbot, dialog.mode, "none")
    dialog.quantize.setCurrentIndex(dialog.quantize.findData("int8"))
    assert not dialog.quantize_note.isVisible()
    dialog.path.set_text("/m/base.GGUF")
    assert not dialog.quantize.isEnabled()
    assert dialog.quantize_note.isVisible()
    assert "GGUF" in dialog.quantize_note.text()
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert worker.commands(Load)[-1].settings == LoadSettings(base="/m/base.GGUF")
    dialog.show_cancelled()
    dialog.path.set_text("/m/base")
    assert dialog.quantize.isEnabled()
    assert not dialog.quantize_note.isVisible()
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert worker.commands(Load)[-1].settings == LoadSettings(base="/m/base", quantize="int8")


@pytest.mark.parametrize("kind", ["none", "nf4", "fp4", "int8"])
def test_it_survives_form_file_and_a_change_of_mode(kind):
    settings = LoadSettings("/m/base", mode="xlora", xlora="/m/x", quantize=kind)
    assert LoadForm.of(settings).settings() == settings
    assert recent.from_json(recent.to_json(settings)) == settings
    assert recent.in_mode(settings, "none") == LoadSettings("/m/base", quantize=kind)


def test_the_demo_pack_keeps_it_in_another_mode():
    settings = LoadForm(mode="lora", quantize="int8").settings()
    assert settings.quantize == "int8"
    other = recent.in_mode(settings, "xlora")
    assert other is not None
    assert (other.quantize, other.xlora) == ("int8", demo_settings("xlora").xlora)


def test_settings_kept_before_there_was_the_choice_and_strange_ones():
    kept = recent.to_json(LoadSettings("/m/base"))
    del kept["quantize"]
    assert recent.from_json(kept) == LoadSettings("/m/base")
    for strange in ("nf5", 4, ["nf4"]):
        assert recent.from_json(kept | {"quantize": strange}) is None
