"""Random edits: the history leads back and forth without loss, and nothing that can be made makes the checker raise."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loradesk_app.ordering.analysis import State
from loradesk_app.ordering.document import Document
from loradesk_app.ordering.layers_model import LayersModel
from loradesk_app.ordering.order_model import OrderModel
from loradesk_app.ordering.preload_model import PreloadModel
from loradesk_engine.ordering.schema import OrderingFile

CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
NAMES = st.sampled_from(["a", "ab", "adapter_1", "adapter_10", "", " ", "é", "../x", '"quoted"', "\u2028", "n\u00a0b"])
ROWS = st.lists(st.integers(0, 6), max_size=3)
TEXTS = st.sampled_from(
    [
        "",
        "{",
        "[]",
        '{"order": ["x", "x"]}',
        '{"layers": {"a": 1, "a": 2}}',
        '{"layers": {"model.layers.0.mlp.up_proj": -3}, "zzz": [1.5, null]}',
        '{\n\t"base_model_id": "org/b",\n\t"preload_adapters": [{"name": "p", "adapter_model_id": "q", "k": 1}]\n}\n',
        '{"order": 3}',
        '{"base_model_id": "n\u00a0b \u2028"}',
    ]
)
EDITS = st.one_of(
    st.tuples(st.just("set_base"), NAMES),
    st.tuples(st.just("add_name"), NAMES),
    st.tuples(st.just("change_name"), st.integers(0, 6), NAMES),
    st.tuples(st.just("move_names"), ROWS, st.integers(0, 7)),
    st.tuples(st.just("remove_names"), ROWS),
    st.tuples(st.just("add_preload"), NAMES, NAMES),
    st.tuples(st.just("rename_preload"), st.integers(0, 6), NAMES),
    st.tuples(st.just("change_preload_id"), st.integers(0, 6), NAMES),
    st.tuples(st.just("move_preloads"), ROWS, st.integers(0, 7)),
    st.tuples(st.just("remove_preloads"), ROWS),
    st.tuples(st.just("set_layer_index"), st.just("model.layers.0.self_attn.q_proj"), st.integers(-2, 2**40)),
    st.tuples(st.just("rename_layer"), st.just("model.layers.0.self_attn.q_proj"), NAMES),
    st.tuples(st.just("remove_layers"), st.just(("model.layers.0.self_attn.v_proj",))),
    st.tuples(st.just("regenerate_layers"), st.just(CONFIG), st.just(("lm_head", "model.layers.1.mlp.up_proj"))),
    st.tuples(st.just("edit_text"), TEXTS),
    st.tuples(st.just("discard_text")),
    st.tuples(st.just("fix_all")),
    st.tuples(st.just("set_mode"), st.sampled_from(["lora", "xlora", None])),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
)
STARTS = st.sampled_from(
    [
        '{"base_model_id": "b"}',
        '{\r\n  "order": ["a", "b"],\r\n  "layers": {"model.layers.0.self_attn.q_proj": 0, "lm_head": 1}\r\n}',
        '\ufeff{"order":["a"],"extra":{"k":[1]},"preload_adapters":[{"name":"a","adapter_model_id":"/x","r":8}]}',
    ]
)


def apply(document: Document, edit: tuple) -> None:
    """One edit, with rows that are there."""
    method, *arguments = edit
    orders, preloads = len(document.ordering.order or ()), len(document.ordering.preload_adapters or ())
    count = orders if "name" in method and "preload" not in method else preloads
    if method in ("change_name", "rename_preload", "change_preload_id"):
        if arguments[0] >= count:
            return
    elif method.startswith(("move_", "remove_")) and method != "remove_layers":
        arguments[0] = [row for row in arguments[0] if row < count]
    getattr(document, method)(*arguments)


def same(a: State, b: State) -> bool:
    return a.draft == b.draft and a.ordering.dumps() == b.ordering.dumps()


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@settings(suppress_health_check=list(HealthCheck))
@given(start=STARTS, edits=st.lists(EDITS, min_size=1, max_size=12))
def test_a_history_leads_to_its_start_and_its_end_and_survives_the_disk(qapp, folder, theme, start, edits):
    document = Document(state=State(OrderingFile.parse(start)))
    order, preload = OrderModel(document, theme), PreloadModel(document, theme)
    layers = LayersModel(document, theme)
    first = document.state
    for edit in edits:
        apply(document, edit)
        assert document.analysis.state is document.state  # checked, and nothing was raised
    document.stack.setIndex(document.stack.count())
    last = document.state
    while document.stack.canUndo():
        document.undo()
    assert same(document.state, first)
    assert not document.is_dirty
    while document.stack.canRedo():
        document.redo()
    assert same(document.state, last)
    assert list(order._rows) == list(last.ordering.order or ())
    assert list(preload._rows) == list(last.ordering.preload_adapters or ())
    assert layers.total == len(last.ordering.layers or ())
    if last.draft is None:
        path = folder / "saved.json"
        last.ordering.write(path)
        again = OrderingFile.read(path)
        assert again == last.ordering
        assert again.dumps() == last.ordering.dumps()
    for model in (order, preload, layers, document):
        model.deleteLater()
