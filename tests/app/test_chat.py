"""The chat pane in a real window: typing, streaming, stopping, errors, editing, history."""

from __future__ import annotations

import json

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from loradesk_app.chat.turn_views import AnswerView, QuestionView, chip_texts, stats_text
from loradesk_app.widgets.chip import Chip
from loradesk_engine.commands import Cancel, ChatRequest, Load, Message
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import (
    LookAhead,
    ModelLoaded,
    Problem,
    RequestFailed,
    RequestFinished,
    RequestStarted,
    TokensGenerated,
)


def type_and_send(qtbot, window, text: str) -> None:
    qtbot.keyClicks(window.chat.composer.edit, text)
    qtbot.keyClick(window.chat.composer.edit, Qt.Key.Key_Return)


def last_answer(window) -> AnswerView:
    return next(view for view in reversed(window.chat.view.views) if isinstance(view, AnswerView))


def by_hand(worker) -> None:
    """Requests are not answered by the script but by the test."""
    worker.replies[ChatRequest] = lambda command: []


def test_enter_sends_and_the_answer_streams_in(window, worker, qtbot):
    by_hand(worker)
    type_and_send(qtbot, window, "What is 17 + 25?")
    (request,) = worker.commands(ChatRequest)
    assert request.messages == (Message("user", "What is 17 + 25?"),)
    assert (request.follow_activation, request.want_scalings) == (True, True)
    assert window.chat.composer.text() == ""

    worker.tell(RequestStarted(request.request_id, 12, 0, {}))
    window.client.drain()
    view = last_answer(window)
    assert "Reading 12 tokens" in view.waiting.text()
    for text in ("42", ", of", " course"):
        worker.tell(TokensGenerated(request.request_id, text, (1,), (text,)))
        window.client.drain()
    assert view.text.toPlainText() == "42, of course"
    assert window.chat.composer.stop_button.isVisible()
    assert window.status.state.text() == "Answering"

    worker.tell(RequestFinished(request.request_id, "42, of course", "stop", 12, 3, 0, 0.25, 31.25))
    window.client.drain()
    assert view.stats.text() == "3 tokens · 31.2 tokens/s · first after 0.25 s"
    assert window.chat.composer.send_button.isVisible()
    assert window.status.speed.text() == "31.2 tokens/s"
    assert window.status.state.text() == "Ready"


def test_lookahead_is_shown_beside_the_speed(window, worker, qtbot):
    by_hand(worker)
    type_and_send(qtbot, window, "Hello")
    (request,) = worker.commands(ChatRequest)
    worker.tell(RequestStarted(request.request_id, 3, 0, {}))
    worker.tell(RequestFinished(request.request_id, "Hi", "stop", 3, 11, 0, 0.1, 20.0, LookAhead(9, 1)))
    window.client.drain()
    assert "20.0 tokens/s · look-ahead 90%" in last_answer(window).stats.text()
    assert window.status.speed.text() == "20.0 tokens/s · look-ahead 90%"
    # the footer gives way in a narrow window; it must not push the bubbles out of it
    assert last_answer(window).minimumSizeHint().width() < 200


def test_shift_enter_starts_a_new_line(window, worker, qtbot):
    edit = window.chat.composer.edit
    qtbot.keyClicks(edit, "one")
    qtbot.keyClick(edit, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    qtbot.keyClicks(edit, "two")
    assert edit.toPlainText() == "one\ntwo"
    assert not worker.commands(ChatRequest)


def test_ctrl_enter_sends_when_the_settings_say_so(window, worker, qtbot):
    window.settings.set("send_key", "ctrl+enter")
    edit = window.chat.composer.edit
    qtbot.keyClicks(edit, "one")
    qtbot.keyClick(edit, Qt.Key.Key_Return)
    assert not worker.commands(ChatRequest)
    qtbot.keyClick(edit, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
    assert worker.commands(ChatRequest)


def test_the_composer_grows_with_its_text(window, qtbot):
    edit = window.chat.composer.edit
    before = edit.height()
    edit.setPlainText("a\nb\nc")
    assert edit.height() > before
    edit.setPlainText("line\n" * 40)
    assert edit.height() < window.height() / 2


def test_stop_button_cancels_the_request(window, worker, qtbot):
    by_hand(worker)
    type_and_send(qtbot, window, "Tell me everything")
    (request,) = worker.commands(ChatRequest)
    worker.tell(
        RequestStarted(request.request_id, 3, 0, {}), TokensGenerated(request.request_id, "Well", (1,), ("Well",))
    )
    window.client.drain()
    qtbot.mouseClick(window.chat.composer.stop_button, Qt.MouseButton.LeftButton)
    assert worker.commands(Cancel) == [Cancel(request.request_id)]
    worker.tell(RequestFinished(request.request_id, "Well", "cancelled", 3, 1, 0, 0.1, 0.0))
    window.client.drain()
    assert last_answer(window).text.toPlainText() == "Well"
    assert "stopped" in last_answer(window).stats.text()


def test_escape_stops_too(window, worker, qtbot):
    by_hand(worker)
    type_and_send(qtbot, window, "hello")
    window.stop_action.trigger()
    assert worker.commands(Cancel)
    assert window.stop_action.shortcut().toString() == "Esc"


def test_a_failed_answer_shows_why_and_can_be_tried_again(window, worker, qtbot):
    worker.replies[ChatRequest] = lambda command: [
        RequestFailed(command.request_id, Problem("RequestError", "Too long.", None, "messages", "Begin anew."))
    ]
    type_and_send(qtbot, window, "A very long message")
    window.client.drain()
    view = last_answer(window)
    qtbot.waitUntil(view.problem.isVisible)
    assert not view.regenerate_button.isVisible()
    assert (view.problem.sentence.text(), view.problem.field.text()) == ("Too long.", "messages")
    assert view.problem.remedy.text() == "Begin anew."
    question = window.chat.view.views[0]
    assert isinstance(question, QuestionView)
    assert question.text.toPlainText() == "A very long message"
    qtbot.mouseClick(view.problem.action_button, Qt.MouseButton.LeftButton)
    assert len(worker.commands(ChatRequest)) == 2


def test_history_goes_to_the_model_with_each_question(window, worker, qtbot, script):
    for text in ("one", "two"):
        type_and_send(qtbot, window, text)
        window.client.drain()
    answer = "".join(script.ANSWER)
    assert worker.commands(ChatRequest)[1].messages == (
        Message("user", "one"),
        Message("assistant", answer),
        Message("user", "two"),
    )


def test_edit_and_resend_replaces_the_last_turn(window, worker, qtbot):
    type_and_send(qtbot, window, "Waht is this?")
    window.client.drain()
    qtbot.keyClicks(window.chat.composer.edit, "a draft")
    question = window.chat.view.views[0]
    qtbot.mouseClick(question.edit_button, Qt.MouseButton.LeftButton)
    assert window.chat.composer.text() == "Waht is this?"
    window.chat.composer.set_text("What is this?")
    qtbot.keyClick(window.chat.composer.edit, Qt.Key.Key_Return)
    window.client.drain()
    assert [turn.text for turn in window.chat.model.turns if turn.role == "user"] == ["What is this?"]
    assert worker.commands(ChatRequest)[-1].messages == (Message("user", "What is this?"),)


def test_leaving_an_edit_brings_the_draft_back(window, qtbot):
    type_and_send(qtbot, window, "hello")
    window.client.drain()
    window.chat.composer.set_text("a draft")
    window.chat.edit_last()
    window.chat.stop()
    assert window.chat.composer.text() == "a draft"


def test_regenerate_asks_again(window, worker, qtbot):
    type_and_send(qtbot, window, "hello")
    window.client.drain()
    qtbot.mouseClick(last_answer(window).regenerate_button, Qt.MouseButton.LeftButton)
    window.client.drain()
    first, second = worker.commands(ChatRequest)
    assert first.messages == second.messages
    assert first.request_id != second.request_id
    assert window.chat.model.rowCount() == 2


def test_copy_puts_the_exact_text_on_the_clipboard(window, worker, qtbot):
    worker.replies[ChatRequest] = lambda command: [
        RequestFinished(command.request_id, "if x:\n    y = 1\n", "stop", 1, 1, 0, 0.1, 0.0)
    ]
    type_and_send(qtbot, window, "code")
    window.client.drain()
    qtbot.mouseClick(last_answer(window).copy_button, Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().text() == "if x:\n    y = 1\n"


def test_up_brings_back_what_was_sent(window, qtbot):
    for text in ("first", "second"):
        type_and_send(qtbot, window, text)
        window.client.drain()
    edit = window.chat.composer.edit
    qtbot.keyClicks(edit, "draft")
    seen = []
    for key in (Qt.Key.Key_Up, Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_Down):
        qtbot.keyClick(edit, key)
        seen.append(edit.toPlainText())
    assert seen == ["second", "first", "second", "draft"]
    assert window.settings.get("input_history") == ["first", "second"]


def test_examples_are_sent_by_a_click(window, worker, qtbot):
    assert "What is 17 + 25?" in window.chat.empty.buttons()
    button = window.chat.empty._buttons[1]
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    assert worker.commands(ChatRequest)[0].messages[0].content == "What is 17 + 25?"
    assert not window.chat.empty.isVisible()


def test_a_question_waits_for_the_model_that_is_loading(make_window, worker, script, qtbot):
    worker.replies[Load] = lambda command: []
    window = make_window(demo_settings("xlora"))
    type_and_send(qtbot, window, "hello")
    assert not worker.commands(ChatRequest)
    assert window.status.state.text() == "Waiting for the model"
    from loradesk_engine.events import ModelLoaded

    worker.info = script.model_info()
    worker.answer_newest(Load, ModelLoaded(worker.info))
    window.client.drain()
    window.client.drain()
    assert last_answer(window).text.toPlainText() == "".join(script.ANSWER)


def test_without_a_model_the_message_is_kept_and_the_reason_shown(make_window, worker, qtbot):
    window = make_window(None)
    type_and_send(qtbot, window, "hello")
    assert last_answer(window).problem.sentence.text() == "No model is loaded."
    assert window.chat.model.turn(0).text == "hello"


def test_new_conversation_can_be_undone(window, qtbot):
    type_and_send(qtbot, window, "hello")
    window.client.drain()
    window.start_new_conversation()
    assert window.chat.is_empty
    assert window.chat.empty.isVisible()
    window.previous_action.trigger()
    assert window.chat.model.turn(0).text == "hello"


def test_sampling_presets_and_values_reach_the_request(window, worker, qtbot):
    window.chat.open_sampling()
    popover = window.chat.popover
    qtbot.mouseClick(popover.presets.button("Creative"), Qt.MouseButton.LeftButton)
    popover.fields["seed"].setValue(7)
    popover.fields["max_tokens"].setValue(64)
    popover.system.setPlainText("Be brief.")
    popover.hide()
    assert window.chat.composer.sampling_button.text().strip() == "Creative"
    type_and_send(qtbot, window, "hello")
    (request,) = worker.commands(ChatRequest)
    assert (request.sampling.temperature, request.sampling.seed, request.sampling.max_tokens) == (1.1, 7, 64)
    assert request.messages[0] == Message("system", "Be brief.")
    assert window.settings.get("sampling")["seed"] == 7
    popover.fields["temperature"].setValue(0.33)
    assert window.chat.composer.sampling_button.text().strip() == "Custom"


def test_the_view_follows_only_from_its_end(window, worker, qtbot):
    by_hand(worker)
    type_and_send(qtbot, window, "Go on")
    (request,) = worker.commands(ChatRequest)
    view, bar = window.chat.view, window.chat.view.verticalScrollBar()

    def grow() -> None:
        worker.tell(TokensGenerated(request.request_id, "line\n" * 40, (1,), ("line",)))
        window.client.drain()
        qtbot.waitUntil(lambda: bar.maximum() > 0)
        QApplication.processEvents()

    grow()
    assert view.is_at_end()
    bar.setValue(0)
    assert view.newest_button.isVisible()
    grow()
    assert bar.value() == 0
    qtbot.mouseClick(view.newest_button, Qt.MouseButton.LeftButton)
    grow()
    assert view.is_at_end()


def test_exports(window, qtbot, tmp_path):
    type_and_send(qtbot, window, "hello")
    window.client.drain()
    path = tmp_path / "out.json"
    window.save(str(path), lambda: window.chat.export(markdown=False))
    qtbot.waitUntil(path.exists)
    assert json.loads(path.read_text())["turns"][0]["text"] == "hello"
    window.start_new_conversation()
    window.read_conversation(str(path))
    qtbot.waitUntil(lambda: not window.chat.is_empty)
    assert window.chat.model.turn(0).text == "hello"
    assert b"## You\n\nhello\n" in window.chat.export(markdown=True)


def test_chips_leave_out_small_shares(window, qtbot):
    type_and_send(qtbot, window, "hello")
    window.client.drain()
    turn = window.chat.model.turn(1)
    names = [name for name, _ in chip_texts(turn)]
    assert set(names) <= set(turn.shares)
    assert [turn.shares[name] for name in names] == sorted((turn.shares[name] for name in names), reverse=True)
    turn.mode, turn.shares = "lora", {"json": 1.0, "bard": 0.25}
    assert chip_texts(turn) == (("json", "json"), ("bard", "bard × 0.25"))


def test_stats_of_a_single_token():
    from loradesk_app.chat.conversation import Turn

    assert stats_text(Turn("assistant", tokens=1, cut_short=True)) == "1 token · reached the token limit"


@pytest.mark.parametrize("text", ["plain", "```python\nx = 1\n```\nand `inline` **bold**", "a\n\n  b\tc"])
def test_highlighting_never_changes_the_text(window, worker, qtbot, text):
    worker.replies[ChatRequest] = lambda command: [RequestFinished(command.request_id, text, "stop", 1, 1, 0, 0.1, 0.0)]
    window.chat.send("x")
    window.client.drain()
    QTest.qWait(0)
    assert last_answer(window).text.toPlainText() == text


LONG_NAME = "Mistral-7B-Instruct-v0.3-merged-with-more-than-one-thing-and-quantized"


def test_a_long_model_name_is_shortened_where_it_has_no_room(make_window, worker, script):
    window = make_window(demo_settings("xlora"), size=(720, 600))
    worker.tell(ModelLoaded(script.model_info(name=LONG_NAME)))
    window.client.drain()
    edit = window.chat.composer.edit
    QApplication.processEvents()
    assert edit.placeholderText().startswith("Message Mistral")
    room = edit.viewport().width() - 2 * edit.document().documentMargin()
    assert edit.fontMetrics().horizontalAdvance(edit.placeholderText()) <= room
    window.chat.send("hello")
    window.client.drain()
    QApplication.processEvents()
    assert window.chat.view.widget().width() <= window.chat.view.viewport().width()


def test_the_message_field_grows_with_the_text_size(window):
    edit = window.chat.composer.edit
    window.settings.set("font_scale", 180)
    QApplication.processEvents()
    assert edit.viewport().height() >= edit.fontMetrics().lineSpacing()


def test_a_chip_that_is_too_long_stays_in_its_line(make_window, worker, script):
    window = make_window(demo_settings("xlora"), size=(720, 600))
    worker.replies[ChatRequest] = lambda command: script.answer_events(
        command.request_id, mode="lora", weights={LONG_NAME: 1.0}
    )
    worker.tell(ModelLoaded(script.model_info("lora", adapters=(script.adapter_info(LONG_NAME),))))
    window.client.drain()
    window.chat.send("hello")
    window.client.drain()
    QApplication.processEvents()
    (chip,) = last_answer(window).chips.findChildren(Chip)
    assert chip.geometry().right() <= last_answer(window).chips.rect().right()
