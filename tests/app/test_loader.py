"""The loader: what its fields make, how a load is shown, and what is remembered."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent, QGuiApplication
from PySide6.QtWidgets import QScrollArea

from loradesk_app.loader import recent
from loradesk_app.loader.adapter_list_model import AdapterListModel
from loradesk_app.loader.load_form import LoadForm
from loradesk_app.loader.typing_watch import inserted
from loradesk_engine.commands import AdapterSource, CancelLoad, ChatRequest, Estimate, Load, LoadSettings
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import (
    EstimateFailed,
    LoadCancelled,
    LoadFailed,
    LoadProgressed,
    MemoryEstimate,
    MemoryEstimated,
    MemoryPart,
    ModelLoaded,
    Problem,
)

BROKEN = Problem("OrderingError", "A layer is missing.", "/m/order.json", "layers", "Build it again.")


@pytest.fixture
def dialog(window):
    window.open_loader()
    return window.loader


def choose(qtbot, segmented, key: str) -> None:
    qtbot.mouseClick(segmented.button(key), Qt.MouseButton.LeftButton)


def test_the_form_makes_the_settings_of_a_hub_model_with_lora(dialog, worker, qtbot):
    choose(qtbot, dialog.source, "hub")
    choose(qtbot, dialog.mode, "lora")
    qtbot.keyClicks(dialog.hub_id, "org/model")
    qtbot.keyClicks(dialog.revision, "v2")
    qtbot.keyClicks(dialog.token, "hf_secret")
    dialog.adapters.add("/a/json")
    dialog.adapters.add("org/bard-lora", "bard")
    dialog.ordering.set_text("/a/order.json")
    dialog.dtype.setCurrentIndex(dialog.dtype.findData("bfloat16"))
    dialog.context.setValue(2048)
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert worker.commands(Load)[-1].settings == LoadSettings(
        base="org/model",
        revision="v2",
        mode="lora",
        adapters=(AdapterSource("json", "/a/json"), AdapterSource("bard", "org/bard-lora")),
        ordering="/a/order.json",
        dtype="bfloat16",
        context=2048,
        token="hf_secret",
    )


def test_the_form_makes_the_settings_of_a_local_model_with_xlora(dialog, worker, qtbot):
    choose(qtbot, dialog.source, "local")
    choose(qtbot, dialog.mode, "xlora")
    dialog.path.set_text("/m/base")
    dialog.xlora.set_text("/m/xlora")
    dialog.non_granular.setValue(12)
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert worker.commands(Load)[-1].settings == LoadSettings(
        base="/m/base", mode="xlora", xlora="/m/xlora", tgt_non_granular_index=12
    )


@pytest.mark.parametrize("mode", ["none", "lora", "xlora"])
def test_the_demo_pack_loads_in_every_mode(mode):
    assert LoadForm(mode=mode).settings() == demo_settings(mode)


def test_what_is_missing_is_said_when_load_is_pressed_not_before(dialog, worker, qtbot):
    choose(qtbot, dialog.source, "local")
    assert dialog.complaint.text() == ""
    before = len(worker.commands(Load))
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert "folder or GGUF file" in dialog.complaint.text()
    assert len(worker.commands(Load)) == before
    dialog.path.set_text("/m/base.gguf")
    assert "X-LoRA checkpoint" in dialog.complaint.text()
    choose(qtbot, dialog.mode, "none")
    assert dialog.complaint.text() == ""


def test_a_complaint_leaves_the_focus_where_one_types(dialog, qtbot):
    choose(qtbot, dialog.source, "hub")
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert dialog.focusWidget() is dialog.hub_id
    dialog.xlora.edit.setFocus()
    qtbot.keyClicks(dialog.xlora.edit, "/m")
    assert dialog.focusWidget() is dialog.xlora.edit


def test_tab_stops_at_fields_only(dialog, window):
    of_dialog = dialog.findChildren(QScrollArea, options=Qt.FindChildOption.FindDirectChildrenOnly)
    assert of_dialog
    for area in (*of_dialog, window.adapters.desk_scroll):
        assert area.focusPolicy() == Qt.FocusPolicy.NoFocus


def test_missing_adapters_are_marked_where_they_belong(dialog, qtbot):
    dialog.set_form(LoadForm(source="local", path="/m", mode="lora"))
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert dialog.table.property("invalid")
    assert dialog.focusWidget() is dialog.table
    dialog.adapters.add("/a/json")
    assert not dialog.table.property("invalid")


def test_only_adapters_that_are_selected_can_be_removed(dialog, qtbot):
    dialog.set_form(LoadForm(source="local", path="/m", mode="lora", adapters=(AdapterSource("a", "/a"),)))
    assert not dialog.remove_adapter.isEnabled()
    dialog.table.selectRow(0)
    qtbot.mouseClick(dialog.remove_adapter, Qt.MouseButton.LeftButton)
    assert dialog.adapters.adapters() == ()
    assert not dialog.remove_adapter.isEnabled()


def test_fields_tell_all_of_a_text_that_is_longer_than_they_are(dialog):
    dialog.path.set_text("/m/<b>/base")
    dialog.hub_id.setText("org/model")
    assert dialog.path.edit.toolTip().replace("\u200b", "") == "<qt>/m/&lt;b&gt;/base</qt>"
    assert "model" in dialog.hub_id.toolTip()
    dialog.hub_id.clear()
    assert dialog.hub_id.toolTip() == ""


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (LoadForm(source="hub"), "hub_id"),
        (LoadForm(source="local", path="/m", mode="lora"), "adapters"),
        (LoadForm(source="local", path="/m", mode="lora", adapters=(AdapterSource("", "/a"),)), "adapters"),
        (LoadForm(source="local", path="/m", mode="lora", adapters=(AdapterSource("a", "/a"),) * 2), "adapters"),
        (LoadForm(source="local", path="/m", mode="xlora"), "xlora"),
        (
            LoadForm(source="local", path="/m", mode="lora", adapters=(AdapterSource("a", "/a"),), repository="/r"),
            "repository",
        ),
    ],
)
def test_complaints_name_the_field(form, field):
    assert form.complaint()[0] == field


@pytest.mark.parametrize(
    "settings",
    [
        demo_settings("xlora", 5),
        demo_settings("none"),
        LoadSettings("/m/base", mode="lora", adapters=(AdapterSource("a", "/a"),), ordering="/o.json"),
        LoadSettings("org/model", revision="main", mode="xlora", xlora="org/x", dtype="float16", context=512),
        LoadSettings("C:\\models\\base", device="cuda:1"),
        LoadSettings("org/model/model.q4_0.gguf", revision="main"),
        LoadSettings("model.gguf"),
        LoadSettings(mode="lora", ordering="/o.json", repository="people/adapters"),
        LoadSettings("/m/base", mode="xlora", xlora="/x", xlora_relu=False),
    ],
)
def test_settings_survive_form_and_file(settings):
    assert LoadForm.of(settings).settings() == settings
    assert recent.from_json(recent.to_json(settings)) == settings


def test_an_ordering_file_alone_with_a_folder_of_adapters(dialog, worker, qtbot):
    choose(qtbot, dialog.source, "local")
    choose(qtbot, dialog.mode, "lora")
    assert not dialog.relu.isVisible()
    dialog.ordering.set_text("/a/order.json")
    qtbot.keyClicks(dialog.repository.edit, "people/adapters")
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    wanted = LoadSettings(mode="lora", ordering="/a/order.json", repository="people/adapters")
    assert worker.commands(Load)[-1].settings == wanted


def test_the_relu_of_a_classifier_is_chosen(dialog, worker, qtbot):
    choose(qtbot, dialog.source, "local")
    choose(qtbot, dialog.mode, "xlora")
    dialog.path.set_text("/m")
    dialog.xlora.set_text("/x")
    assert dialog.relu.isVisible()
    assert not dialog.repository.isVisible()
    qtbot.keyClicks(dialog.relu, "Without")
    qtbot.mouseClick(dialog.load_button, Qt.MouseButton.LeftButton)
    assert worker.commands(Load)[-1].settings == LoadSettings("/m", mode="xlora", xlora="/x", xlora_relu=False)


def test_progress_is_shown_and_can_be_cancelled(dialog, window, worker, qtbot):
    worker.replies[Load] = lambda command: [LoadProgressed("Reading layer 3 of 12", 0.25)]
    dialog.accept()
    window.client.drain()
    assert dialog.progress.stage.text() == "Reading layer 3 of 12"
    assert dialog.progress.bar.value() == 250
    assert window.banner.progress.bar.value() == 250
    assert not dialog.load_button.isEnabled()
    qtbot.mouseClick(dialog.progress.cancel_button, Qt.MouseButton.LeftButton)
    assert worker.commands(CancelLoad)
    worker.answer_newest(Load, LoadCancelled(model_kept=True))
    window.client.drain()
    assert dialog.load_button.isEnabled()
    assert not window.banner.isVisible()
    assert window.info is not None


def test_a_failed_load_shows_where_and_what_to_do_and_keeps_the_model(dialog, window, worker, qtbot, script):
    worker.replies[Load] = lambda command: [LoadFailed(BROKEN, model_kept=True)]
    dialog.accept()
    window.client.drain()
    box = dialog.problem
    assert box.isVisible()
    assert "A layer is missing." in box.sentence.text()
    assert "still there" in box.sentence.text()
    assert box.file.text().replace("\u200b", "") == "/m/order.json"
    assert (box.field.text(), box.remedy.text()) == ("layers", "Build it again.")
    qtbot.mouseClick(box.copy_button, Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().text() == str(BROKEN)
    dialog.reject()
    window.chat.send("hello")
    window.client.drain()
    assert worker.commands(ChatRequest)
    assert window.chat.model.turn(1).text == "".join(script.ANSWER)
    assert window.header.modes.current() == "xlora"


def test_a_load_that_ends_closes_the_dialog_and_is_remembered(dialog, window, qtbot):
    choose(qtbot, dialog.mode, "lora")
    dialog.accept()
    window.client.drain()
    assert not dialog.isVisible()
    assert window.info.mode == "lora"
    kept = recent.readable(window.settings.get("recent_models"))
    assert kept == [demo_settings("lora"), demo_settings("xlora")]
    window.open_loader()
    assert [action.text() for action in dialog._recent_menu.actions()] == ["Demo pack · LoRA", "Demo pack · X-LoRA"]
    dialog._recent_menu.actions()[1].trigger()
    assert dialog.mode.current() == "xlora"


def test_tokens_are_never_kept():
    settings = LoadSettings("org/gated", token="hf_secret")
    assert "hf_secret" not in str(recent.to_json(settings))


@pytest.mark.parametrize(
    "damaged", [None, 3, {}, {"base": ""}, {"base": "m", "mode": "odd"}, {"base": "m", "xlora": 3}]
)
def test_damaged_entries_are_left_out(damaged):
    assert recent.readable([damaged]) == []


def test_a_dropped_folder_becomes_the_base(dialog):
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile("/models/base")])
    event = QDropEvent(
        QPointF(5, 5), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    )
    dialog.dropEvent(event)
    assert (dialog.source.current(), dialog.path.text()) == ("local", "/models/base")
    dialog.take_path("/models/order.json")
    assert dialog.ordering.text() == "/models/order.json"


def test_the_devices_found_are_offered(dialog):
    assert [dialog.device.itemData(row) for row in range(dialog.device.count())] == ["auto", "cpu"]


def test_adapters_can_be_renamed_and_removed(qapp, qtmodeltester):
    model = AdapterListModel()
    model.add("/a/json/")
    model.add("/b/json")
    assert [adapter.name for adapter in model.adapters()] == ["json", "json-2"]
    assert model.setData(model.index(1, 0), "other")
    model.remove({0})
    assert model.adapters() == (AdapterSource("other", "/b/json"),)
    qtmodeltester.check(model, force_py=True)


def test_fields_that_do_not_belong_are_hidden(dialog, qtbot):
    choose(qtbot, dialog.source, "local")
    choose(qtbot, dialog.mode, "none")
    assert not dialog.ordering.isVisible()
    assert not dialog.non_granular.isVisible()
    choose(qtbot, dialog.mode, "xlora")
    assert dialog.ordering.isVisible()
    assert dialog.non_granular.isVisible()
    assert dialog.xlora.isVisible()
    assert not dialog.table.isVisible()


def test_a_mode_nobody_knows_how_to_load_opens_the_loader(window, worker, qtbot, script):
    settings = LoadSettings("/m/base", mode="none")
    worker.replies[Load] = lambda command: [ModelLoaded(script.model_info("none", base="/m/base"))]
    window.load(settings)
    window.client.drain()
    qtbot.mouseClick(window.header.modes.button("lora"), Qt.MouseButton.LeftButton)
    assert window.loader.isVisible()
    assert window.loader.form() == LoadForm(source="local", path="/m/base", mode="lora")
    assert window.header.modes.current() == "none"


def test_a_mode_loaded_before_is_loaded_again():
    lora = LoadSettings("/m/base", mode="lora", adapters=(AdapterSource("a", "/a"),))
    xlora = LoadSettings("/m/base", mode="xlora", xlora="/x", token="t", device="cuda")
    assert recent.in_mode(xlora, "lora", [lora]) == LoadSettings(
        "/m/base", mode="lora", adapters=lora.adapters, token="t", device="cuda"
    )
    assert recent.in_mode(xlora, "none").xlora is None
    assert recent.in_mode(lora, "xlora", []) is None


def test_the_dialog_drops_only_paths(window):
    data = QMimeData()
    data.setText("just words")
    event = QDropEvent(
        QPoint(5, 5).toPointF(),
        Qt.DropAction.CopyAction,
        data,
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )
    from loradesk_app.widgets.drop_edit import dropped_paths

    assert dropped_paths(event) == []


# -- the memory estimate -------------------------------------------------------------------------------------------


def estimate_of(settings: LoadSettings, needed: int, free: int) -> MemoryEstimated:
    parts = (
        MemoryPart("Weights, float32", needed - 30),
        MemoryPart("Adapter a", 10),
        MemoryPart("Adapter b", 20),
        MemoryPart("KV cache", 5, already_held=True),
    )
    return MemoryEstimated(settings, MemoryEstimate("cpu", "float32", 512, parts, free))


def no_estimate(dialog, why: str) -> EstimateFailed:
    return EstimateFailed(dialog.form().settings(), Problem("HubError", why))


def test_the_estimate_follows_the_choices(dialog, window, worker, qtbot):
    asked = worker.commands(Estimate)
    assert asked[-1].settings == demo_settings("xlora")
    choose(qtbot, dialog.mode, "none")
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings == demo_settings("none"))
    dialog.context.setValue(512)
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.context == 512)
    dialog.dtype.setCurrentIndex(dialog.dtype.findData("bfloat16"))
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.dtype == "bfloat16")
    count = len(worker.commands(Estimate))
    choose(qtbot, dialog.source, "local")  # no path yet: there is nothing to ask for
    qtbot.waitUntil(lambda: dialog.memory.sentence.text().startswith("Known when"))
    assert len(worker.commands(Estimate)) == count


def test_a_load_that_fits_is_told_quietly_and_one_that_does_not_loudly(dialog, window, worker):
    settings = dialog.form().settings()
    worker.answer_newest(Estimate, estimate_of(settings, 3_000_000_000, 8_000_000_000))
    window.client.drain()
    assert dialog.memory.sentence.text() == "3.0 GB of the 8.0 GB free on cpu"
    assert dialog.memory.sentence.property("kind") == ""
    assert dialog.memory.bar.value() == 375
    assert dialog.memory.parts.text() == "Weights, float32: 3.0 GB · 3 small parts: 35 B"
    worker.answer_newest(Estimate, estimate_of(settings, 9_000_000_000, 8_000_000_000))
    window.client.drain()
    assert dialog.memory.sentence.text().startswith("It will not fit: 9.0 GB are needed, 8.0 GB are free on cpu.")
    assert dialog.memory.sentence.property("kind") == "danger"
    assert dialog.load_button.isEnabled()  # a warning: the user decides


def test_the_estimate_is_in_sight_in_the_smallest_window(dialog, window, worker, qtbot):
    dialog.set_form(LoadForm(source="hub", hub_id="org/model", mode="lora", adapters=(AdapterSource("a", "org/a"),)))
    dialog.resize(dialog.minimumSize())
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.base == "org/model")
    worker.answer_newest(Estimate, estimate_of(dialog.form().settings(), 3_000_000_000, 8_000_000_000))
    window.client.drain()
    bar = dialog.memory.bar
    qtbot.waitUntil(lambda: bar.visibleRegion().boundingRect() == bar.rect())


@pytest.mark.parametrize("scale", [100, 180])
def test_no_field_is_cut_off_in_the_smallest_window(dialog, window, qtbot, scale):
    dialog.set_form(LoadForm(source="local", mode="xlora"))
    window.settings.set("font_scale", scale)
    qtbot.waitUntil(lambda: dialog._content.layout().totalMinimumSize().width() <= dialog.minimumWidth())
    dialog.resize(dialog.minimumSize())
    for button in (dialog.path.browse, dialog.edit_ordering, dialog.source.button("hub")):
        qtbot.waitUntil(lambda button=button: button.visibleRegion().boundingRect().width() == button.width())


def test_a_failed_load_takes_the_place_of_the_estimate_until_it_is_dismissed(dialog, window, worker, qtbot):
    worker.replies[Load] = lambda command: [LoadFailed(BROKEN, model_kept=True)]
    dialog.accept()
    window.client.drain()
    assert not dialog.memory.isVisible()
    qtbot.mouseClick(dialog.problem.close_button, Qt.MouseButton.LeftButton)
    assert dialog.memory.isVisible()


def test_an_estimate_of_what_was_chosen_before_is_not_shown(dialog, window, worker, qtbot):
    earlier = worker.commands(Estimate)[-1]
    late = estimate_of(earlier.settings, 3_000_000_000, 8_000_000_000)
    choose(qtbot, dialog.mode, "none")
    worker.answer(earlier, late)  # before the next one is asked for
    window.client.drain()
    assert "3.0 GB" not in dialog.memory.sentence.text()
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings == demo_settings("none"))
    worker.answer(earlier, late)  # and after
    window.client.drain()
    assert "3.0 GB" not in dialog.memory.sentence.text()
    worker.answer_newest(
        Estimate, EstimateFailed(dialog.form().settings(), Problem("HubError", "It has not been downloaded yet."))
    )
    window.client.drain()
    assert dialog.memory.sentence.text() == "No estimate: It has not been downloaded yet."
    assert not dialog.memory.bar.isVisible()


def test_the_hub_is_not_asked_about_what_is_being_typed(dialog, window, worker, qtbot):
    choose(qtbot, dialog.source, "hub")
    choose(qtbot, dialog.mode, "none")
    dialog.hub_id.setFocus()
    qtbot.keyClicks(dialog.hub_id, "org/mod")
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.base == "org/mod")
    assert not worker.commands(Estimate)[-1].ask_hub
    worker.answer_newest(
        Estimate, EstimateFailed(dialog.form().settings(), Problem("HubError", "It has not been downloaded yet."))
    )
    window.client.drain()
    assert "leave the field to ask the hub" in dialog.memory.sentence.text()
    qtbot.keyClicks(dialog.hub_id, "el")
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.base == "org/model")
    qtbot.keyClick(dialog.hub_id, Qt.Key.Key_Tab)
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].ask_hub)
    assert worker.commands(Estimate)[-1].settings.base == "org/model"
    assert not any(estimate.ask_hub for estimate in worker.commands(Estimate) if estimate.settings.base == "org/mod")
    worker.answer_newest(
        Estimate, EstimateFailed(dialog.form().settings(), Problem("HubError", "The repository is gated."))
    )
    window.client.drain()
    assert dialog.memory.sentence.text() == "No estimate: The repository is gated."


def test_the_hub_is_asked_about_what_is_pasted_or_chosen(dialog, worker, qtbot):
    choose(qtbot, dialog.source, "hub")
    choose(qtbot, dialog.mode, "none")
    QGuiApplication.clipboard().setText("org/pasted")
    dialog.hub_id.setFocus()
    dialog.hub_id.paste()
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.base == "org/pasted")
    assert worker.commands(Estimate)[-1].ask_hub
    qtbot.keyClick(dialog.hub_id, Qt.Key.Key_Backspace)
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.base == "org/paste")
    assert not worker.commands(Estimate)[-1].ask_hub
    dialog.set_form(LoadForm(source="hub", hub_id="org/recent", mode="none"))
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.base == "org/recent")
    assert worker.commands(Estimate)[-1].ask_hub
    dialog.dtype.setCurrentIndex(dialog.dtype.findData("bfloat16"))
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.dtype == "bfloat16")
    assert worker.commands(Estimate)[-1].ask_hub


def test_a_token_is_used_when_it_is_whole(dialog, worker, qtbot):
    dialog.set_form(LoadForm(source="hub", hub_id="org/gated", mode="none"))
    dialog.token.setFocus()
    qtbot.keyClicks(dialog.token, "hf_1")
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].settings.token == "hf_1")
    assert not worker.commands(Estimate)[-1].ask_hub
    dialog.load_button.setFocus()
    qtbot.waitUntil(lambda: worker.commands(Estimate)[-1].ask_hub)
    assert worker.commands(Estimate)[-1].settings.token == "hf_1"


def test_an_estimate_that_takes_long_does_not_leave_the_old_one_there(dialog, window, worker, qtbot):
    worker.answer_newest(Estimate, estimate_of(dialog.form().settings(), 3_000_000_000, 8_000_000_000))
    window.client.drain()
    dialog.set_form(LoadForm(source="hub", hub_id="org/slow", mode="none"))
    qtbot.waitUntil(lambda: dialog.memory.sentence.text() == "Reading headers…")
    worker.answer_newest(Estimate, estimate_of(dialog.form().settings(), 1_000_000_000, 8_000_000_000))
    window.client.drain()
    assert dialog.memory.sentence.text() == "1.0 GB of the 8.0 GB free on cpu"


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [("", "a", 1), ("ab", "a", 0), ("ab", "axb", 1), ("aa", "aaa", 1), ("", "org/x", 5), ("org/abc", "own/x", 4)],
)
def test_how_much_of_a_text_is_new(before, after, count):
    assert inserted(before, after) == count


def test_an_estimate_of_others_is_not_shown(dialog, window, worker):
    settings = dialog.form().settings()
    worker.tell(estimate_of(settings, 3_000_000_000, 8_000_000_000))
    window.client.drain()
    assert not dialog.memory.sentence.text()


def test_an_estimate_of_an_incomplete_form_is_not_shown(dialog, window, worker, qtbot):
    asked = worker.commands(Estimate)[-1]
    choose(qtbot, dialog.source, "local")  # no path yet
    qtbot.waitUntil(lambda: dialog.memory.sentence.text().startswith("Known when"))
    worker.answer(asked, estimate_of(asked.settings, 3_000_000_000, 8_000_000_000))
    window.client.drain()
    assert dialog.memory.sentence.text().startswith("Known when")


def test_a_load_of_others_ends_neither_the_progress_nor_the_question(make_window, worker, script, qtbot):
    worker.replies[Load] = lambda command: [LoadProgressed("Reading layer 3 of 12", 0.25)]
    window = make_window(demo_settings("xlora"))
    worker.tell(LoadFailed(BROKEN, model_kept=True, tag="of a program"), LoadProgressed("Theirs", 0.9, "of a program"))
    window.client.drain()
    assert window.banner.progress.isVisible()
    assert window.banner.progress.stage.text() == "Reading layer 3 of 12"
    window.chat.send("hello")
    worker.info = script.model_info("none", name="theirs")
    worker.tell(ModelLoaded(worker.info, "of a program"))
    window.client.drain()
    assert window.info.name == "theirs"
    assert window.loaded is None  # nobody here knows how it was loaded
    assert window.banner.progress.isVisible()
    assert not worker.commands(ChatRequest)  # it waits for the model that was chosen
    worker.info = script.model_info()
    worker.answer_newest(Load, ModelLoaded(worker.info))
    window.client.drain()
    assert window.loaded == demo_settings("xlora")
    assert worker.commands(ChatRequest)


def test_choosing_a_mode_of_a_model_that_others_loaded_asks_how(window, worker, script, qtbot):
    worker.tell(ModelLoaded(script.model_info("lora"), "of a program"))
    window.client.drain()
    loads = len(worker.commands(Load))
    qtbot.mouseClick(window.header.modes.button("xlora"), Qt.MouseButton.LeftButton)
    assert len(worker.commands(Load)) == loads
    assert window.header.modes.current() == "lora"
    assert window.loader.isVisible()


def test_of_three_loads_in_a_row_the_last_one_counts(window, worker, script):
    worker.replies[Load] = lambda command: []
    for mode in ("lora", "none", "lora"):
        window.change_mode(mode)
    first, second, third = worker.commands(Load)[-3:]
    for command in (first, second):
        worker.answer(command, LoadCancelled(model_kept=True))
    window.client.drain()
    assert window.banner.progress.isVisible()
    worker.answer(third, ModelLoaded(script.model_info("lora")))
    window.client.drain()
    assert not window.client.is_loading
    assert window.loaded == demo_settings("lora")
