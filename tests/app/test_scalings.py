"""The scalings: the growing buffer, what the plots draw of it, and the files it becomes."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QImage
from PySide6.QtTest import QTest

from loradesk_app.scalings.export import Snapshot, to_csv, to_npz
from loradesk_app.scalings.scalings_model import ScalingsModel
from loradesk_app.scalings.token_axis import nice_step, visible
from loradesk_app.widgets.chip import Chip
from loradesk_engine.commands import ChatRequest
from loradesk_engine.demo import demo_settings
from loradesk_engine.events import ModelLoaded


@pytest.fixture
def model(qapp):
    model = ScalingsModel()
    model.set_axes(("a", "b"), ("layer.0", "layer.1", "layer.2"))
    return model


@pytest.fixture
def answered(window, qtbot):
    """A window that has shown one X-LoRA answer."""
    window.chat.send("hello")
    window.client.drain()
    window.scalings.plots.redraw()
    QTest.qWait(0)
    return window


def rows(count: int, value: float = 0.5) -> np.ndarray:
    return np.full((count, 3, 2), value, np.float32)


def test_rows_are_appended_in_place(model):
    for start in range(0, 3000, 3):
        model.append(start, rows(3, start), ["x"] * 3)
    assert (len(model), model.end) == (3000, 3000)
    assert model.rows[1500, 0, 0] == 1500
    assert model.means.shape == (3000, 2)


def test_a_new_request_replaces_what_its_prompt_does_not_share(model):
    model.append(0, rows(10, 0.1), list("abcdefghij"))
    model.append(4, rows(2, 0.9), ["X", "Y"])
    assert (len(model), model.texts) == (6, tuple("abcdXY"))
    assert model.mean(3).tolist() == pytest.approx([0.1, 0.1])
    assert model.mean(4).tolist() == pytest.approx([0.9, 0.9])


def test_a_gap_starts_anew(model):
    model.append(0, rows(2), ["a", "b"])
    model.append(40, rows(2), ["c", "d"])
    assert (model.first, model.end, model.text(40), model.text(1)) == (40, 42, "c", None)


def test_rows_of_another_model_are_left_out(model):
    model.append(0, np.zeros((2, 5, 2), np.float32), ["a", "b"])
    assert len(model) == 0


def test_texts_are_as_many_as_rows(model):
    model.append(0, rows(3), ["only one"])
    assert model.texts == ("only one", "", "")


def test_slices_keep_peaks_and_mean_heat(model):
    data = rows(1000, 0.1)
    data[777] = 0.9
    model.append(0, data, ["x"] * 1000)
    part = model.slice(-0.5, 999.5, 1, columns=100)
    assert part.step in {10, 11}
    assert part.means.max() == pytest.approx(0.9)
    assert part.heat.shape[0] == 3
    assert part.heat.shape[1] <= 100
    assert part.heat.max() == pytest.approx((0.9 + 0.1 * (part.step - 1)) / part.step, rel=1e-3)
    assert part.x.min() >= 0
    assert part.x.max() < 1000


def test_a_slice_of_nothing_is_empty(model):
    part = model.slice(0, 10, 0, 100)
    assert (part.x.size, part.heat.shape) == (0, (3, 0))


def test_curves_hold_the_means_over_the_layers(answered, script):
    texts = script.PROMPT + script.ANSWER
    expected = script.scalings_for(texts)[:-1].mean(axis=1)
    assert len(answered.scalings.plots.curves) == len(script.ADAPTERS)
    for number, curve in enumerate(answered.scalings.plots.curves):
        x, y = curve.getData()
        assert x.tolist() == list(range(len(expected)))
        assert y == pytest.approx(expected[:, number], abs=1e-6)


def test_the_heatmap_holds_the_layers_of_the_chosen_adapter(answered, script):
    expected = script.scalings_for(script.PROMPT + script.ANSWER)[:-1]
    plots = answered.scalings.plots
    for number in (0, 2):
        plots.adapter.setCurrentIndex(number)
        assert plots.image.image.shape == (len(script.LAYER_PATHS), len(expected))
        assert plots.image.image == pytest.approx(expected[:, :, number].T)
    place = plots.image.mapRectToView(plots.image.boundingRect())
    assert (place.left(), place.top()) == (-0.5, -0.5)


def test_the_prompt_ends_at_its_line(answered, script):
    assert answered.scalings.plots.prompt_lines[0].value() == len(script.PROMPT) - 0.5
    assert answered.scalings.plots.prompt_lines[0].isVisible()


def test_both_plots_share_their_range(answered):
    plots = answered.scalings.plots
    plots.top.setXRange(3, 9, padding=0)
    assert plots.bottom.getViewBox().viewRange()[0] == pytest.approx(plots.top.getViewBox().viewRange()[0], abs=0.2)


def test_panning_away_ends_following_and_the_button_resumes(answered, qtbot):
    pane = answered.scalings
    assert pane.follow_button.isChecked()
    pane.plots.top.setXRange(2, 12, padding=0)
    assert not pane.plots.following
    assert not pane.follow_button.isChecked()
    qtbot.mouseClick(pane.follow_button, Qt.MouseButton.LeftButton)
    assert pane.plots.following
    assert pane.plots.top.getViewBox().viewRange()[0][1] >= pane.model.end - 1


def test_pause_holds_the_picture_while_the_data_grows(answered, qtbot):
    pane = answered.scalings
    qtbot.mouseClick(pane.pause_button, Qt.MouseButton.LeftButton)
    before = len(pane.plots.curves[0].getData()[0])
    pane.model.append(pane.model.end, np.full((5, 42, 4), 0.25, np.float32), ["x"] * 5)
    QTest.qWait(60)
    assert len(pane.plots.curves[0].getData()[0]) == before
    qtbot.mouseClick(pane.pause_button, Qt.MouseButton.LeftButton)
    assert len(pane.plots.curves[0].getData()[0]) == before + 5


def test_clear_empties_the_pane(answered, qtbot):
    qtbot.mouseClick(answered.scalings.clear_button, Qt.MouseButton.LeftButton)
    assert len(answered.scalings.model) == 0
    assert "Send a message" in answered.scalings._empty_text.text()


def test_a_token_is_described_with_its_text_and_values(answered, script):
    plots = answered.scalings.plots
    token = len(script.PROMPT) + list(script.ANSWER).index(" Paris")
    text = plots.describe(token)
    assert "Paris" in text
    assert "answer" in text
    assert text.index("capitals") < text.index("bard")
    layer = plots.describe(token, 3)
    assert script.LAYER_PATHS[3] in layer
    assert f"{plots._model.value(token, 3, 0):.3f}" in layer


def test_hovering_points_at_the_token_in_both_plots(answered, qtbot):
    plots = answered.scalings.plots
    box = plots.top.getViewBox()
    place = plots.top.mapFromScene(box.mapViewToScene(box.viewRect().center()))
    plots._hover(plots.top, plots.top.mapToScene(place))
    assert plots.tip.isVisible()
    values = {line.value() for line in plots.cursor_lines}
    assert len(values) == 1
    plots._hide_tip()
    assert not plots.tip.isVisible()


def test_a_click_shows_a_token_on_the_meters(answered, qtbot):
    plots = answered.scalings.plots
    box = plots.top.getViewBox()
    place = plots.top.mapFromScene(box.mapViewToScene(box.viewRect().center()))
    with qtbot.waitSignal(plots.token_picked) as picked:
        qtbot.mouseClick(plots.top.viewport(), Qt.MouseButton.LeftButton, pos=QPoint(place.x(), place.y()))
    mean = answered.scalings.model.mean(picked.args[0])
    assert [strip.meter.level for strip in answered.adapters.strips] == pytest.approx(mean.tolist())


def test_tokens_are_named_when_there_is_room(answered):
    axis = answered.scalings.plots.axis
    answered.scalings.plots.top.setXRange(0, 12, padding=0)
    assert axis.names_tokens
    answered.scalings.model.append(36, np.full((4000, 42, 4), 0.25, np.float32), ["x"] * 4000)
    answered.scalings.plots.fit()
    assert not axis.names_tokens
    answered.grab()


def test_long_sequences_are_drawn_with_few_points(answered):
    pane = answered.scalings
    pane.model.append(pane.model.end, np.random.default_rng(0).random((30_000, 42, 4), np.float32), ["x"] * 30_000)
    pane.plots.fit()
    assert len(pane.plots.curves[0].getData()[0]) < 3000
    assert pane.plots.image.image.shape[1] < 1500


def test_other_modes_say_what_could_be_seen(make_window):
    window = make_window(demo_settings("lora"))
    assert "Load an X-LoRA model" in window.scalings._empty_text.text()
    assert not window.scalings.export_button.isVisible()


def test_a_second_turn_extends_the_same_picture(answered, worker, script):
    longer = script.PROMPT + script.ANSWER + ("<|end|>", "<|user|>", "More", "<|end|>", "<|model|>")
    worker.replies[ChatRequest] = lambda command: script.answer_events(command.request_id, prompt=longer)
    answered.chat.send("More")
    answered.client.drain()
    assert len(answered.scalings.model) == len(longer) + len(script.ANSWER) - 1


def test_files(answered, qtbot, tmp_path, script):
    pane = answered.scalings
    for kind in ("csv", "npz", "png"):
        pane.export(kind, str(tmp_path / f"out.{kind}"))
    qtbot.waitUntil((tmp_path / "out.png").exists)
    archive = np.load(tmp_path / "out.npz")
    assert archive["scalings"] == pytest.approx(pane.model.rows)
    assert archive["adapters"].tolist() == list(script.ADAPTERS)
    assert archive["tokens"].tolist() == list(pane.model.texts)
    table = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text("utf-8"), newline="")))
    assert table[0] == ["token", "text", "part", "layer", *script.ADAPTERS]
    assert len(table) == 1 + len(pane.model) * len(script.LAYER_PATHS)
    assert table[1][:4] == ["0", script.PROMPT[0], "prompt", script.LAYER_PATHS[0]]
    assert not QImage(str(tmp_path / "out.png")).isNull()


def test_files_of_an_empty_sequence(model):
    data = Snapshot.of(model)
    assert to_csv(data).decode().strip() == "token,text,part,layer,a,b"
    assert np.load(io.BytesIO(to_npz(data)))["scalings"].shape == (0, 3, 2)


@pytest.mark.parametrize(
    ("text", "shown"), [(" Paris", "Paris"), ("\n", "⏎"), ("  ", "␣␣"), ("", "∅"), ("a\nb", "a⏎b")]
)
def test_blanks_are_made_visible(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize(("least", "step"), [(0.3, 1), (1.5, 2), (3, 5), (11, 20), (420, 500)])
def test_steps_are_round(least, step):
    assert nice_step(least) == step


@pytest.mark.parametrize("count", [1, 47, 48, 171, 5000])
def test_showing_all_shows_the_first_and_the_newest_token(answered, count):
    pane = answered.scalings
    pane.model.clear()
    pane.model.append(0, np.full((count, 42, 4), 0.25, np.float32), ["x"] * count)
    pane.fit()
    low, high = pane.plots.top.getViewBox().viewRange()[0]
    assert low <= -0.5
    assert high >= count - 0.5


def test_the_newest_token_stays_in_view(answered):
    pane = answered.scalings
    pane.model.clear()
    for token in range(200):
        pane.model.append(token, np.full((1, 42, 4), 0.25, np.float32), ["x"])
        pane.plots.redraw()
        low, high = pane.plots.top.getViewBox().viewRange()[0]
        assert low < token < high


@pytest.fixture
def crowd(make_window, worker, script):
    """A small window with 64 adapters that has scalings of a few tokens."""
    window = make_window(demo_settings("xlora"), size=(720, 800))
    infos = tuple(script.adapter_info(f"expert-{number:02d}-of-the-mixture") for number in range(64))
    worker.tell(ModelLoaded(script.model_info(adapters=infos)))
    window.client.drain()
    scalings = np.full((20, 42, 64), 0.8 / 63, np.float32)
    scalings[:, :, 5] = 0.2
    window.scalings.model.append(0, scalings, ["x"] * 20)
    QTest.qWait(80)
    return window


def test_the_legend_of_many_adapters_leaves_room_for_the_curves(crowd):
    pane = crowd.scalings
    assert pane.legend.height() < 0.25 * pane.height()
    assert pane.legend.verticalScrollBar().maximum() > 0
    assert pane.plots.top.height() > pane.legend.height()


def test_a_click_on_the_legend_shows_the_layers_of_an_adapter(crowd, qtbot):
    chip = crowd.scalings.legend.findChildren(Chip)[1]
    qtbot.mouseClick(chip, Qt.MouseButton.LeftButton)
    assert crowd.scalings.plots.adapter.currentText() == "expert-01-of-the-mixture"


def test_many_adapters_differ_in_colour_or_line(crowd):
    pens = [curve.opts["pen"] for curve in crowd.scalings.plots.curves[:32]]
    assert len({(pen.color().rgb(), pen.style()) for pen in pens}) == 32


def test_the_curve_of_the_chosen_adapter_stands_out_among_many(crowd):
    plots = crowd.scalings.plots
    plots.adapter.setCurrentIndex(40)
    widths = [curve.opts["pen"].widthF() for curve in plots.curves]
    assert widths.index(max(widths)) == 40
    assert widths.count(max(widths)) == 1


def test_axis_and_colours_fit_the_small_shares_of_many_adapters(crowd):
    plots = crowd.scalings.plots
    plots.adapter.setCurrentIndex(5)
    assert 0.2 < plots.top.getViewBox().viewRange()[1][1] < 0.35
    assert plots.image.levels.tolist() == pytest.approx([0, 0.25])


def test_the_tip_of_many_adapters_names_the_strongest(crowd):
    text = crowd.scalings.plots.describe(3)
    assert text.count("●") == 8
    assert "expert-05-of-the-mixture" in text
    assert "56 more, at most 0.013 each" in text
