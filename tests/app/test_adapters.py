"""The mixing desk: switches, faders, solo, meters, and what is sent to the engine."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QColor, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from loradesk_app.adapters.mix_model import MixModel
from loradesk_app.adapters.switch import readable_on
from loradesk_engine.commands import Activate, AdapterSource, AddAdapter, ChatRequest, Load, RemoveAdapter
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import AdaptersActivated, CommandFailed, ModelLoaded, Problem


@pytest.fixture
def model(qapp, qtmodeltester, script):
    model = MixModel()
    model.set_adapters([script.adapter_info(name) for name in script.ADAPTERS], "lora")
    yield model
    qtmodeltester.check(model, force_py=True)


@pytest.fixture
def lora(make_window):
    """A window with the demo pack in LoRA mode: arithmetic is on."""
    return make_window(demo_settings("lora"))


def sent(qtbot, worker) -> dict[str, float]:
    """The newest weights, once the throttle has let them through."""
    QTest.qWait(80)
    return dict(worker.commands(Activate)[-1].weights)


def test_all_are_on_in_xlora_and_none_in_lora(model, script):
    assert model.weights() == {}
    model.set_adapters([script.adapter_info("a"), script.adapter_info("b")], "xlora")
    assert model.weights() == {"a": 1.0, "b": 1.0}


def test_solo_wins_over_switches_and_gives_them_back(model):
    model.set_on(0, True)
    model.set_solo(2, True)
    assert model.weights() == {"json": 1.0}
    model.solo_only(3)
    assert model.weights() == {"bard": 1.0}
    model.solo_only(3)
    assert model.weights() == {"arithmetic": 1.0}


def test_an_echo_does_not_pull_back_a_fader(model):
    model.set_on(0, True)
    for tag, weight in (("one", 0.5), ("two", 0.7)):
        model.set_weight(0, weight)
        model.note_sent(tag)
    model.take_activation({"arithmetic": 0.5}, "one")
    assert model.channel(0).weight == 0.7
    model.take_activation({"arithmetic": 0.7}, "two")
    model.take_activation({"capitals": 2.0})  # somebody else's, over HTTP
    assert model.weights() == {"capitals": 2.0}


def test_weights_stay_in_range(model):
    model.set_weight(0, 7)
    model.set_weight(1, -1)
    assert (model.channel(0).weight, model.channel(1).weight) == (2.0, 0.0)


def test_adapters_that_stay_keep_their_faders(model, script):
    model.set_on(1, True)
    model.set_weight(1, 0.4)
    model.update_adapters([script.adapter_info("new"), script.adapter_info("capitals")])
    assert model.weights() == {"capitals": 0.4}


def test_the_engine_says_what_is_active_at_first(lora):
    strips = lora.adapters.strips
    assert [strip.switch.isChecked() for strip in strips] == [True, False, False, False]
    assert lora.adapters.count.text() == "1 of 4 on"


def test_a_click_switches_an_adapter(lora, worker, qtbot):
    qtbot.mouseClick(lora.adapters.strips[2].switch, Qt.MouseButton.LeftButton)
    assert sent(qtbot, worker) == {"arithmetic": 1.0, "json": 1.0}


def test_shift_click_is_solo(lora, worker, qtbot):
    switch = lora.adapters.strips[3].switch
    qtbot.mouseClick(switch, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.ShiftModifier)
    assert sent(qtbot, worker) == {"bard": 1.0}
    assert not switch.isChecked()
    qtbot.mouseClick(lora.adapters.strips[3].solo, Qt.MouseButton.LeftButton)
    assert sent(qtbot, worker) == {"arithmetic": 1.0}


def test_dragging_a_fader_sends_throttled_weights_and_the_last_one(lora, worker, qtbot):
    fader = lora.adapters.strips[0].fader
    middle = fader.width() // 2
    start, end = QPoint(middle, round(fader.y_of(100))), QPoint(middle, round(fader.y_of(40)))
    qtbot.mousePress(fader, Qt.MouseButton.LeftButton, pos=start)
    for step in range(1, 11):
        qtbot.mouseMove(fader, start + (end - start) * step / 10)
    qtbot.mouseRelease(fader, Qt.MouseButton.LeftButton, pos=end)
    assert sent(qtbot, worker)["arithmetic"] == pytest.approx(0.4, abs=0.02)
    assert lora.adapters.strips[0].number.value() == pytest.approx(0.4, abs=0.02)
    assert len(worker.commands(Activate)) < 10


def test_a_double_click_sets_a_fader_back_to_one(lora, worker, qtbot):
    strip = lora.adapters.strips[0]
    strip.number.setValue(1.7)
    assert strip.fader.value() == 170
    qtbot.mouseDClick(strip.fader, Qt.MouseButton.LeftButton)
    assert sent(qtbot, worker) == {"arithmetic": 1.0}


def test_faders_move_by_keys(lora, worker, qtbot):
    fader = lora.adapters.strips[0].fader
    qtbot.keyClick(fader, Qt.Key.Key_Up)
    assert sent(qtbot, worker) == {"arithmetic": 1.05}
    qtbot.keyClick(fader, Qt.Key.Key_0)
    assert sent(qtbot, worker) == {"arithmetic": 0.0}


def test_ctrl_number_switches_an_adapter(lora, worker, qtbot):
    assert lora.toggle_actions[1].shortcut().toString() == "Ctrl+2"
    lora.toggle_actions[1].trigger()
    assert sent(qtbot, worker) == {"arithmetic": 1.0, "capitals": 1.0}
    assert lora.toggle_actions[1].isChecked()
    assert not lora.toggle_actions[4].isVisible()


def test_all_off_and_all_on(window, worker, qtbot):
    qtbot.mouseClick(window.adapters.all_off, Qt.MouseButton.LeftButton)
    assert sent(qtbot, worker) == {}
    qtbot.mouseClick(window.adapters.all_on, Qt.MouseButton.LeftButton)
    assert set(sent(qtbot, worker)) == set(window.adapters.model.names())


def test_meters_show_the_newest_token(window, script):
    window.chat.send("hello")
    window.client.drain()
    rows = script.scalings_for(script.PROMPT + script.ANSWER)
    newest = rows[len(script.PROMPT) + len(script.ANSWER) - 2].mean(axis=0)
    levels = [strip.meter.level for strip in window.adapters.strips]
    assert levels == pytest.approx(newest.tolist(), abs=1e-5)
    assert all(strip.meter.isVisible() for strip in window.adapters.strips)


def test_no_meters_outside_xlora(lora):
    assert not any(strip.meter.isVisible() for strip in lora.adapters.strips)


def test_the_tooltip_tells_what_is_known(lora):
    tip = lora.adapters.strips[0].toolTip().replace("\u200b", "")  # where long paths may wrap
    for part in ("Rank 8", "applied to 42 of 43 modules", "q_proj", "/models/demo/adapters/arithmetic"):
        assert part in tip


def test_an_adapter_is_added_by_the_dialog(lora, worker, qtbot, script):
    qtbot.mouseClick(lora.adapters.add_button, Qt.MouseButton.LeftButton)
    dialog = lora.adapters.dialog
    dialog.source.setText("/models/adapters/json/")
    assert dialog.name.text() == "json"
    assert not dialog.add_button.isEnabled()  # the name is taken
    dialog.name.clear()
    qtbot.keyClicks(dialog.name, "json2")
    qtbot.mouseClick(dialog.add_button, Qt.MouseButton.LeftButton)
    (added,) = worker.commands(AddAdapter)
    assert added.adapter == AdapterSource("json2", "/models/adapters/json/")
    lora.client.drain()
    assert [strip.name.text() for strip in lora.adapters.strips][-1] == "json2"
    assert lora.adapters.model.weights() == {"arithmetic": 1.0}


def test_an_adapter_is_removed_by_its_menu(lora, worker):
    menu = lora.adapters.strips[1].menu()
    menu.actions()[-1].trigger()
    assert [command.name for command in worker.commands(RemoveAdapter)] == ["capitals"]
    menu.deleteLater()
    lora.client.drain()
    assert lora.adapters.model.names() == ("arithmetic", "json", "bard")


def test_a_command_that_failed_is_shown_and_the_desk_goes_on(lora, worker):
    problem = Problem("AdapterError", "Rank is missing.", "/a/adapter_config.json", "r", "Add it.")
    worker.replies[AddAdapter] = lambda command: [CommandFailed(problem)]
    lora.adapters.add_requested.emit(AdapterSource("new", "/a"))
    lora.client.drain()
    assert lora.banner.problem.isVisible()
    assert lora.banner.problem.remedy.text() == "Add it."
    worker.tell(AdaptersActivated({"bard": 1.5}))
    lora.client.drain()
    assert lora.adapters.model.weights() == {"bard": 1.5}


def test_activations_during_an_answer_show_up_as_chips(lora, worker, script):
    worker.replies[ChatRequest] = lambda command: script.answer_events(
        command.request_id, mode="lora", weights={"arithmetic": 1.0}
    )[:3]
    lora.chat.send("hello")
    lora.client.drain()
    lora.adapters.toggle(3)
    lora.client.drain()
    assert lora.chat.model.turn(1).shares == {"arithmetic": 1.0, "bard": 1.0}


def test_colours_are_the_same_everywhere(window):
    names = window.adapters.model.names()
    assert [window.chat._colors[name] for name in names] == list(range(len(names)))
    colors = {window.theme.adapter_color(place).name() for place in range(len(names))}
    assert len(colors) == len(names)


@pytest.mark.parametrize(("ground", "ink"), [("#000000", "#ffffff"), ("#F5A04A", "#101010"), ("#0072B2", "#ffffff")])
def test_texts_on_colours_are_readable(ground, ink):
    assert readable_on(QColor(ground)).name() == ink


def settle(qtbot, window) -> None:
    """Until everything was sent and the engine's outcomes have been shown."""
    QTest.qWait(80)
    window.client.drain()


def test_a_fader_at_zero_comes_back(lora, worker, qtbot):
    strip = lora.adapters.strips[0]
    strip.number.setValue(0)
    settle(qtbot, lora)
    assert worker.active == {}
    assert strip.switch.isChecked()
    assert lora.adapters.count.text() == "1 of 4 on"
    strip.number.setValue(1)
    settle(qtbot, lora)
    assert worker.active == {"arithmetic": 1.0}
    assert strip.switch.isChecked()


def test_a_fader_at_zero_leaves_a_solo_and_the_switches_as_they_are(lora, worker, qtbot):
    lora.adapters.model.set_on(1, True)
    qtbot.mouseClick(lora.adapters.strips[2].solo, Qt.MouseButton.LeftButton)
    lora.adapters.strips[2].number.setValue(0)
    settle(qtbot, lora)
    assert worker.active == {}
    assert lora.adapters.strips[2].solo.isChecked()
    qtbot.mouseClick(lora.adapters.strips[2].solo, Qt.MouseButton.LeftButton)
    settle(qtbot, lora)
    assert worker.active == {"arithmetic": 1.0, "capitals": 1.0}
    assert [strip.switch.isChecked() for strip in lora.adapters.strips] == [True, True, False, False]


def test_an_activation_that_fails_brings_the_strips_back(lora, worker, qtbot):
    lora.adapters.strips[0].number.setValue(0)
    settle(qtbot, lora)
    good = worker.replies[Activate]
    worker.replies[Activate] = lambda command: [CommandFailed(Problem("AdapterError", "No."))]
    qtbot.mouseClick(lora.adapters.strips[3].solo, Qt.MouseButton.LeftButton)
    settle(qtbot, lora)
    assert lora.banner.problem.isVisible()
    assert not lora.adapters.strips[3].solo.isChecked()
    assert lora.adapters.strips[0].switch.isChecked()
    assert lora.adapters.strips[0].number.value() == 0
    worker.replies[Activate] = good
    lora.adapters.strips[0].number.setValue(0.5)
    settle(qtbot, lora)
    assert worker.active == {"arithmetic": 0.5}


def test_an_activation_of_others_is_shown_also_if_it_equals_ours(lora, worker, qtbot):
    lora.adapters.model.set_solo(1, True)  # sends capitals alone
    settle(qtbot, lora)
    worker.tell(AdaptersActivated({"capitals": 1.0}, "of a program"))
    lora.client.drain()
    assert [strip.switch.isChecked() for strip in lora.adapters.strips] == [False, True, False, False]
    assert not lora.adapters.strips[1].solo.isChecked()


def test_removing_the_adapter_that_is_heard_alone_gives_the_others_back(lora, worker, qtbot):
    lora.adapters.model.set_solo(1, True)
    settle(qtbot, lora)
    assert worker.active == {"capitals": 1.0}
    lora.adapters.remove_requested.emit("capitals")
    lora.client.drain()
    settle(qtbot, lora)
    assert worker.active == {"arithmetic": 1.0}
    assert [strip.switch.isChecked() for strip in lora.adapters.strips] == [True, False, False]


def test_an_adapter_that_comes_back_under_its_name_starts_off(model, script):
    model.set_on(0, True)
    model.note_sent("one")
    model.take_activation({"arithmetic": 1.0}, "one")
    rest = [script.adapter_info(name) for name in script.ADAPTERS[1:]]
    model.update_adapters(rest)
    model.update_adapters([script.adapter_info("arithmetic"), *rest])
    model.set_on(1, True)
    model.note_sent("two")
    model.take_failure("two")
    assert model.weights() == {}


def test_a_load_without_an_active_adapter_says_so_once(make_window, worker, script, qtbot):
    info = script.model_info("lora", adapters=tuple(script.adapter_info(name) for name in ("one", "two")))
    worker.replies[Load] = lambda command: [ModelLoaded(info), AdaptersActivated({})]
    window = make_window(demo_settings("lora"))
    worker.info = info
    text = window.banner.notice_text.text()
    assert window.banner.notice.isVisible()
    remedy = "Turn one on with its switch on the desk, or with Ctrl+1 to Ctrl+2."
    assert text == f"2 adapters loaded, none active: one, two. {remedy}"
    window.adapters.toggle(0)
    settle(qtbot, window)
    assert not window.banner.isVisible()
    window.adapters.toggle(0)
    settle(qtbot, window)
    assert not window.banner.isVisible()  # the user did it and knows


def test_warnings_stay_when_an_adapter_is_switched_on(make_window, worker, script, qtbot):
    worker.info = script.model_info("lora", warnings=("Four bits.",))
    info = worker.info
    worker.replies[Load] = lambda command: [ModelLoaded(info), AdaptersActivated({})]
    window = make_window(demo_settings("lora"))
    assert window.banner.notice_text.text().startswith("Four bits.\n4 adapters loaded, none active")
    window.adapters.toggle(0)
    settle(qtbot, window)
    assert window.banner.notice_text.text() == "Four bits."
    assert window.banner.notice.isVisible()


@pytest.fixture
def many(window, worker, script):
    """A window with twelve X-LoRA adapters."""
    infos = tuple(script.adapter_info(f"expert-{number:02d}-of-twelve") for number in range(12))
    worker.tell(ModelLoaded(script.model_info(adapters=infos)))
    window.client.drain()
    QApplication.processEvents()
    return window


def wheel_down(widget) -> None:
    """Turn the wheel over a widget; those above it get the event until one takes it, as Qt does with real ones."""
    place = QPointF(widget.rect().center())
    while widget is not None:
        event = QWheelEvent(
            *(place, QPointF(widget.mapToGlobal(place.toPoint())), QPoint(), QPoint(0, -120)),
            *(Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False),
        )
        QApplication.sendEvent(widget, event)
        if event.isAccepted():
            return
        widget = widget.parentWidget()


@pytest.mark.parametrize("part", ["fader", "number", "switch"])
def test_the_wheel_moves_the_desk_and_no_weight(many, worker, part):
    bar, strip = many.adapters.desk_scroll.horizontalScrollBar(), many.adapters.strips[1]
    assert bar.maximum() > 0
    wheel_down(getattr(strip, part))
    assert bar.value() > 0
    assert strip.number.value() == 1


def test_names_that_differ_in_the_middle_can_be_told_apart(many):
    for strip in many.adapters.strips:
        name = strip.name
        assert name.fontMetrics().horizontalAdvance(name.text()) <= name.contentsRect().width()


def test_only_adapters_with_a_key_name_one(many):
    tips = [strip.switch.toolTip() for strip in many.adapters.strips]
    assert "Ctrl+9" in tips[8]
    assert not any("Ctrl" in tip for tip in tips[9:])


def test_a_name_is_no_mark_up(window, worker, script):
    worker.tell(ModelLoaded(script.model_info(adapters=(script.adapter_info("<h1>loud</h1>"),))))
    window.client.drain()
    assert "&lt;h1&gt;loud&lt;" in window.adapters.strips[0].toolTip()


@pytest.mark.parametrize("mode", ["lora", "xlora"])
def test_the_count_is_whole_in_the_smallest_window(make_window, worker, script, mode):
    window = make_window(demo_settings(mode), size=(720, 800))
    infos = tuple(script.adapter_info(f"a{number}") for number in range(64))
    worker.tell(ModelLoaded(script.model_info(mode, adapters=infos)))
    worker.tell(AdaptersActivated({info.name: 1.0 for info in infos[1:]}))
    window.client.drain()
    QApplication.processEvents()
    count = window.adapters.count
    assert count.text() == "63 of 64 on"
    assert count.fontMetrics().horizontalAdvance(count.text()) <= count.contentsRect().width()


def test_what_a_low_desk_cuts_off_can_be_scrolled_to(make_window, worker, qtbot):
    window = make_window(demo_settings("lora"), size=(720, 480))
    problem = Problem("AdapterError", "No.", "/a/adapter_config.json", "r", "Add it. " * 30)
    worker.replies[AddAdapter] = lambda command: [CommandFailed(problem)]
    window.adapters.add_requested.emit(AdapterSource("new", "/a"))
    window.client.drain()
    QApplication.processEvents()
    number = window.adapters.strips[0].number
    window.adapters.desk_scroll.ensureWidgetVisible(number)
    qtbot.waitUntil(lambda: number.visibleRegion().boundingRect().height() == number.height())
