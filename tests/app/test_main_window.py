"""The window as a whole: modes, layout, theme, saving, closing."""

from __future__ import annotations

import json

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractButton, QApplication, QLineEdit, QToolButton

from loradesk_engine.commands import Activate, Cancel, CancelLoad, ChatRequest, Load, Unload
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import (
    LoadFailed,
    MemoryMeasured,
    ModelLoaded,
    Problem,
    RequestFailed,
    TokensGenerated,
    WorkerClosed,
)


def test_the_demo_fills_header_status_and_panes(window):
    assert window.header.model_button.text() == "loradesk-demo"
    assert window.header.modes.current() == "xlora"
    assert window.status.model.text() == "loradesk-demo · X-LoRA"
    assert window.status.device.text() == "cpu · float32"
    assert window.status.memory.text() == "Memory 432 MB · cache 6.3 MB"
    assert len(window.adapters.strips) == 4
    assert not window.banner.isVisible()


def test_a_mode_is_changed_by_reloading_the_same_model(window, worker, qtbot):
    qtbot.mouseClick(window.header.modes.button("none"), Qt.MouseButton.LeftButton)
    assert worker.commands(Load)[-1].settings == demo_settings("none")
    window.client.drain()
    assert window.info.mode == "none"
    assert window.adapters.strips == []
    assert "base model runs by itself" in window.adapters._empty_text.text()
    qtbot.mouseClick(window.header.modes.button("lora"), Qt.MouseButton.LeftButton)
    window.client.drain()
    assert (window.info.mode, len(window.adapters.strips)) == ("lora", 4)


def test_changing_the_mode_keeps_the_conversation(window, worker):
    window.chat.send("hello")
    window.client.drain()
    window.change_mode("lora")
    window.client.drain()
    assert window.chat.model.turn(0).text == "hello"


def test_a_mode_that_fails_to_load_springs_back(window, worker, qtbot):
    worker.replies[Load] = lambda command: [LoadFailed(Problem("CheckpointError", "No."), model_kept=True)]
    qtbot.mouseClick(window.header.modes.button("lora"), Qt.MouseButton.LeftButton)
    assert window.header.modes.current() == "lora"
    window.client.drain()
    assert window.header.modes.current() == "xlora"
    assert window.banner.problem.isVisible()
    qtbot.mouseClick(window.banner.problem.close_button, Qt.MouseButton.LeftButton)
    assert not window.banner.isVisible()


def test_choosing_the_loaded_mode_again_cancels_the_change(window, worker, qtbot):
    worker.replies[Load] = lambda command: []
    qtbot.mouseClick(window.header.modes.button("lora"), Qt.MouseButton.LeftButton)
    window.change_mode("xlora")
    assert worker.commands(CancelLoad)


def test_warnings_of_a_load_can_be_read(window, worker, script, qtbot):
    from loradesk_engine.events import ModelLoaded

    warning = "X-LoRA on a 4-bit base: use 8 bits."
    worker.replies[Load] = lambda command: [ModelLoaded(script.model_info(warnings=(warning,)))]
    window.load(demo_settings("xlora"))
    window.client.drain()
    assert window.banner.notice.isVisible()
    assert window.banner.notice_text.text() == warning


def test_unloading_empties_the_panes(window, worker):
    window.unload_action.trigger()
    assert worker.commands(Unload)
    window.client.drain()
    assert window.info is None
    assert window.header.model_button.text() == "Load a model"
    assert window.status.state.text() == "No model is loaded"
    window.adapters.model.switch_all(True)
    assert not worker.commands(Activate)


@pytest.mark.parametrize("size", [(720, 600), (720, 480), (1600, 1000)])
def test_everything_has_room_at_any_allowed_size(make_window, size, qtbot):
    window = make_window(demo_settings("xlora"), size=size)
    QApplication.processEvents()
    assert (window.width(), window.height()) == size
    assert window.chat.width() >= 320
    assert window.side.is_tabbed == (size[1] < 700)
    right = window.rect().right()
    for pane in (window.header.side_button, window.side, window.chat.composer.send_button):
        assert pane.mapTo(window, pane.rect().topRight()).x() <= right


def test_side_tabs_switch_between_the_panes(make_window, qtbot):
    window = make_window(demo_settings("xlora"), size=(720, 600))
    assert window.adapters.isVisible()
    assert not window.scalings.isVisible()
    qtbot.mouseClick(window.side.tabs.button("Scalings"), Qt.MouseButton.LeftButton)
    assert not window.adapters.isVisible()
    assert window.scalings.isVisible()


def test_the_side_panel_can_be_hidden(window, qtbot):
    qtbot.mouseClick(window.header.side_button, Qt.MouseButton.LeftButton)
    assert not window.side.isVisible()
    window.side_action.trigger()
    assert window.side.isVisible()


def test_the_theme_is_switched_and_kept(window, qtbot):
    before = window.theme.tokens
    qtbot.mouseClick(window.header.theme_button, Qt.MouseButton.LeftButton)
    assert window.theme.is_dark
    assert window.theme.tokens != before
    assert window.settings.get("theme") == "dark"
    assert window.theme_actions["dark"].isChecked()
    assert QApplication.palette().window().color().name().upper() == window.theme.tokens.window
    window.theme_actions["light"].trigger()
    assert not window.theme.is_dark


def test_text_size_follows_its_setting(window):
    before = QApplication.font().pointSizeF()
    window.change_text_size(+20)
    assert QApplication.font().pointSizeF() == pytest.approx(before * 1.2)
    window.change_text_size(0)
    assert QApplication.font().pointSizeF() == pytest.approx(before)


def test_the_conversation_is_saved_while_it_grows_and_restored(make_window, qtbot, tmp_path):
    window = make_window(demo_settings("xlora"))
    window.chat.send("Remember me")
    window.client.drain()
    window.chat.composer.set_text("not sent yet")
    path = tmp_path / "conversation.json"
    qtbot.waitUntil(lambda: path.exists() and "not sent yet" in path.read_text("utf-8"))
    again = make_window(None)
    assert [turn.text for turn in again.chat.model.turns] == [turn.text for turn in window.chat.model.turns]
    assert again.chat.composer.text() == "not sent yet"


def test_a_conversation_not_wanted_back_can_still_be_brought_back(make_window, settings, qtbot, tmp_path):
    (tmp_path / "conversation.json").write_text(json.dumps({"turns": [{"role": "user", "text": "old"}]}), "utf-8")
    settings.set("restore_conversation", False)
    window = make_window(None)
    assert window.chat.is_empty
    window.bring_back_previous()
    assert window.chat.model.turn(0).text == "old"


def test_a_damaged_conversation_steps_aside(make_window, qtbot, tmp_path):
    path = tmp_path / "conversation.json"
    path.write_text("{ not json", "utf-8")
    window = make_window(None)
    assert window.chat.is_empty
    assert (tmp_path / "conversation.damaged.json").read_text("utf-8") == "{ not json"


def test_closing_during_an_answer_cancels_and_keeps_it(make_window, worker, qtbot, tmp_path):
    worker.replies[ChatRequest] = lambda command: []
    window = make_window(demo_settings("xlora"))
    window.chat.send("hello")
    (request,) = worker.commands(ChatRequest)
    worker.tell(TokensGenerated(request.request_id, "half an answ", (1,), ("x",)))
    window.client.drain()
    with qtbot.waitSignal(window.closed_down) as closed:
        window.close()
        assert not window.isVisible()
    assert closed.args == [True]
    assert worker.commands(Cancel) == [Cancel(request.request_id)]
    kept = json.loads((tmp_path / "conversation.json").read_text("utf-8"))
    assert [turn["text"] for turn in kept["turns"]] == ["hello", "half an answ"]
    assert kept["turns"][1]["state"] == "stopped"


def test_closing_during_a_load_cancels_it(make_window, worker, qtbot):
    worker.replies[Load] = lambda command: []
    window = make_window(demo_settings("xlora"))
    with qtbot.waitSignal(window.closed_down):
        window.close()
    assert worker.commands(CancelLoad)
    assert worker.closed


def test_a_conversation_that_cannot_be_saved_is_told(make_window, qtbot, monkeypatch):
    window = make_window(None)

    def fail(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loradesk_app.autosave._write", fail)
    with qtbot.waitSignal(window.autosave.failed):
        window.chat.composer.set_text("x")
        window.autosave.save()
    assert "No space left" in window.banner.problem.sentence.text()
    assert window.chat.composer.text() == "x"


def test_an_engine_that_stops_is_told(window, worker):
    worker.replies[ChatRequest] = lambda command: []
    window.chat.send("hello")
    worker.tell(WorkerClosed())
    worker.ends = False
    window.client.drain()
    assert window.status.state.text() == "The engine has stopped"
    assert window.chat.model.turn(1).problem.problem == "The engine has stopped."


def test_places_are_kept(make_window, settings, qtbot):
    window = make_window(None, size=(1000, 700))
    window.splitter.setSizes([400, 570])
    with qtbot.waitSignal(window.closed_down):
        window.close()
    again = make_window(None)
    again.resize(1000, 700)
    assert settings.get("window_geometry")
    assert again.splitter.sizes() == pytest.approx(window.splitter.sizes(), abs=20)


def test_memory_is_shown(window, worker):
    worker.tell(MemoryMeasured(3_400_000_000, 8_000_000_000, 2_000))
    window.client.drain()
    assert window.status.memory.text() == "Memory 3.4 GB · device 8.0 GB · cache 2.0 kB"


def test_every_button_and_field_has_a_name_for_screen_readers(window):
    window.chat.send("hello")
    window.client.drain()
    window.open_loader()
    for kind in (QAbstractButton, QLineEdit):
        for widget in window.findChildren(kind):
            if widget.objectName().startswith("qt_") or (type(widget) is QToolButton and not widget.toolTip()):
                continue  # parts that Qt makes itself
            named = widget.accessibleName() or (widget.text() if isinstance(widget, QAbstractButton) else "")
            assert named or widget.parent().accessibleName(), widget


def test_no_two_actions_share_a_key(window):
    keys = [action.shortcut().toString() for action in window.actions() if not action.shortcut().isEmpty()]
    assert len(keys) == len(set(keys))


def test_preferences_are_made_from_the_settings(window, qtbot):
    window.open_preferences()
    from loradesk_app.preferences_dialog import PreferencesDialog

    dialog = window.findChild(PreferencesDialog)
    assert set(dialog.fields) == {"theme", "font_scale", "reload_last_model", "send_key", "restore_conversation"}
    dialog.fields["reload_last_model"].setChecked(True)
    dialog.fields["theme"].setCurrentIndex(2)
    assert window.settings.get("reload_last_model") is True
    assert window.theme.is_dark
    dialog.close()


def test_about_lists_the_keys(window, qtbot):
    window.open_about()
    from PySide6.QtWidgets import QLabel

    from loradesk_app.about_dialog import AboutDialog

    dialog = window.findChild(AboutDialog)
    texts = [label.text() for label in dialog.findChildren(QLabel)]
    assert "Ctrl+O" in texts
    assert any("torch 2.13.0" in text for text in texts)
    dialog.close()


def test_tab_visits_header_conversation_composer_desk_and_plot_in_this_order(window, qtbot):
    window.chat.send("hello")
    window.client.drain()
    QApplication.processEvents()
    strip, other = window.adapters.strips[0], window.adapters.strips[1]
    wanted = [
        *(window.header.model_button, window.header.side_button, window.chat.view),
        *(window.chat.view.views[0].text, window.chat.view.views[1].text, window.chat.composer.edit),
        *(window.adapters.all_off, strip.switch, strip.fader, strip.number, other.switch),
        *(window.scalings.pause_button, window.scalings.plots.adapter),
    ]
    order = [wanted[0]]
    while (following := order[-1].nextInFocusChain()) is not order[0]:
        order.append(following)
    places = [order.index(widget) for widget in wanted]
    assert places == sorted(places)


def test_a_narrow_status_line_leaves_parts_out_whole(make_window, worker, script):
    window = make_window(demo_settings("xlora"), size=(720, 600))
    name = "Mistral-7B-Instruct-v0.3-merged-with-more-than-one-thing"
    worker.tell(ModelLoaded(script.model_info(name=name, device="cuda:0", dtype="bfloat16")))
    worker.tell(MemoryMeasured(3_400_000_000, 80_000_000_000, 2_000_000_000))
    window.client.drain()
    status = window.status
    status.show_server("http://127.0.0.1:8357")
    status.show_state("Waiting for the model")
    QApplication.processEvents()
    assert not status.model.isVisible()
    assert name in status.state.toolTip()
    shown = [part for part in (status.state, *status._parts) if part.isVisible()]
    for part in shown:
        assert part.fontMetrics().horizontalAdvance(part.text()) <= part.width(), part.text()
    window.resize(1900, 600)
    QApplication.processEvents()
    assert all(part.isVisible() for part in status._parts if part.text())


def test_a_request_of_others_changes_nothing_in_the_window(window, worker, script):
    """A program asks over HTTP: neither plot, meters, speed, conversation nor state are the chat's."""
    window.chat.send("hello")
    window.client.drain()
    before = look_of(window)
    worker.tell(*script.answer_events("of a program", prompt=("x",), answer=("y",) * 40))
    worker.tell(RequestFailed("of a program too", Problem("RequestError", "No.")))
    window.client.drain()
    assert look_of(window) == before
    assert not window.banner.isVisible()


def test_a_request_of_others_during_an_answer_changes_nothing_of_it(window, worker, script):
    theirs = script.answer_events("of a program", prompt=("x",), answer=("y",) * 15)
    looks = []
    for others in ([], theirs):
        worker.replies[ChatRequest] = lambda command: []
        window.start_new_conversation()
        window.chat.send("hello")
        mine = script.answer_events(worker.commands(ChatRequest)[-1].request_id)
        for place, event in enumerate(mine):
            worker.tell(*others[place : place + 1], event)
        window.client.drain()
        looks.append(look_of(window))
    assert looks[0] == looks[1]


def look_of(window) -> tuple:
    """What the window shows of requests."""
    shown = window.scalings.model
    return (
        (shown.texts, shown.first, shown.prompt_tokens),
        tuple(strip.meter.level for strip in window.adapters.strips),
        window.status.speed.text(),
        window.status.state.text(),
        tuple((turn.text, turn.state, turn.look_ahead) for turn in window.chat.model.turns),
    )
