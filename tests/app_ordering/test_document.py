"""The model behind a tab: edits, history, text and disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.clock import PATIENCE

from loradesk_app.background import Background
from loradesk_app.ordering.analysis import State, positions, problem_position, state_of
from loradesk_app.ordering.document import Document
from loradesk_app.ordering.rows import changed_span, moved
from loradesk_engine import files
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter

LAYERS = {"model.layers.0.self_attn.q_proj": 0, "lm_head": 1}


@pytest.fixture
def document(qapp):
    adapters = [PreloadAdapter("a", "/a"), PreloadAdapter("b", "/b")]
    return Document(state=State(OrderingFile("org/base", ["a", "b", "c"], LAYERS, adapters)))


@pytest.fixture
def on_disk(qtbot, xlora):
    """Opens a document of a file, with a background of its own."""
    background = Background()
    data = Path(xlora).read_bytes()
    document = Document(background, state_of(data.decode()), path=xlora, on_disk=data)
    yield document
    background.wait(PATIENCE)
    document.deleteLater()


@pytest.mark.parametrize(
    ("rows", "target", "names", "places"),
    [([0], 2, "bacd", [1]), ([3], 0, "dabc", [0]), ([0, 2], 4, "bdac", [2, 3]), ([1, 2], 2, "abcd", [1, 2])],
)
def test_rows_move_together(rows, target, names, places):
    assert moved("abcd", rows, target) == (list(names), places)


def test_what_differs_between_two_lists_is_found():
    assert changed_span("abcd", "axd") == (1, 3, 2)
    assert changed_span("aa", "aaa") == (2, 2, 3)
    assert changed_span("", "") == (0, 0, 0)


@pytest.mark.parametrize(
    ("edit", "label"),
    [
        (lambda d: d.set_base("org/other"), "Change the base model"),
        (lambda d: d.add_name("z"), "Add z to the order"),
        (lambda d: d.change_name(0, "z"), "Rename a to z"),
        (lambda d: d.move_names([0, 1], 3), "Move 2 entries"),
        (lambda d: d.remove_names([1]), "Remove b from the order"),
        (lambda d: d.add_preload("z", "/z"), "Preload z"),
        (lambda d: d.rename_preload(0, "z"), "Rename a to z"),
        (lambda d: d.change_preload_id(0, "/z"), "Change where a is"),
        (lambda d: d.move_preloads([1], 0), "Move b"),
        (lambda d: d.remove_preloads([0]), "Remove a from the preloads"),
        (lambda d: d.set_layer_index("lm_head", 7), "Change the index of lm_head"),
        (lambda d: d.rename_layer("lm_head", "head"), "Rename the layer lm_head"),
        (lambda d: d.remove_layers(["lm_head"]), "Remove the layer lm_head"),
        (lambda d: d.edit_text('{"order": []}'), "Edit the text"),
    ],
)
def test_every_edit_is_one_step_with_a_name(document, edit, label):
    before = document.ordering
    edit(document)
    assert document.stack.undoText() == label
    assert document.ordering != before
    assert document.is_dirty
    document.undo()
    assert document.ordering is before
    assert not document.is_dirty


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.set_base("org/base"),
        lambda d: d.change_name(0, "  "),
        lambda d: d.move_names([1], 1),
        lambda d: d.remove_names([]),
        lambda d: d.rename_preload(0, ""),
        lambda d: d.set_layer_index("lm_head", 1),
        lambda d: d.edit_text(d.ordering.dumps()),
        lambda d: d.discard_text(),
    ],
)
def test_what_changes_nothing_is_no_step(document, edit):
    edit(document)
    assert document.stack.count() == 0


def test_a_preload_that_is_renamed_keeps_its_place_in_the_order(document):
    document.rename_preload(0, "z")
    assert document.ordering.order == ("z", "b", "c")
    assert document.ordering.preload_adapters[0] == PreloadAdapter("z", "/a")


def test_names_that_are_added_are_free(document):
    document.add_preload("a", "/x")
    assert document.ordering.preload_adapters[2].name == "a_2"
    document.add_name()
    document.add_name()
    assert document.ordering.order[3:] == ("adapter", "adapter_2")


def test_the_last_entry_takes_its_key_with_it(document):
    document.remove_names([0, 1, 2])
    document.remove_preloads([0, 1])
    assert document.ordering.order is None
    assert document.ordering.preload_adapters is None


def test_a_value_out_of_range_is_refused_and_changes_nothing(document, qtbot):
    with qtbot.waitSignal(document.refused) as told:
        document.set_layer_index("lm_head", 2**40)
    assert "out of range" in told.args[0].problem
    with qtbot.waitSignal(document.refused):
        document.rename_layer("lm_head", "model.layers.0.self_attn.q_proj")
    assert document.stack.count() == 0


def test_typing_without_a_pause_is_one_step(document):
    for text in ('{"order": ["x"', '{"order": ["x"]', '{"order": ["x"]}'):
        document.edit_text(text, run=7)
    assert document.stack.count() == 1
    document.edit_text('{"order": ["y"]}', run=8)
    assert document.stack.count() == 2
    document.undo()
    assert document.ordering.order == ("x",)
    document.undo()
    assert document.ordering.order == ("a", "b", "c")
    document.redo()
    assert document.ordering.order == ("x",)


@pytest.mark.parametrize(
    ("text", "line", "column", "problem"),
    [
        ('{\n  "order": ["a", "b"\n  "layers": {}\n}', 3, 3, "Expecting ',' delimiter"),
        ('{\n  "order": "a"\n}', 2, 12, "A list of adapter names is expected"),
        ('{"layers": {"a": 1,\n "a": 2}}', 2, 2, "appears twice"),
        ('{"order": [\n1]}', 2, 1, "A string is expected"),
        ("[]", 1, 1, "is a JSON object, not"),
        ("", 1, 1, "The file is empty"),
    ],
)
def test_text_that_cannot_be_read_is_kept_with_its_place(document, text, line, column, problem):
    before = document.ordering
    document.edit_text(text)
    assert problem in document.state.problem.problem
    assert problem_position(document.state.problem) == (line, column)
    assert document.ordering is before
    assert not document.is_readable
    document.add_name("not now")
    assert document.state.draft == text
    assert document.analysis.text == text
    document.discard_text()
    assert document.ordering is before
    document.undo()
    assert document.state.draft == text


def test_line_ends_and_byte_order_mark_stay(qapp):
    text = '\ufeff{\r\n  "order": ["a"],\r\n  "x": 1\r\n}\r\n'
    document = Document(state=state_of(text))
    shown = document.analysis.text
    assert shown == '{\n  "order": ["a"],\n  "x": 1\n}\n'
    document.edit_text(shown)
    assert document.stack.count() == 0
    document.edit_text(shown.replace('"a"', '"b"'))
    assert document.ordering.dumps() == text.replace('"a"', '"b"')


def test_positions_are_those_of_the_engine():
    text = '{\n "order": ["a",\n "b"], "layers": {"x/y": 0,\n  "~z": 1},\n "preload_adapters": [{"name": "n",'
    text += '\n"adapter_model_id": "i"}]\n}'
    ordering = OrderingFile.parse(text)
    values = ["/order/0", "/order/1"]
    found = positions(text, [*values, "/layers", "/layers/x~1y", "/preload_adapters/0/adapter_model_id", "/nowhere/3"])
    assert {place: found[place] for place in values} == {place: ordering.position(place) for place in values}
    assert found["/layers/x~1y"] == (3, 19)
    assert found["/preload_adapters/0/adapter_model_id"] == (6, 1)
    assert "/nowhere/3" not in found


def test_fixes_are_steps(document):
    document.edit_text('{"base_model_id": "b", "order": ["a", "a", ""], "layers": {"x": 0, "y": 0}}')
    rules = {finding.rule: finding for finding in document.analysis.findings}
    assert {"order-duplicate", "order-name-empty", "layer-index-duplicate"} <= set(rules)
    document.fix(rules["order-duplicate"])
    assert document.ordering.order == ("a", "")
    document.fix_all()
    assert document.ordering.order == ("a",)
    assert list(document.ordering.layers.values()) == [0, 1]
    assert not [finding for finding in document.analysis.findings if finding.severity == "error"]
    assert document.stack.undoText() == "Fix all"


def test_the_mode_decides_what_is_checked(document):
    document.edit_text('{"base_model_id": "b", "preload_adapters": [{"name": "p", "adapter_model_id": "q"}]}')
    assert document.analysis.findings == ()
    document.set_mode("xlora")
    assert {"order-missing", "layers-missing"} <= {finding.rule for finding in document.analysis.findings}


# -- disk -----------------------------------------------------------------------------------------------------------


def test_saving_keeps_the_layout_and_the_history(on_disk, qtbot, xlora):
    before = Path(xlora).read_text()
    on_disk.move_names([0], 2)
    with qtbot.waitSignal(on_disk.saved):
        on_disk.save()
    assert not on_disk.is_dirty
    assert OrderingFile.read(xlora).order == ("code", "math", "poetry")
    on_disk.undo()
    assert on_disk.is_dirty
    with qtbot.waitSignal(on_disk.saved):
        on_disk.save()
    assert Path(xlora).read_text() == before


def test_an_edit_during_a_save_stays_unsaved(on_disk, qtbot):
    on_disk.add_name("one")
    with qtbot.waitSignal(on_disk.saved):
        on_disk.save()
        on_disk.add_name("two")
    assert on_disk.is_dirty
    on_disk.undo()
    assert not on_disk.is_dirty


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EACCES, "No permission to write"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_a_save_that_fails_says_why_and_loses_nothing(on_disk, qtbot, xlora, monkeypatch, code, words):
    before = Path(xlora).read_bytes()

    def fail(*_arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "replace", fail)
    on_disk.add_name("new")
    with qtbot.waitSignal(on_disk.refused) as told:
        on_disk.save()
    assert words in told.args[0].problem
    assert told.args[0].file == xlora
    assert on_disk.is_dirty
    assert on_disk.ordering.order[-1] == "new"
    assert Path(xlora).read_bytes() == before
    assert os.listdir(Path(xlora).parent) == ["xlora.json"]
    monkeypatch.undo()
    with qtbot.waitSignal(on_disk.saved):
        on_disk.save()


def test_a_folder_that_is_gone_is_named(on_disk, qtbot, tmp_path):
    with qtbot.waitSignal(on_disk.refused) as told:
        on_disk.save(str(tmp_path / "gone" / "file.json"))
    assert "folder does not exist" in told.args[0].problem
    assert on_disk.path != str(tmp_path / "gone" / "file.json")


def test_a_folder_without_permission_is_named(on_disk, qtbot, tmp_path, monkeypatch):
    def refused(*args, **options):  # root may write everywhere, so the system's answer is played
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", refused)
    with qtbot.waitSignal(on_disk.refused) as told:
        on_disk.save(str(tmp_path / "file.json"))
    assert "No permission" in told.args[0].problem
    assert not (tmp_path / "file.json").exists()


def test_text_with_an_error_is_not_saved(on_disk, qtbot, xlora):
    before = Path(xlora).read_bytes()
    on_disk.edit_text('{"order": [}')
    with qtbot.waitSignal(on_disk.refused) as told:
        on_disk.save()
    assert "line 1, column 12" in told.args[0].field
    assert Path(xlora).read_bytes() == before


def test_a_file_changed_elsewhere_is_not_overwritten_unasked(on_disk, qtbot, xlora):
    Path(xlora).write_text('{"base_model_id": "theirs"}')
    on_disk.add_name("mine")
    with qtbot.waitSignal(on_disk.outside_change) as told:
        on_disk.save()
    assert told.args == [True]
    assert "theirs" in Path(xlora).read_text()
    on_disk.keep_mine()
    with qtbot.waitSignal(on_disk.saved):
        on_disk.save()
    assert OrderingFile.read(xlora).order[-1] == "mine"


def test_reloading_can_be_undone(on_disk, qtbot, xlora):
    on_disk.add_name("mine")
    Path(xlora).write_text('{"base_model_id": "theirs"}')
    with qtbot.waitSignal(on_disk.changed):
        on_disk.reload()
    assert on_disk.ordering.base_model_id == "theirs"
    assert not on_disk.is_dirty
    on_disk.undo()
    assert on_disk.ordering.order[-1] == "mine"
    assert on_disk.is_dirty
