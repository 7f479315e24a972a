"""What the desktop or the command line asks to open reaches the window, and nothing is lost by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.clock import PATIENCE

from loradesk_app.__main__ import serve
from loradesk_app.background import Background
from loradesk_app.loader.load_form import LoadForm
from loradesk_app.opening import recognise
from loradesk_app.single_instance import OpenRequest, SingleInstance
from loradesk_engine.commands import AdapterSource, CancelLoad, Load, LoadSettings
from loradesk_engine.demo import demo_settings
from loradesk_engine.errors import AdapterError, BusyError, FileFormatError
from loradesk_resources import resource_path

DEMO = Path(str(resource_path("demo")))

# Another process that holds the conversation until its input ends.
HOLDER = """
import sys
from pathlib import Path
from loradesk_app.single_instance import SingleInstance
instance = SingleInstance(Path(sys.argv[1]))
print(instance.claim(), flush=True)
sys.stdin.read()
"""

# An application of its own, since the tests' is a plain one.
FILE_OPEN = """
from PySide6.QtCore import QTimer, QUrl
from PySide6.QtGui import QFileOpenEvent
from loradesk_app.application import Application
app = Application(["loradesk"])
app.file_opened.connect(print)
app.postEvent(app, QFileOpenEvent(QUrl.fromLocalFile("/a/model.gguf")))
QTimer.singleShot(0, app.quit)
print(app.exec())
"""


def folder_with(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


# -- what a path is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["base-q8_0.gguf", "base"])
def test_a_model_is_loaded(part):
    assert recognise(str(DEMO / part)) == LoadSettings(base=str(DEMO / part))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_of_a_model_stands_for_its_folder(file):
    assert recognise(str(DEMO / "base" / file)) == LoadSettings(base=str(DEMO / "base"))


def test_an_ordering_file_is_edited():
    path = DEMO / "ordering" / "xlora.json"
    assert recognise(str(path)) == path


@pytest.mark.parametrize("file", ["", "adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_fills_the_loader(file):
    folder = DEMO / "adapters" / "arithmetic"
    adapters = (AdapterSource("arithmetic", str(folder)),)
    assert recognise(str(folder / file)) == LoadForm(
        source="hub", hub_id="loradesk/demo", mode="lora", adapters=adapters
    )


def test_an_adapter_beside_its_base_s_config_is_an_adapter(tmp_path):
    folder = folder_with(tmp_path / "a", config={}, adapter_config={"base_model_name_or_path": str(DEMO / "base")})
    found = recognise(str(folder))
    assert isinstance(found, LoadForm)
    assert (found.source, found.path, found.mode) == ("local", str(DEMO / "base"), "lora")


def test_an_adapter_that_names_no_base_leaves_the_field_empty(tmp_path):
    found = recognise(str(folder_with(tmp_path / "a", adapter_config={"base_model_name_or_path": None})))
    assert isinstance(found, LoadForm)
    assert (found.source, found.path) == ("local", "")


def test_checkpoints_of_both_formats_fill_the_loader(tmp_path):
    found = recognise(str(DEMO / "xlora"))
    assert found == LoadForm(source="hub", hub_id="loradesk/demo", mode="xlora", xlora=str(DEMO / "xlora"))
    peft = folder_with(
        tmp_path / "p",
        adapter_config={"peft_type": "XLORA", "base_model_name_or_path": "a/b"},
        ordering={"base_model_id": "a/b"},
    )
    assert recognise(str(peft)) == LoadForm(
        source="hub", hub_id="a/b", mode="xlora", xlora=str(peft), ordering=str(peft / "ordering.json")
    )


def test_a_folder_of_adapters_fills_the_loader_with_all_of_them(tmp_path):
    for name in ("adapter_10", "adapter_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    form = recognise(str(tmp_path))
    assert form.mode == "lora"
    assert form.adapters == tuple(AdapterSource(name, str(tmp_path / name)) for name in ("adapter_2", "adapter_10"))


def test_anything_else_is_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path / "notes.txt", tmp_path, tmp_path / "not there.gguf", Path("a\0b")):
        with pytest.raises(FileFormatError) as refusal:
            recognise(str(path))
        assert refusal.value.file
    broken = folder_with(tmp_path / "broken")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="Not valid JSON"):
        recognise(str(broken))


# -- in the window --------------------------------------------------------------------------------------------------


def test_a_model_opened_takes_the_place_of_the_one_that_is_loaded(window, worker, qtbot):
    window.chat.send("hello")
    window.client.drain()
    window.open_path(str(DEMO / "base-q8_0.gguf"))
    qtbot.waitUntil(lambda: len(worker.commands(Load)) == 2)
    assert worker.commands(Load)[1].settings == LoadSettings(base=str(DEMO / "base-q8_0.gguf"))
    window.client.drain()
    assert window.chat.model.turn(0).text == "hello"
    assert window.settings.get("recent_models")[0]["base"] == str(DEMO / "base-q8_0.gguf")


def test_a_model_opened_during_a_load_ends_that_load(make_window, worker, qtbot):
    worker.replies[Load] = lambda command: []
    window = make_window(demo_settings("xlora"))
    window.open_path(str(DEMO / "base"))
    qtbot.waitUntil(lambda: len(worker.commands(Load)) == 2)
    assert worker.commands(CancelLoad)


def test_an_ordering_file_opens_in_the_editor_beside_unsaved_ones(window, qtbot, tmp_path):
    mine, other = tmp_path / "mine.json", tmp_path / "other.json"
    for path in (mine, other):
        path.write_text(json.dumps({"base_model_id": "b", "order": ["one"]}), encoding="utf-8")
    window.open_path(str(mine))
    qtbot.waitUntil(lambda: window.editor is not None and len(window.editor.views) == 1)
    document = window.editor.views[0].document
    document.add_name("two")
    window.open_path(str(other))
    qtbot.waitUntil(lambda: len(window.editor.views) == 2)
    window.open_path(str(mine))
    qtbot.waitUntil(lambda: window.editor.document() is document)
    assert document.is_dirty
    assert document.ordering.order == ("one", "two")


def test_an_adapter_opens_the_loader_filled_in(window, worker, qtbot):
    folder = DEMO / "adapters" / "json"
    window.open_path(str(folder))
    qtbot.waitUntil(lambda: window.loader is not None and window.loader.isVisible())
    assert window.loader.form().adapters == (AdapterSource("json", str(folder)),)
    assert window.loader.form().mode == "lora"
    assert len(worker.commands(Load)) == 1, "it is the user who says when"
    window.loader.close()


def test_an_adapter_opened_while_the_loader_is_filled_in_joins_what_is_there(window, qtbot):
    first = AdapterSource("first", "/adapters/first")
    typed = LoadForm(source="hub", hub_id="a/b", token="secret", mode="lora", adapters=(first,), context=2048)
    window.open_loader(typed)
    folder = DEMO / "adapters" / "json"
    window.open_path(str(folder))
    qtbot.waitUntil(lambda: len(window.loader.form().adapters) == 2)
    form = window.loader.form()
    assert form.adapters == (first, AdapterSource("json", str(folder)))
    assert (form.hub_id, form.token, form.context) == ("a/b", "secret", 2048)
    window.loader.close()


def test_what_cannot_be_opened_is_told_in_the_window_also_during_a_load(make_window, worker, script, qtbot, tmp_path):
    from loradesk_engine.events import ModelLoaded

    path = tmp_path / "notes.txt"
    path.write_text("hello")
    worker.replies[Load] = lambda command: []
    window = make_window(demo_settings("xlora"))
    window.open_path(str(path))
    qtbot.waitUntil(window.banner.problem.isVisible)
    assert "cannot open this file" in window.banner.problem.sentence.text()
    assert "notes.txt" in window.banner.problem.file.text()
    worker.tell(ModelLoaded(script.model_info()))
    window.client.drain()
    assert window.info is not None
    assert window.banner.problem.isVisible()
    window.banner.problem.close_button.click()
    assert not window.banner.isVisible()


def test_open_events_of_macos_are_heard():
    done = subprocess.run(
        [sys.executable, "-c", FILE_OPEN], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout.split() == [str(Path("/a/model.gguf")), "0"]


# -- one window for a conversation ----------------------------------------------------------------------------------


def test_a_second_start_hands_over_to_the_first(window, worker, qtbot, tmp_path):
    conversation = tmp_path / "kept" / "conversation.json"
    instance = SingleInstance(conversation)
    instance.requested.connect(lambda request: serve(window, request))
    assert instance.claim()
    instance.listen(window.background)
    code = (
        "import sys; from pathlib import Path; from loradesk_app.single_instance import OpenRequest, SingleInstance\n"
        "print(SingleInstance(Path(sys.argv[1])).enter(OpenRequest(path=sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(conversation), str(DEMO / "base-q8_0.gguf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        qtbot.waitUntil(lambda: len(worker.commands(Load)) == 2)
        assert other.stdout is not None
        assert other.stdout.read().strip() == "False"
    assert worker.commands(Load)[1].settings.base == str(DEMO / "base-q8_0.gguf")
    assert not list(conversation.parent.rglob("*.json")), "requests are taken away"
    serve(window, OpenRequest(demo="lora"))
    assert worker.commands(Load)[2].settings == demo_settings("lora")
    serve(window, OpenRequest(demo="nonsense"))
    assert len(worker.commands(Load)) == 3
    instance.stop()
    instance.release()


def test_a_process_that_ended_or_crashed_holds_nothing(tmp_path):
    conversation = tmp_path / "conversation.json"
    command = [sys.executable, "-c", HOLDER, str(conversation)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        mine = SingleInstance(conversation)
        assert not mine.claim()
        with pytest.raises(BusyError, match="does not answer"):
            mine.enter(OpenRequest("/a/file.gguf"), seconds=0.1)
        assert not list(tmp_path.rglob("*.json")), "what nobody took is taken back"
        holder.kill()
    assert mine.enter(OpenRequest())
    mine.release()


def test_a_request_that_cannot_be_written_is_told(tmp_path):
    first, second = (SingleInstance(tmp_path / "c.json") for _ in range(2))
    assert first.claim()
    (tmp_path / "c.json.requests").write_text("in the way")
    with pytest.raises(BusyError, match="cannot be told"):
        second.enter(OpenRequest("/a"))
    first.release()


def test_requests_that_make_no_sense_are_thrown_away(qtbot, tmp_path):
    instance = SingleInstance(tmp_path / "c.json")
    requests = tmp_path / "c.json.requests"
    requests.mkdir()
    (requests / "1.json").write_text("{")
    (requests / "2.json").write_text(json.dumps({"path": "/a"}))
    background = Background()
    with qtbot.waitSignal(instance.requested) as seen:
        instance.listen(background)
    assert seen.args == [OpenRequest("/a")]
    assert not list(requests.iterdir())
    instance.stop()
    assert background.wait(PATIENCE)
