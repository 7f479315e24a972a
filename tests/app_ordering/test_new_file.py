"""New files: the three steps, the tree of modules, and where bases and adapters are found."""

from __future__ import annotations

import json
import shutil

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QTreeWidgetItem
from shiboken6 import isValid

from loradesk_app.ordering import sources
from loradesk_app.ordering.new_file_dialog import ADAPTERS, BASE, MODULES
from loradesk_app.ordering.target_tree import TargetTree
from loradesk_engine.errors import LoradeskError
from loradesk_engine.ordering.modules import linear_modules
from loradesk_resources import resource_path

DEMO_BASE = str(resource_path("demo", "base"))
DEMO_ADAPTERS = str(resource_path("demo", "adapters"))
LEFT, CHECKED = Qt.MouseButton.LeftButton, Qt.CheckState.Checked
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "num_hidden_layers": 2, "num_local_experts": 4}


@pytest.fixture
def dialog(window):
    dialog = window.new_file()
    yield dialog
    if isValid(dialog):  # a dialog that has made its file is gone
        dialog.close()


def read_base(dialog, qtbot):
    qtbot.keyClicks(dialog.base.edit, DEMO_BASE)
    qtbot.mouseClick(dialog.next_button, LEFT)
    qtbot.waitUntil(lambda: dialog.step == ADAPTERS)


def test_a_file_for_x_lora_is_made_in_three_steps(window, dialog, qtbot, settled):
    assert not dialog.next_button.isEnabled()
    read_base(dialog, qtbot)
    assert dialog.base_text.text() == "llama, 6 blocks, 43 linears"
    assert not dialog.next_button.isEnabled()
    qtbot.keyClicks(dialog.adapters.edit, DEMO_ADAPTERS)
    qtbot.keyClick(dialog.adapters.edit, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: dialog.order_model.rowCount() == 4)
    assert "order" in dialog.notice.message.text()
    dialog.order.select_rows([3])
    qtbot.keyClick(dialog.order, Qt.Key.Key_Up, Qt.KeyboardModifier.AltModifier)
    qtbot.mouseClick(dialog.next_button, LEFT)
    assert dialog.step == MODULES
    assert dialog.summary.text() == "42 layers, 4 adapters"
    with qtbot.waitSignal(window.document_opened):
        qtbot.mouseClick(dialog.next_button, LEFT)
    document = window.document()
    assert document.ordering.order == ("arithmetic", "bard", "json", "capitals")
    assert len(document.ordering.layers) == 42
    assert document.is_dirty
    assert document.path is None
    settled(document)
    assert document.findings == ()  # compared with base and adapters


def test_a_file_for_lora_preloads_what_was_found(window, dialog, qtbot):
    qtbot.mouseClick(dialog.kind.button("lora"), LEFT)
    read_base(dialog, qtbot)
    dialog.adapters.take(DEMO_ADAPTERS)
    qtbot.waitUntil(lambda: dialog.preload_model.rowCount() == 4)
    dialog.next()
    dialog.with_layers.setChecked(False)
    assert dialog.summary.text() == "0 layers, 4 adapters"
    with qtbot.waitSignal(window.document_opened):
        dialog.next()
    ordering = window.document().ordering
    assert ordering.layers is None
    assert ordering.order is None
    assert [adapter.name for adapter in ordering.preload_adapters] == ["arithmetic", "bard", "capitals", "json"]


def test_the_name_in_the_file_may_differ_from_the_folder(window, dialog, qtbot):
    read_base(dialog, qtbot)
    qtbot.mouseClick(dialog.back_button, LEFT)
    assert dialog.step == BASE
    assert dialog.base_id.text() == DEMO_BASE
    dialog.base_id.edit.setText("org/demo")
    dialog.next()
    dialog.add_adapter()
    dialog.next()
    with qtbot.waitSignal(window.document_opened):
        dialog.next()
    assert window.document().ordering.base_model_id == "org/demo"


def test_a_base_that_cannot_be_read_is_explained(dialog, qtbot, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OddForCausalLM"]}))
    for source, words in ((str(tmp_path / "none"), "Neither a file"), (str(tmp_path), "not supported")):
        dialog.base.edit.setText(source)
        dialog.next()
        qtbot.waitUntil(lambda words=words: words in dialog.notice.message.text())
        assert dialog.step == BASE
        assert dialog.next_button.isEnabled()


def test_adapters_that_cannot_be_found_are_explained(dialog, qtbot, tmp_path):
    read_base(dialog, qtbot)
    dialog.adapters.take(str(tmp_path))
    qtbot.waitUntil(lambda: "no adapters here" in dialog.notice.message.text())
    dialog.add_adapter()  # and can be named by hand
    assert dialog.next_button.isEnabled()


def test_checkpoints_folders_and_single_adapters_are_found(tmp_path):
    config = sources.read_base_facts(DEMO_BASE).config
    assert len(sources.find_adapters(DEMO_ADAPTERS).modules) == 4
    assert list(sources.find_adapters(f"{DEMO_ADAPTERS}/bard").modules) == ["bard"]
    assert sources.find_adapters(str(resource_path("demo", "xlora")), config).classifier.layerwise
    copy = tmp_path / "adapters"
    shutil.copytree(DEMO_ADAPTERS, copy)
    (copy / "json" / "adapter_config.json").write_text("{")
    found = sources.find_adapters(str(copy))
    assert sorted(found.modules) == ["arithmetic", "bard", "capitals"]
    assert found.problems[0].startswith("json: Not valid JSON")
    with pytest.raises(LoradeskError):
        sources.find_adapters(str(tmp_path / "nothing"))


def test_a_base_with_images_is_described_by_its_text_part(tmp_path):
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"num_hidden_layers": 34}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert sources.read_base_facts(str(tmp_path)).title == "gemma3_text, 34 blocks, 239 linears"


def test_bases_are_looked_for_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sources.base_on_disk("nobody/has-this") is None
    assert sources.base_on_disk(str(tmp_path)) is None
    assert sources.base_on_disk(DEMO_BASE).title == "llama, 6 blocks, 43 linears"


def test_the_tree_shows_the_architecture_with_counts(qtbot):
    tree = TargetTree()
    qtbot.addWidget(tree)
    linears = linear_modules(MIXTRAL)
    tree.set_linears(linears, [linears[0]])
    assert tree.topLevelItem(0).text(1) == "2 blocks"
    assert tree.leaf("q_proj").text(1) == "1 of 2"
    assert tree.leaf("q_proj").checkState(0) == Qt.CheckState.PartiallyChecked
    assert tree.leaf("experts.w1").text(1) == "8"
    assert tree.chosen() == (linears[0],)
    tree.leaf("experts.w1").parent().setCheckState(0, CHECKED)
    assert len(tree.chosen()) == 1 + 3 * 8
    tree.leaf("lm_head").setCheckState(0, CHECKED)
    assert tree.chosen()[-1] == "lm_head"
    top: QTreeWidgetItem = tree.topLevelItem(0)
    top.setCheckState(0, CHECKED)
    assert tree.chosen() == linears


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has the demo pack, split as people publish such models: a base, and a repository of adapters."""
    from support.hub_server import FakeHub, point_at, serve

    mix = tmp_path / "mix"
    shutil.copytree(resource_path("demo", "xlora"), mix)
    shutil.copytree(DEMO_ADAPTERS, mix, dirs_exist_ok=True)
    with serve(FakeHub({"org/base": resource_path("demo", "base"), "org/mix": mix})) as server:
        point_at(monkeypatch, server.url, tmp_path / "cache")
        yield server


def test_base_and_adapters_come_from_the_hub_without_their_weights(hub, window, dialog, qtbot, settled, tmp_path):
    qtbot.keyClicks(dialog.base.edit, "org/base")
    dialog.next()
    qtbot.waitUntil(lambda: dialog.step == ADAPTERS)
    dialog.adapters.take("org/mix")
    qtbot.waitUntil(lambda: dialog.order_model.rowCount() == 4)
    dialog.next()
    with qtbot.waitSignal(window.document_opened):
        dialog.next()
    document = window.document()
    assert document.ordering.base_model_id == "org/base"
    assert len(document.ordering.layers) == 42
    assert not [path for _method, path in hub.asked if path.startswith("/org/base") and path.endswith(".safetensors")]
    assert hub.served["adapter_model.safetensors"] <= 4 * 2**16  # headers
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    qtbot.waitUntil(lambda: window.view().base is not None)
    assert sources.base_on_disk("org/base") is not None  # from the cache by now


def test_only_selected_adapters_can_be_moved_or_removed(dialog, qtbot):
    read_base(dialog, qtbot)
    qtbot.keyClicks(dialog.adapters.edit, DEMO_ADAPTERS)
    qtbot.keyClick(dialog.adapters.edit, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: dialog.order_model.rowCount() == 4)
    dialog.order.clearSelection()
    assert not any(button.isEnabled() for button in dialog._row_tools)
    dialog.order.select_rows([1])
    assert all(button.isEnabled() for button in dialog._row_tools)
